import sys
import unicodedata

import pytest
import tensorflow as tf

from kerasgpt.tokenizers.bert_words import BertWords

SETTINGS = [
    {"lower_case": True, "strip_accents": True, "split_han": True},
    {"lower_case": False, "strip_accents": False, "split_han": True},
    {"lower_case": True, "strip_accents": False, "split_han": False},
]


def cut(texts, **settings):
    words = BertWords(**settings)(tf.constant(texts, tf.string))
    return [[one.decode() for one in row] for row in words.to_list()]


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_character_is_cut_as_by_tokenizers(settings):
    tokenizers = pytest.importorskip("tokenizers", reason="KerasHub brings it")
    normalizer = tokenizers.normalizers.BertNormalizer(
        lowercase=settings["lower_case"],
        strip_accents=settings["strip_accents"],
        handle_chinese_chars=settings["split_han"],
    )
    split = tokenizers.pre_tokenizers.BertPreTokenizer()
    letters = [
        letter
        for letter in map(chr, range(sys.maxunicode + 1))
        # What is not assigned yet in this Python may be so in their tables.
        if unicodedata.category(letter) not in ("Cs", "Cn")
    ]
    # Of private use: all are the same.
    letters = [
        letter
        for letter in letters
        if unicodedata.category(letter) != "Co" or ord(letter) % 997 == 0
    ]
    assert len(letters) > 140_000
    texts = [f"a{letter}b" for letter in letters]
    expected = [
        [word for word, _ in split.pre_tokenize_str(text)]
        for text in map(normalizer.normalize_str, texts)
    ]
    found = cut(texts, **settings)
    odd = [
        letter
        for letter, one, other in zip(letters, found, expected, strict=True)
        if one != other
    ]
    assert not odd


def test_words_are_cut_in_both_languages():
    text = "Déjà-vu：I'm “here” 在这里2次\t\n 國"
    assert cut([text], **SETTINGS[0]) == [
        "deja - vu ： i ' m “ here ” 在 这 里 2 次 國".split()  # noqa: SIM905
    ]
    assert cut([text], **SETTINGS[2]) == [
        "déjà - vu ： i ' m “ here ” 在这里2次 國".split()  # noqa: SIM905
    ]


def test_control_characters_vanish_and_nothing_is_left_of_nothing():
    texts = ["a\u200bb\x00c\ufffd\ue000", "\u0301", "", " \u3000\r\n"]
    assert cut(texts, **SETTINGS[0]) == [["abc"], [], [], []]
    assert cut([], **SETTINGS[0]) == []


def test_a_long_word_becomes_what_no_vocabulary_has():
    short, long = "é" * 100, "é" * 101
    found = cut([f"{short} {long}!"], **SETTINGS[1])
    assert found == [[short, "\ue000", "!"]]


def test_a_graph_and_tf_data_cut_the_same():
    texts = ["Thé 你好!", "", "x"] * 5
    words = BertWords(**SETTINGS[0])
    expected = words(tf.constant(texts)).to_list()
    dataset = tf.data.Dataset.from_tensor_slices(texts).batch(4).map(words)
    assert [row for batch in dataset for row in batch.to_list()] == expected
