"""Owns the proof that texts are cut into words as a reader cuts them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasgpt.data import shingles
from kerasgpt.data.shingles import (
    CHARACTER,
    WORD,
    hash_runs,
    hash_shingles,
    mix,
    read_units,
    text_hash,
)


def units_of(text):
    """Returns (values, kinds) of one text, whatever its length."""
    found = [units for _, units in read_units([text])]
    return (
        np.concatenate([units.values for units in found]),
        np.concatenate([units.kinds for units in found]),
    )


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Hello, World!", "hello world"),
        ("ＧＰＴ－４", "gpt-4"),
        ("你好，世界。", "你好 世界"),
        ("cafe\u0301", "café"),
        ("«a» (b) “c”", "a b c"),
        ("a\tb\n\nc", "a b c"),
    ],
)
def test_what_is_the_same_to_a_reader_is_the_same(text, same):
    np.testing.assert_array_equal(units_of(text)[0], units_of(same)[0])


@pytest.mark.parametrize(
    ("text", "other"),
    [("3+4", "3-4"), ("C#", "C"), ("ab c", "a bc"), ("你好", "好你")],
)
def test_what_differs_is_not_the_same(text, other):
    left, right = units_of(text)[0], units_of(other)[0]
    assert len(left) != len(right) or (left != right).any()


def test_scripts_with_and_without_spaces_are_told_apart():
    for text, kinds in (
        ("two words", [WORD] * 2),
        ("两字", [CHARACTER] * 2),
        ("用GPT写", [CHARACTER, WORD, CHARACTER]),
        ("かな漢字", [CHARACTER] * 4),
        ("한국어 글", [WORD] * 2),
        ("😀", [CHARACTER]),
        ("。，!", []),
    ):
        assert units_of(text)[1].tolist() == kinds


def test_texts_of_any_length_come_whole_and_in_bounded_pieces(monkeypatch):
    texts = ["one two", "", "长" * 5000, "word " * 3000, "x" * 4000, "three"]
    whole = [units_of(text)[0] for text in texts]
    monkeypatch.setattr(shingles, "PIECE_CHARACTERS", 1000)
    parts = [[] for _ in texts]
    for numbers, units in read_units(texts):
        assert len(units.values) <= 1000
        for number, start, end in zip(
            numbers, units.splits[:-1], units.splits[1:], strict=True
        ):
            parts[number].append(units.values[start:end])
    for index, (expected, found) in enumerate(zip(whole, parts, strict=True)):
        if index != 4:  # no word of 4,000 letters is kept whole
            np.testing.assert_array_equal(np.concatenate(found), expected)


def test_a_shingle_stays_within_its_text():
    [(numbers, units)] = read_units(["a b c d", "", "e f", "一二三"])
    rows, hashes = hash_shingles(units, word_length=3, character_length=2)
    # Two of three words, one of too few words, two of two characters.
    assert numbers[np.sort(rows)].tolist() == [0, 0, 2, 3, 3]
    assert len(np.unique(hashes)) == len(hashes)


@given(st.lists(st.integers(0, 2), max_size=30), st.data())
def test_equal_runs_have_equal_hashes_wherever_they_stand(values, data):
    values = np.array(values, np.uint64)
    place = st.integers(0, len(values))
    runs = [sorted((data.draw(place), data.draw(place))) for _ in range(6)]
    hashes = hash_runs(values, *np.array(runs, np.int64).T)
    for (start, end), found in zip(runs, hashes, strict=True):
        for (other, other_end), found_other in zip(runs, hashes, strict=True):
            if end - start != other_end - other:
                continue
            is_same = np.array_equal(values[start:end], values[other:other_end])
            assert is_same == (found == found_other)


def test_mixing_is_one_to_one_and_stable():
    values = mix(np.arange(100_000))
    assert len(np.unique(values)) == 100_000
    # Goldens of the reference: what files hold must not change.
    assert int(mix([1])[0]) == 0x5692161D100B05E5
    assert (
        text_hash("a", size_bytes=4).hex() == text_hash("a", size_bytes=4).hex()
    )
    assert text_hash("\ud800", size_bytes=8) != text_hash("", size_bytes=8)


@given(st.text())
def test_any_text_has_units(text):
    values, kinds = units_of(text)
    assert len(values) == len(kinds) <= max(1, len(text))
    assert set(kinds.tolist()) <= {WORD, CHARACTER}
