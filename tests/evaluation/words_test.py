import pytest

from kerasgpt.evaluation.words import ngrams, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("Red,  RED\n12.5", ["red", ",", "red", "12", ".", "5"]),
        ("Repomu是红色的", ["repomu", "是", "红", "色", "的"]),
        ("naïve Ёлка", ["naïve", "ёлка"]),
        ("\U00020000a", ["\U00020000", "a"]),
        ("snake_case", ["snake", "case"]),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_signs_may_be_left_out():
    assert words("好，ok!", with_signs=False) == ["好", "ok"]


def test_ngrams_of_too_little():
    assert ngrams(["a"], 2) == []
