"""Owns the byte tokenizer. Not: anything that has to be learned."""

import tensorflow as tf

from kerasgpt.tokenizers.tokenizer import CONTROL_TOKENS, Tokenizer


class ByteTokenizer(Tokenizer):
    """One id for each byte: for tests, the smallest models, and characters.

    Ids 0 to 8 are control ids; byte b is id 9 + b.

    Example:
        >>> ByteTokenizer().encode("A!")
        [74, 42]
        >>> ByteTokenizer().decode([74, 42])
        'A!'
    """

    kind = "byte"

    def __init__(self):
        super().__init__(name="byte_tokenizer")
        self.vocabulary_size = len(CONTROL_TOKENS) + 256
        self.token_bytes = [0] * len(CONTROL_TOKENS) + [1] * 256

    def encode_strings(self, strings):
        values = tf.ragged.map_flat_values(
            # A reshape, as no byte at all decodes to the shape (0, 0).
            lambda one: tf.cast(
                tf.reshape(tf.io.decode_raw(one, tf.uint8), [-1]), tf.int32
            ),
            tf.strings.bytes_split(strings),
        )
        return values + len(CONTROL_TOKENS)

    def decode_ids(self, token_ids):
        if not isinstance(token_ids, tf.RaggedTensor):
            token_ids = tf.RaggedTensor.from_tensor(token_ids)
        # A control id, negative here, is looked up as the empty string.
        table = tf.constant([b""] + [bytes([byte]) for byte in range(256)])
        index = tf.maximum(token_ids - len(CONTROL_TOKENS) + 1, 0)
        pieces = tf.gather(table, index)
        text = tf.strings.reduce_join(pieces, axis=-1)
        return tf.strings.unicode_transcode(text, "UTF-8", "UTF-8")

    def save_files(self, folder):
        pass

    @classmethod
    def load_files(cls, folder):
        return cls()

    def fingerprint(self):
        return "byte-1"
