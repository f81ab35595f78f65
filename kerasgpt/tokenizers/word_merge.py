"""Owns words -> ids, each distinct word merged once. Not: cutting a text.

TF Text merges 0.7 to 2 MB a second. Most words are tokens, or are made of
parts that no merge can join, and parts are tokens nearly always: a table knows
them, and what is left to merge is little.
"""

import itertools

import tensorflow as tf

# Code points have 21 bits.
_SHIFT = 21


class WordMerger(tf.Module):
    """Ids of words: from a table, or merged by a SentencePiece operation.

    A word that is in no table is cut where no merge crosses: between two
    characters that no token has side by side, whole or in part. The parts are
    looked up, then merged. So ids are those of merging the whole word.

    Args:
        tokens: list of bytes, what merges make: of these no two characters
            are cut apart.
        part_ids: dict from bytes to id, what merges make one token of.
        word_ids: dict from bytes to id, words that become one token; None =
            `part_ids`.
        merge: function from strings (count,) to ids, int32 RaggedTensor
            (count, None), in graph code.
    """

    def __init__(self, tokens, part_ids, merge, *, word_ids=None):
        super().__init__(name="word_merger")
        self._merge = merge
        self._part_ids = self._word_ids = _table(part_ids)
        if word_ids is not None:
            self._word_ids = _table(word_ids)
        pairs, byte_pairs = neighbours(tokens)
        # A table needs a key; no character is 0x1FFFFF.
        keys = [(left << _SHIFT) + right for left, right in pairs] or [-1]
        self._pairs = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant(keys, tf.int64), tf.ones(len(keys), tf.int32)
            ),
            0,
        )
        # As text, since a tf.Module would wrap a list of 65,536.
        self._byte_pairs = bytes(
            (left, right) in byte_pairs
            for left in range(256)
            for right in range(256)
        )

    def __call__(self, words):
        """Returns the ids of rows of words, in graph code.

        Args:
            words: string RaggedTensor (batch, None). Empty ones have no id.

        Returns:
            int32 RaggedTensor (batch, None).
        """
        by_word = self._look_up(words.values, self._word_ids, self._merge_parts)
        return words.with_values(by_word).merge_dims(1, 2)

    def _merge_parts(self, words):
        parts = self._cut(words)
        by_part = self._look_up(parts.values, self._part_ids, self._merge)
        return parts.with_values(by_part).merge_dims(1, 2)

    def _look_up(self, strings, table, merge):
        """Returns the ids of each string, and merges what a table lacks."""
        unique, places = tf.unique(strings)
        ids = table.lookup(unique)
        is_known = ids >= 0
        rows = tf.concat(
            [
                tf.RaggedTensor.from_uniform_row_length(
                    tf.boolean_mask(ids, is_known), 1
                ).with_row_splits_dtype(tf.int64),
                merge(tf.boolean_mask(unique, ~is_known)),
            ],
            axis=0,
        )
        # Where each unique string stands in them.
        num_before = tf.cumsum(tf.cast(is_known, tf.int32), exclusive=True)
        order = tf.where(
            is_known,
            num_before,
            # All that are known, and those before that are not.
            tf.reduce_sum(tf.cast(is_known, tf.int32))
            + tf.range(tf.size(unique))
            - num_before,
        )
        return tf.gather(rows, tf.gather(order, places))

    def _cut(self, words):
        """Returns the parts of each word, a string RaggedTensor."""
        points = tf.strings.unicode_decode(words, "UTF-8")
        flat = points.values
        left, right = flat[:-1], flat[1:]
        keys = tf.bitwise.left_shift(
            tf.cast(left, tf.int64), tf.constant(_SHIFT, tf.int64)
        ) + tf.cast(right, tf.int64)
        table = tf.io.decode_raw(tf.constant(self._byte_pairs), tf.uint8)
        index = 256 * _last_byte(left) + _first_byte(right)
        is_joined = (self._pairs.lookup(keys) > 0) | (
            tf.gather(table, index) > 0
        )
        # The first character of all begins a part, if there is one.
        is_start = tf.concat(
            [tf.ones_like(flat[:1], tf.bool), ~is_joined], axis=0
        )
        starts = points.row_splits[:-1]
        # An empty word at the end starts nowhere.
        starts = tf.boolean_mask(starts, starts < tf.size(flat, tf.int64))
        is_start = tf.tensor_scatter_nd_update(
            is_start, starts[:, None], tf.ones_like(starts, tf.bool)
        )
        places = tf.where(is_start)[:, 0]
        parts = tf.strings.unicode_encode(
            tf.RaggedTensor.from_row_starts(flat, places, validate=False),
            "UTF-8",
        )
        # How many parts begin before each word does.
        num_before = tf.concat(
            [[0], tf.cumsum(tf.cast(is_start, tf.int64))], axis=0
        )
        return tf.RaggedTensor.from_row_splits(
            parts, tf.gather(num_before, points.row_splits), validate=False
        )


def run_as_graphs(*functions):
    """Returns a function that runs one of several functions as a graph.

    Run eagerly, a hundred small operations take a millisecond and more. What
    is returned is no `tf.function`, as a SavedModel holds each that it finds.

    Args:
        *functions: pairs of a function of one argument and its type, a
            tf.TypeSpec.

    Returns:
        function of a place among them and an argument.

    Example:
        >>> run = run_as_graphs((lambda x: x + 1, tf.TensorSpec([], tf.int32)))
        >>> run(0, tf.constant(1)).numpy().item()
        2
    """
    graphs = [
        tf.function(function, input_signature=[spec], autograph=False)
        for function, spec in functions
    ]
    return lambda place, argument: graphs[place](argument)


def _table(ids):
    keys, values = tf.constant(list(ids)), tf.constant(list(ids.values()))
    return tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(keys, values), -1
    )


def _first_byte(points):
    """Returns the first byte of characters in UTF-8, int32."""
    return tf.where(
        points < 0x80,
        points,
        tf.where(
            points < 0x800,
            0xC0 + points // 0x40,
            tf.where(
                points < 0x10000,
                0xE0 + points // 0x1000,
                0xF0 + points // 0x40000,
            ),
        ),
    )


def _last_byte(points):
    return tf.where(points < 0x80, points, 0x80 + points % 0x40)


def neighbours(tokens):
    r"""Returns which characters, and which bytes, tokens have side by side.

    Args:
        tokens: list of bytes.

    Returns:
        set of (int, int), code points of two whole characters; and of the
        last and the first byte of two, one of which a token has in part.

    Example:
        >>> neighbours(["ab".encode(), "你".encode(), b" \xe4"])
        ({(97, 98)}, {(32, 228)})
    """
    pairs, byte_pairs = set(), set()
    for token in tokens:
        # Surrogates stand for bytes that are no whole character.
        text = token.decode(errors="surrogateescape")
        for left, right in itertools.pairwise(text):
            if any("\udc80" <= one <= "\udcff" for one in (left, right)):
                before, after = (
                    one.encode(errors="surrogateescape")
                    for one in (left, right)
                )
                byte_pairs.add((before[-1], after[0]))
            else:
                pairs.add((ord(left), ord(right)))
    return pairs, byte_pairs
