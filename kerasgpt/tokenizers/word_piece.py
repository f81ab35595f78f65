"""Owns WordPiece, for masked language models: training it and running it."""

import hashlib
import json
import pathlib

import tensorflow as tf

from kerasgpt.config import InputError
from kerasgpt.console import quiet_libraries
from kerasgpt.files import read_json, write_text
from kerasgpt.tokenizers.bert_words import LONGEST_WORD, BertWords
from kerasgpt.tokenizers.tokenizer import CONTROL_TOKENS, Tokenizer

VOCABULARY_FILE = "word_piece.json"
UNKNOWN, MASK = "<|unknown|>", "<|mask|>"
JOINER = "##"
# A longer word is unknown, as BERT has it.
_LONGEST_WORD_BYTES = 100
# Of the longest in UTF-8.
_CHARACTER_BYTES = 4


class WordPieceTokenizer(Tokenizer):
    """BERT's tokenizer: words, then the longest pieces that fit; by TF Text.

    White space is dropped, punctuation and Chinese characters are words of
    their own, and a word that the pieces cannot spell is `unknown_id`. So a
    text does not come back as it was; for language models that write, take
    another tokenizer.

    `unknown_id` alone stands both in `CONTROL_TOKENS` and for text; it is no
    control token here.

    Args:
        pieces: list of str, by id.
        num_control_tokens: int. So many of the first are control tokens.
        control_tokens: list of str. Pieces that are so, too.
        unknown: str, the piece for what cannot be spelled.
        lower_case: bool. Lower case, accents stripped.
        bert_words: dict of arguments of `BertWords`, which then cuts texts
            into words, as Hugging Face's tokenizers do. `None` = TF Text does.

    Attributes:
        pieces, bert_words: as given.
        unknown_id, mask_id: int. `mask_id` is None without a mask.

    Raises:
        InputError: if these are no vocabulary.

    Example:
        >>> tokenizer = WordPieceTokenizer(
        ...     ["<|pad|>", "<|unknown|>", "<|mask|>", "play", "##ing", "你"],
        ...     num_control_tokens=3)
        >>> tokenizer.encode("playing 你你 x")
        [3, 4, 5, 5, 1]
        >>> tokenizer.decode([3, 4, 5, 5])
        'playing 你 你'

    Reference: Devlin et al. 2019 (arXiv 1810.04805); Song et al. 2021, Fast
    WordPiece Tokenization (arXiv 2012.15524).
    """

    kind = "word_piece"

    def __init__(
        self,
        pieces,
        *,
        num_control_tokens=0,
        control_tokens=(),
        unknown=UNKNOWN,
        lower_case=False,
        bert_words=None,
    ):
        super().__init__(name="word_piece_tokenizer")
        pieces, further = list(pieces), list(control_tokens)
        if len(set(pieces)) != len(pieces) or "" in pieces:
            raise InputError("two pieces are equal, or one is empty.")
        if unknown not in pieces:
            raise InputError(f"the pieces lack {unknown!r}.")
        ids = {piece: i for i, piece in enumerate(pieces)}
        for name in further:
            if name not in ids:
                raise InputError(f"the pieces lack {name!r}.")
        # What is not set is not told: fingerprints stay what they were.
        told = {"control_tokens": further, "bert_words": bert_words}
        self._text = json.dumps(
            {
                "pieces": pieces,
                "num_control_tokens": num_control_tokens,
                "unknown": unknown,
                "lower_case": lower_case,
                **{name: value for name, value in told.items() if value},
            },
            ensure_ascii=False,
        )
        controls = {
            name: ids[name] for name in [*pieces[:num_control_tokens], *further]
        }
        self.pieces, self.bert_words = tuple(pieces), bert_words
        self.unknown_id = pieces.index(unknown)
        self.mask_id = controls.get(MASK, controls.get("[MASK]"))
        self.control_tokens = {
            piece: i for piece, i in controls.items() if piece != unknown
        }
        self.vocabulary_size = len(pieces)
        self.token_bytes = [
            0 if piece in controls else len(piece.removeprefix(JOINER).encode())
            for piece in pieces
        ]
        # What no text spells stands for control tokens: it is cut at its
        # brackets, and a control token might be one word.
        spellable = [
            f"<|{i}|>" if piece in self.control_tokens else piece
            for i, piece in enumerate(pieces)
        ]
        shared = {
            "suffix_indicator": JOINER,
            "token_out_type": tf.int32,
            "unknown_token": unknown,
            "support_detokenization": True,
        }
        # Here: it takes 0.12 GB, and other tokenizers do without.
        import tensorflow_text as tf_text

        if bert_words:
            self._words = BertWords(**bert_words)
            self._operation = tf_text.FastWordpieceTokenizer(
                spellable,
                max_bytes_per_word=LONGEST_WORD * _CHARACTER_BYTES,
                no_pretokenization=True,
                **shared,
            )
        else:
            self._operation = tf_text.FastBertTokenizer(
                spellable,
                max_bytes_per_word=_LONGEST_WORD_BYTES,
                lower_case_nfd_strip_accents=lower_case,
                **shared,
            )

    def encode_strings(self, strings):
        if not self.bert_words:
            return self._operation.tokenize(strings)
        words = self._words(strings)
        pieces = self._operation.tokenize(words.values)
        return words.with_values(pieces).merge_dims(1, 2)

    def decode_ids(self, token_ids):
        if not isinstance(token_ids, tf.RaggedTensor):
            token_ids = tf.RaggedTensor.from_tensor(token_ids)
        controls = [*self.control_tokens.values(), self.unknown_id]
        is_text = tf.reduce_all(
            token_ids.values[:, None] != tf.constant(controls), axis=1
        )
        token_ids = tf.ragged.boolean_mask(
            token_ids, token_ids.with_values(is_text)
        )
        return self._operation.detokenize(token_ids)

    def save_files(self, folder):
        write_text(pathlib.Path(folder) / VOCABULARY_FILE, self._text)

    @classmethod
    def load_files(cls, folder):
        path = pathlib.Path(folder) / VOCABULARY_FILE
        state = read_json(path)
        try:
            return cls(state.pop("pieces"), **state)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"{path}: is no list of pieces.") from error

    def fingerprint(self):
        return hashlib.sha256(self._text.encode()).hexdigest()[:12]


