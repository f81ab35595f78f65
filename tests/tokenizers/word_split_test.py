import random

import pytest
import tensorflow as tf

from kerasgpt.tokenizers.word_split import WORD_SPLITS, split_words
from tests.tokenizers.families import golden

every_split = pytest.mark.parametrize("name", WORD_SPLITS)


def _words(text, name):
    (row,) = split_words(tf.constant([text]), name).to_list()
    return [word.decode() for word in row if word]


# By hand, from the expressions.
CASES = {
    "gpt2": {
        "I'm  here\n": ["I", "'m", " ", " here", "\n"],
        # The first blank goes alone, the second with the mark, so that no
        # contraction is seen.
        "  's": [" ", " '", "s"],
        " 's": [" '", "s"],
        " \na": [" ", "\n", "a"],
        "\n a": ["\n", " a"],
        "a \n ": ["a", " \n "],
        "x12345 6": ["x", "12345", " 6"],
        "\u3000\u3000你": ["\u3000", "\u3000", "你"],
        "a\x85\x0bb": ["a", "\x85", "\x0b", "b"],
    },
    "gpt2_digits": {
        "x12  3": ["x", "1", "2", "  ", "3"],
        "a 5  b": ["a", " ", "5", " ", " b"],
    },
    "llama3": {
        "I'M here": ["I", "'M", " here"],
        "1234567": ["123", "456", "7"],
        "\tfoo  bar": ["\tfoo", " ", " bar"],
        "a \n  b": ["a", " \n", " ", " b"],
        "!\n\n  x": ["!\n\n", " ", " x"],
        "a \n ": ["a", " \n", " "],
        "(foo) #bar": ["(foo", ")", " #", "bar"],
        "\t\t1": ["\t", "\t", "1"],
    },
    "qwen2": {"12 3": ["1", "2", " ", "3"]},
    "o200k": {
        "XMLHttpRequest's": ["XMLHttp", "Request's"],
        "/\n/a": ["/\n/", "a"],
    },
}


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name in CASES for text in CASES[name]]
)
def test_words_by_hand(name, text):
    assert _words(text, name) == CASES[name][text]


@every_split
def test_words_joined_are_the_text(name):
    texts = golden()["texts"]
    joined = tf.strings.reduce_join(
        split_words(tf.constant(texts), name), axis=-1
    )
    assert [text.decode() for text in joined.numpy()] == texts


@every_split
def test_every_character_is_in_a_word(name):
    draw = random.Random(0)
    points = [i for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    texts = ["".join(map(chr, draw.sample(points, 50))) for _ in range(400)]
    joined = tf.strings.reduce_join(
        split_words(tf.constant(texts), name), axis=-1
    )
    assert [text.decode() for text in joined.numpy()] == texts


@every_split
def test_one_cut_in_a_text_changes_words_near_it_only(name):
    left, right = "to be, or not to be", "你好 world"
    assert _words(f"{left}\n\n{right}", name)[0] == _words(left, name)[0]
    assert _words(f"{left}\n\n{right}", name)[-1] == _words(right, name)[-1]
