"""Owns text <-> ids: the same ids in Python, tf.data and a SavedModel."""

from kerasgpt.tokenizers.byte import ByteTokenizer
from kerasgpt.tokenizers.chat_template import ChatTemplate
from kerasgpt.tokenizers.sentence_piece import (
    SentencePieceTokenizer,
    train_sentence_piece,
)
from kerasgpt.tokenizers.tokenizer import CONTROL_TOKENS, Tokenizer

__all__ = [
    "CONTROL_TOKENS",
    "ByteTokenizer",
    "ChatTemplate",
    "SentencePieceTokenizer",
    "Tokenizer",
    "train_sentence_piece",
]
