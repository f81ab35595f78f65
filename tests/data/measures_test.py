"""Owns the proof that what is measured of a text is what is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasgpt.data import measures
from kerasgpt.data.measures import (
    CLEARLY_BELOW,
    Measured,
    duplicate_characters,
    duplicate_fraction,
    duplicate_ngrams,
    top_ngram,
)

# (measure, text, language, counted by hand).
COUNTED = [
    (measures.characters, "ab c\n d", "en", 4),
    (measures.characters, "你好 世界", "zh", 4),
    (measures.lost_fraction, "ab\ufffd\ufffd", "en", 0.5),
    (measures.lost_fraction, "好锟斤拷", "zh", 0.75),
    (measures.placeholders, "Lorem Ipsum, lorem ipsum", "en", 2),
    (measures.placeholders, "请在此输入", "zh", 1),
    (measures.curly_brackets, "{a} }", "en", 3),
    (measures.sentences, "One. Two? 3.5 is no end!", "en", 3),
    (measures.sentences, "一。二？三……", "zh", 3),
    (measures.num_words, "one two  three", "en", 3),
    (measures.num_words, "三个字", "zh", 2),
    (measures.word_length, "a abcd 很长很长很长", "zh", 4),
    (measures.mean_word_length, "a abc", "en", 2),
    (measures.mean_word_length, "好", "zh", 5),
    (measures.symbol_fraction, "#a b... c… d", "en", 0.5),
    (measures.symbol_fraction, "三个字……", "zh", 0.5),
    (measures.bullet_fraction, "- a\nb\n• c\n* d\ne", "en", 0.6),
    (measures.bullet_fraction, "- a\n- b", "en", 0),
    (measures.ellipsis_fraction, "a…\nb\nc...\nd\ne", "en", 0.4),
    (measures.alphabetic_fraction, "a1 12 b +", "en", 0.5),
    (measures.alphabetic_fraction, "三个字，123 456。", "zh", 0.5),
    (measures.grammar_words, "The dog and THE cat", "en", 2),
    (measures.grammar_words, "我的书在", "zh", 2),
    (measures.ended_fraction, "a.\nb\nc！\nd\ne", "en", 0.4),
    (measures.ended_fraction, "a\nb", "en", 1),
    (measures.short_line_fraction, "a\nb.\nc\nd\ne", "en", 0.8),
    (
        measures.short_line_fraction,
        ("短\n" * 3) + "长" * 12 + "\n末。",
        "zh",
        0.6,
    ),
]


@pytest.mark.parametrize(("measure", "text", "language", "expected"), COUNTED)
def test_a_measure_is_what_a_hand_counts(measure, text, language, expected):
    found = measure(Measured(text, language))
    assert found == pytest.approx(expected)


def test_languages_of_unknown_grammar_have_enough_of_it():
    assert measures.grammar_words(Measured("bonjour", "fr")) == 8


def test_shares_of_duplicates_are_counted():
    assert duplicate_fraction(["a", "b", "a", "a"]) == 0.5
    assert duplicate_characters(["aaaa", "bb", "aaaa"]) == 0.4
    assert duplicate_fraction([]) == duplicate_characters([]) == 0.0


def slow_top(units, length):
    runs = [
        tuple(units[i : i + length]) for i in range(len(units) - length + 1)
    ]
    count = max(map(runs.count, runs), default=0)
    return min(1.0, count * length / len(units)) if count > 1 else 0.0


def slow_repeated(units, length):
    seen, covered = set(), set()
    for start in range(len(units) - length + 1):
        run = tuple(units[start : start + length])
        if run in seen:
            covered |= set(range(start, start + length))
        seen.add(run)
    return len(covered) / len(units)


@given(
    units=st.lists(st.sampled_from("abc"), min_size=1, max_size=60),
    length=st.integers(2, 10),
)
def test_runs_of_words_are_counted_as_the_long_way(units, length):
    measured = Measured(" ".join(units), "en")
    # Both shortcuts answer with a bound, where it is clearly below.
    expected = slow_top(units, length)
    found = top_ngram(measured, words=length)
    assert found == pytest.approx(expected) or (
        expected <= found < CLEARLY_BELOW
    )
    expected = slow_repeated(units, length)
    if length >= 5:
        found = duplicate_ngrams(measured, words=length)
        assert found == pytest.approx(expected) or (
            expected <= found < CLEARLY_BELOW
        )


def test_chinese_is_counted_in_characters():
    text = "".join(chr(0x4E00 + number) for number in range(300))
    assert Measured(text, "zh").num_words == pytest.approx(200)
    measured = Measured("一二三四五六七八九十" * 2, "zh")
    assert measured.repeated_share(5) == 0.5
    assert Measured("one two three", "en").num_words == 3