def train_word_piece(texts, *, vocabulary_size, lower_case=False):
    """Returns a WordPiece tokenizer trained on `texts`, by TF Text's trainer.

    Control tokens are those of all tokenizers here, and `<|mask|>`.

    Args:
        texts: iterable of str.
        vocabulary_size: int, control tokens included; the trainer may stay
            below. The commonest characters take at most half of it, each in
            two pieces; rarer ones are unknown.
        lower_case: bool. Lower case, accents stripped.

    Raises:
        InputError: if there is no text, or no room.
    """
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise InputError("the tokenizer cannot be trained: there is no text.")
    controls = [*CONTROL_TOKENS, MASK]
    num_characters = (vocabulary_size - len(controls)) // 4
    if num_characters < 1:
        raise InputError(
            f"tokenizer.vocabulary_size={vocabulary_size}: at least "
            f"{len(controls) + 4} ids are needed for control tokens and a "
            f"character."
        )
    try:
        with quiet_libraries():
            from tensorflow_text.tools.wordpiece_vocab import (
                bert_vocab_from_dataset,
            )

            pieces = bert_vocab_from_dataset.bert_vocab_from_dataset(
                tf.data.Dataset.from_tensor_slices(texts),
                vocabulary_size,
                controls,
                bert_tokenizer_params={"lower_case": lower_case},
                learn_params={"max_unique_chars": num_characters},
            )
    except (IndexError, ValueError) as error:
        raise InputError(
            f"the tokenizer cannot be trained with tokenizer.vocabulary_size="
            f"{vocabulary_size}: {error}"
        ) from error
    return WordPieceTokenizer(
        [*controls, *(one for one in pieces if one not in controls)],
        num_control_tokens=len(controls),
        lower_case=lower_case,
    )
