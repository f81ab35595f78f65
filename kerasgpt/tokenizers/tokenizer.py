"""Owns the contract of tokenizers. Not: a way to cut text into tokens."""

import numpy as np
import tensorflow as tf

# The first ids of every tokenizer, in this order. They stand for structure and
# have no text: `encode` never returns one, whatever is typed.
CONTROL_TOKENS = (
    "<|pad|>",
    "<|unknown|>",
    "<|document|>",
    "<|end_of_document|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    "<|end_of_turn|>",
)


class Tokenizer(tf.Module):
    """Text <-> ids. A subclass gives the two graph functions, the rest follows.

    Python calls, tf.data and a SavedModel all run `encode_strings` and
    `decode_ids`, so their ids cannot differ. A `tf.Module`, so that a
    SavedModel that holds a tokenizer also holds its tables.

    Attributes:
        kind: str, names the subclass in saved files.
        control_tokens: dict from the text of a control token to its id. Ours
            unless the tokenizer is of another family.
        chat_format: ChatFormat that goes with the tokenizer, or None = ours.
        vocabulary_size: int, control ids included.
        token_bytes: list of int. UTF-8 bytes of each id, 0 = control.
    """

    kind = ""
    control_tokens = {name: index for index, name in enumerate(CONTROL_TOKENS)}
    chat_format = None

    def control_id(self, name):
        """Returns the id of a control token, for example "<|user|>"."""
        return self.control_tokens[name]

    def encode_strings(self, strings):
        """Returns the ids of each string, in eager and graph code.

        Args:
            strings: string tensor (batch,), valid UTF-8.

        Returns:
            int32 RaggedTensor (batch, None).
        """
        raise NotImplementedError

    def decode_ids(self, token_ids):
        """Returns the text of each row of ids, in eager and graph code.

        Control ids have no text. Bytes that are no valid UTF-8, which a model
        may well produce, become U+FFFD.

        Args:
            token_ids: int32 (batch, None), RaggedTensor or padded.

        Returns:
            string tensor (batch,), valid UTF-8.
        """
        raise NotImplementedError

    def save_files(self, folder):
        """Writes what the subclass needs besides its kind into `folder`."""
        raise NotImplementedError

    @classmethod
    def load_files(cls, folder):
        """Returns the tokenizer that `save_files` wrote to `folder`."""
        raise NotImplementedError

    def fingerprint(self):
        """Returns 12 hex digits that differ between unequal tokenizers."""
        raise NotImplementedError

    def encode(self, text):
        """Returns the ids of a str as a list of int."""
        # Of one row: asking a ragged tensor for it takes longer than encoding.
        return self.encode_strings(tf.constant([text])).values.numpy().tolist()

    def decode(self, token_ids):
        """Returns the str of a list of ids; control ids have no text."""
        return self.decode_batch([token_ids])[0]

    def decode_batch(self, rows):
        """Returns the str of each list of ids."""
        flat = tf.RaggedTensor.from_row_lengths(
            tf.constant([one for row in rows for one in row], tf.int32),
            tf.constant([len(row) for row in rows], tf.int64),
            validate=False,
        )
        return [text.decode() for text in self.decode_ids(flat).numpy()]

    def encode_batch(self, texts, *, batch_size=1024):
        """Returns the ids of many texts, run through tf.data.

        Args:
            texts: list of str.
            batch_size: int, texts a batch.

        Returns:
            list of int32 arrays, one a text.
        """
        dataset = tf.data.Dataset.from_tensor_slices(
            tf.constant(texts, tf.string, (len(texts),))
        )
        dataset = dataset.batch(batch_size).map(
            self.encode_strings, num_parallel_calls=2
        )
        options = tf.data.Options()
        # With autotune, the end of a short pipeline can wait seconds for the
        # tuning thread.
        options.autotune.enabled = False
        rows = []
        for batch in dataset.with_options(options):
            values = batch.values.numpy()
            rows.extend(np.split(values, batch.row_splits.numpy()[1:-1]))
        return rows
