"""Owns text <-> ids: the same ids in Python, tf.data and a SavedModel."""

from kerasgpt.tokenizers.byte import ByteTokenizer
from kerasgpt.tokenizers.byte_pair import BytePairTokenizer, train_byte_pair
from kerasgpt.tokenizers.chat_template import ChatTemplate
from kerasgpt.tokenizers.sentence_piece import (
    SentencePieceTokenizer,
    train_sentence_piece,
)
from kerasgpt.tokenizers.tokenizer import CONTROL_TOKENS, Tokenizer
from kerasgpt.tokenizers.word_piece import WordPieceTokenizer, train_word_piece

__all__ = [
    "CONTROL_TOKENS",
    "BytePairTokenizer",
    "ByteTokenizer",
    "ChatTemplate",
    "SentencePieceTokenizer",
    "Tokenizer",
    "WordPieceTokenizer",
    "train_byte_pair",
    "train_sentence_piece",
    "train_word_piece",
]
