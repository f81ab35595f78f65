"""Owns the proof that variations are seeded, in both languages, and few."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasgpt.config import InputError
from kerasgpt.data.augmentation import (
    AugmentationConfig,
    delete_words,
    replace_synonyms,
    swap_words,
    vary_row,
)

ENGLISH = {
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "When do you open on a Sunday?"},
        {"role": "assistant", "content": "At nine."},
    ],
    "language": "en",
}
CHINESE = {"text": "星期天几点开门？九点开门。", "language": "zh"}


def config(**settings):
    return AugmentationConfig(**{"num_variations": 3, **settings})


def test_nothing_is_varied_unless_asked_for():
    assert vary_row(ENGLISH, AugmentationConfig()) == []
    assert vary_row(CHINESE, config()) == []


def test_only_the_users_turns_are_varied():
    for varied in vary_row(ENGLISH, config(swap_rate=0.4)):
        assert varied["messages"][0] == ENGLISH["messages"][0]
        assert varied["messages"][2] == ENGLISH["messages"][2]
        assert varied["messages"][1] != ENGLISH["messages"][1]


def test_the_seed_decides_and_the_company_does_not():
    settings = config(num_variations=5, swap_rate=0.3, deletion_rate=0.2)
    first = vary_row(CHINESE, settings)
    vary_row(ENGLISH, settings)
    assert vary_row(CHINESE, settings) == first
    assert len(first) > 1
    assert vary_row(CHINESE, config(swap_rate=0.3, seed=1)) != first


def test_no_variation_comes_twice():
    varied = vary_row(ENGLISH, config(num_variations=50))
    contents = [one["messages"][1]["content"] for one in varied]
    assert len(contents) == len(set(contents)) == 3


def test_synonyms_are_of_a_group_and_whole_words(tmp_path):
    path = tmp_path / "synonyms.txt"
    path.write_text("open\tunlock\n开门\t营业\n")
    settings = config(synonyms=str(path), synonym_rate=1.0, use_templates=False)
    (english,) = vary_row(ENGLISH, settings)
    assert english["messages"][1]["content"] == (
        "When do you unlock on a Sunday?"
    )
    (chinese,) = vary_row(CHINESE, settings)
    assert chinese["text"] == "星期天几点营业？九点营业。"
    rng = random.Random(0)
    assert replace_synonyms("reopened", (("open", "x"),), 1.0, rng) == (
        "reopened"
    )
    other = tmp_path / "other.txt"
    other.write_text("alone\n")
    with pytest.raises(InputError, match="line 1: needs two words"):
        vary_row(ENGLISH, config(synonyms=str(other)))


def test_a_translator_may_be_plugged_in():
    (varied,) = vary_row(
        CHINESE,
        config(),
        translate_back=lambda text, language: f"{language}:{text[:3]}",
    )
    assert varied["text"] == "zh:星期天"


@given(st.text(), st.floats(0, 0.5), st.integers(0, 9))
def test_swapping_loses_no_character(text, rate, seed):
    swapped = swap_words(text, rate, random.Random(seed))
    assert sorted(swapped) == sorted(text)
    assert swap_words(text, 0.0, random.Random(seed)) == text


@given(st.text(min_size=1), st.floats(0, 0.5), st.integers(0, 9))
def test_deleting_leaves_something(text, rate, seed):
    left = delete_words(text, rate, random.Random(seed))
    assert 0 < len(left) <= len(text)


def test_rates_are_kept_on_average():
    text = " ".join(f"w{number}" for number in range(10_000))
    left = delete_words(text, 0.2, random.Random(0)).split()
    assert len(left) == pytest.approx(8000, rel=0.03)
