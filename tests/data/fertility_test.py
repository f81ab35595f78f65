import pytest

from kerasgpt.data.fertility import Usage, measure_usage, sample_texts
from kerasgpt.tokenizers.byte import ByteTokenizer
from tests.descriptors import tiny_word_piece

TEXTS = ["it is so and so", "你好，世界", "to be or not to be"]


def test_usage_by_hand():
    usage = measure_usage(ByteTokenizer(), TEXTS)
    assert usage["en"] == Usage(2, 15 + 18, 5 + 6, 33)
    # Five characters of three bytes.
    assert usage["zh"] == Usage(1, 15, 5, 15)
    assert usage["all"] == Usage(3, 48, 16, 48)
    assert list(usage) == ["all", "en", "zh"]
    assert usage["zh"].fertility == 3.0
    assert usage["en"].fertility == 3.0
    assert usage["all"].compression == 1.0


def test_unknown_words_are_counted():
    usage = measure_usage(tiny_word_piece(), ["to be zzz", "龘"])
    assert usage["all"].num_unknown == 2
    assert measure_usage(ByteTokenizer(), ["zzz"])["all"].num_unknown == 0


def test_many_texts_are_measured_in_batches():
    usage = measure_usage(ByteTokenizer(), ["abc"] * 1000)
    assert usage["all"].num_tokens == 3000


def test_no_text_has_no_usage():
    assert measure_usage(ByteTokenizer(), []) == {}
    assert Usage().fertility == 0.0
    assert Usage().compression == 0.0


def test_a_sample_does_not_depend_on_the_order():
    texts = [f"text {number}" for number in range(1000)]
    chosen = sample_texts(texts, num_bytes=900)
    assert chosen == sample_texts(reversed(texts), num_bytes=900)
    assert 880 < sum(map(len, chosen)) <= 900
    # From all parts alike.
    numbers = [int(text.split()[1]) for text in chosen]
    assert 350 < sum(numbers) / len(numbers) < 650


def test_all_is_chosen_if_there_is_room():
    assert set(sample_texts(TEXTS, num_bytes=1000)) == set(TEXTS)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_text_that_is_too_long_takes_no_place(place):
    texts = ["one", "two"]
    texts.insert(place, "x" * 100)
    assert set(sample_texts(texts, num_bytes=10)) == {"one", "two"}
