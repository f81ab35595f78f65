import random

import pytest
import tensorflow as tf

from kerasgpt.tokenizers.word_merge import WordMerger, neighbours


def lengths(strings):
    """Merges a string to one id: 1,000 and its number of bytes."""
    ids = 1000 + tf.strings.length(strings)
    return tf.RaggedTensor.from_uniform_row_length(
        ids, 1
    ).with_row_splits_dtype(tf.int64)


def ids_of(merger, rows):
    words = tf.ragged.constant(rows, dtype=tf.string).with_row_splits_dtype(
        tf.int64
    )
    return merger(words).to_list()


def test_words_parts_and_the_rest():
    merger = WordMerger([b"ab", b"bc"], {b"ab": 1, b"x": 2}, lengths)
    # "abc" is a part that no table has; x is cut off, since no token joins it.
    assert ids_of(merger, [["ab", "x"], [], ["xabcx", ""], ["abc"]]) == [
        [1, 2],
        [],
        [2, 1003, 2],
        [1003],
    ]


def test_a_table_of_words_is_not_that_of_parts():
    merger = WordMerger([b"ab"], {b"x": 2}, lengths, word_ids={b"ab": 7})
    assert ids_of(merger, [["ab", "xab", "x"]]) == [[7, 2, 1002, 2]]


@pytest.mark.parametrize("rows", [[], [[]], [[""]], [["", ""], [], [""]]])
def test_no_word_has_no_id(rows):
    merger = WordMerger([b"ab"], {b"x": 2}, lengths)
    words = tf.RaggedTensor.from_row_lengths(
        tf.constant([word for row in rows for word in row], tf.string),
        tf.constant([len(row) for row in rows], tf.int64),
    )
    assert merger(words).to_list() == [[] for _ in rows]


def test_characters_side_by_side():
    assert neighbours(["a你".encode()]) == ({(ord("a"), ord("你"))}, set())
    # The last byte of the first, the first byte of a second cut short.
    assert neighbours(["你".encode() + b"\xe5\xa5"]) == (
        set(),
        {(0xA0, 0xE5), (0xE5, 0xA5)},
    )
    assert neighbours([b"\xbd\xa0b"])[1] >= {(0xA0, ord("b"))}
    assert neighbours([]) == (set(), set())


def cuts(tokens, text):
    """Returns the parts of a text, by looking for tokens over each place."""
    content, parts, start = text.encode(), [], 0
    places = [len(text[:i].encode()) for i in range(1, len(text))]
    for place in places:
        if not any(
            content[place - i : place - i + len(token)] == token
            for token in tokens
            for i in range(1, len(token))
            if place >= i
        ):
            parts.append(content[start:place])
            start = place
    return [*parts, content[start:]]


def test_no_cut_is_inside_a_token_and_none_is_missed_without_parts():
    draw = random.Random(0)
    letters = "ab你好é\U0001f600"
    for _ in range(30):
        tokens = [
            "".join(draw.choices(letters, k=draw.randint(2, 3))).encode()
            for _ in range(4)
        ]
        # Some with a part of a character.
        tokens += [token[1:-1] for token in tokens[:2] if len(token) > 3]
        merger = WordMerger(tokens, {b"-": 0}, lengths)
        text = "".join(draw.choices(letters, k=12))
        (found,) = ids_of(merger, [[text]])
        sizes = [one - 1000 for one in found]
        assert sum(sizes) == len(text.encode())
        ends, end = set(), 0
        for size in sizes:
            end += size
            ends.add(end)
        allowed, end = set(), 0
        for part in cuts(tokens, text):
            end += len(part)
            allowed.add(end)
        assert ends <= allowed
