"""Owns the names of tokenizers. Not: what stands behind a name."""

import functools

from kerasgpt.tokenizers.byte import ByteTokenizer
from kerasgpt.tokenizers.byte_pair import BytePairTokenizer, train_byte_pair
from kerasgpt.tokenizers.sentence_piece import (
    SentencePieceTokenizer,
    train_sentence_piece,
)
from kerasgpt.tokenizers.word_piece import WordPieceTokenizer, train_word_piece

# What is written in saved files -> the class that reads them.
CLASSES = {
    one.kind: one
    for one in (
        ByteTokenizer,
        BytePairTokenizer,
        SentencePieceTokenizer,
        WordPieceTokenizer,
    )
}
# What is written in settings -> the function of texts and vocabulary_size.
_TRAINERS = {
    "sentence_piece": train_sentence_piece,
    "unigram": functools.partial(train_sentence_piece, model_type="unigram"),
    "byte_pair": train_byte_pair,
    "word_piece": train_word_piece,
}
# Those that give every text back, which a model that writes needs.
EXACT_KINDS = ("sentence_piece", "unigram", "byte_pair", "byte")
KINDS = (*EXACT_KINDS, "word_piece")


def train_tokenizer(kind, texts, *, vocabulary_size):
    """Returns a tokenizer of a kind, trained on `texts`.

    Args:
        kind: str, one of `KINDS`. A byte tokenizer has nothing to learn.
        texts: iterable of str.
        vocabulary_size: int, control tokens and bytes included.

    Raises:
        InputError: if there is no text, or not room for bytes.

    Example:
        >>> train_tokenizer("byte", [], vocabulary_size=265).encode("A")
        [74]
    """
    if kind == ByteTokenizer.kind:
        return ByteTokenizer()
    return _TRAINERS[kind](texts, vocabulary_size=vocabulary_size)
