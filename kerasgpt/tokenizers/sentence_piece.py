"""Owns SentencePiece: training it and running it. Not: control tokens' use."""

import collections
import hashlib
import io
import itertools
import json
import pathlib

import sentencepiece
import tensorflow as tf
from sentencepiece import sentencepiece_model_pb2

from kerasgpt.config import InputError
from kerasgpt.console import quiet_libraries
from kerasgpt.files import read_json, write_json
from kerasgpt.tokenizers.tokenizer import CONTROL_TOKENS, Tokenizer
from kerasgpt.tokenizers.word_merge import WordMerger, run_as_graphs

# SentencePiece writes spaces as U+2581, so that a U+2581 in the text would
# come back as a space. It is spelled with an escape: U+10FFFF 1, and U+10FFFF,
# a code point that stands for no character, is itself U+10FFFF 0.
SPACE_MARK, ESCAPE = "\u2581", "\U0010ffff"
MODEL_FILE = "sentencepiece.model"
# Control tokens that stand after the pieces of a model of others.
ADDED_FILE = "added_tokens.json"
MODEL_TYPES = ("bpe", "unigram")
# Of the characters of the text, as in SentencePiece's defaults.
CHARACTER_COVERAGE = 0.9995
# A word is cut off by a byte that no valid UTF-8 has.
_WORD = r" *\p{L}+| *[^\p{L} ]+| +"
_CUT = b"\xff"


class SentencePieceTokenizer(Tokenizer):
    r"""A SentencePiece model run by TF Text, eagerly and in graphs.

    Any valid UTF-8 text comes back as it was: the model is trained without
    normalisation and falls back to bytes. A model of others, such as Llama
    2's, gives the ids that the library gives, and keeps of a text what its
    normalisation keeps; its control tokens are its control pieces.

    Args:
        model: bytes of a SentencePiece model.
        control_tokens: dict from str to id, of control tokens that stand
            after the model's pieces, for models of others.

    Raises:
        InputError: if the bytes are no model, or one without bytes to fall
            back to.

    Example:
        >>> tokenizer = train_sentence_piece(["to be or not to be"] * 9,
        ...                                  vocabulary_size=300)
        >>> tokenizer.decode(tokenizer.encode(" to  be\t\u4f60!"))
        ' to  be\t你!'
    """

    kind = "sentence_piece"

    def __init__(self, model, *, control_tokens=None):
        super().__init__(name="sentence_piece_tokenizer")
        if not model:
            raise InputError(f"{MODEL_FILE}: is empty.")
        self._model = model
        try:
            with quiet_libraries():
                processor = sentencepiece.SentencePieceProcessor(
                    model_proto=model
                )
        except (RuntimeError, TypeError) as error:
            raise InputError(f"{MODEL_FILE}: is no SentencePiece.") from error
        self._operation = build_operation(model)
        self._num_pieces = processor.vocab_size()
        pieces = processor.id_to_piece(list(range(self._num_pieces)))
        self.is_ours = tuple(pieces[: len(CONTROL_TOKENS)]) == CONTROL_TOKENS
        if not any(map(processor.is_byte, range(self._num_pieces))):
            raise InputError(
                f"{MODEL_FILE}: has no bytes to fall back to, so that it loses "
                f"text; train it with byte_fallback."
            )
        self._merger = None
        if self.is_ours and not _is_unigram(model):
            self._merger = self._build_merger(pieces, processor)
        self._eagerly = run_as_graphs(
            (self._encode, tf.TensorSpec([None], tf.string)),
        )
        self._added = dict(control_tokens or {})
        known = {
            piece: index
            for index, piece in enumerate(pieces)
            if processor.is_control(index) or processor.is_unknown(index)
        }
        if not self.is_ours:
            self.control_tokens = {**known, **self._added}
        self.vocabulary_size = max(
            [self._num_pieces, *(1 + i for i in self._added.values())]
        )
        self.token_bytes = [
            0
            if piece in known
            else 1
            if processor.is_byte(index)
            else len(piece.replace(SPACE_MARK, " ").encode())
            for index, piece in enumerate(pieces)
        ] + [0] * (self.vocabulary_size - self._num_pieces)

    @property
    def model(self):
        """Bytes of the SentencePiece model."""
        return self._model

    def encode_strings(self, strings):
        if tf.executing_eagerly():
            return self._eagerly(0, tf.convert_to_tensor(strings))
        return self._encode(strings)

    def _encode(self, strings):
        if self.is_ours:
            strings = tf.strings.regex_replace(strings, ESCAPE, ESCAPE + "0")
            strings = tf.strings.regex_replace(
                strings, SPACE_MARK, ESCAPE + "1"
            )
        if self._merger is None:
            return self._operation.tokenize(strings)
        return self._merger(_split_words(strings))

    def _build_merger(self, pieces, processor):
        """Returns the WordMerger of the model, or None if words hold none.

        Merges of a model of ours stay inside words, as it was trained.
        """
        texts = {
            piece.replace(SPACE_MARK, " ").encode(): index
            for index, piece in enumerate(pieces)
            if not processor.is_control(index)
            and not processor.is_unknown(index)
            and not processor.is_byte(index)
        }
        whole = tf.constant(list(texts))
        rows = self._operation.tokenize(whole).to_list()
        if max(map(len, _split_words(whole).to_list())) > 2:
            # One, and the empty word after it.
            return None
        known = {
            text: index
            for (text, index), row in zip(texts.items(), rows, strict=True)
            if row == [index]
        }
        long = [text for text in texts if len(text.decode()) > 1]
        return WordMerger(long, known, self._operation.tokenize)

    def decode_ids(self, token_ids):
        if not isinstance(token_ids, tf.RaggedTensor):
            token_ids = tf.RaggedTensor.from_tensor(token_ids)
        if not self.is_ours:
            # Control ids are left out: those that were added are no pieces,
            # and the unknown is written as a mark.
            controls = tf.constant(list(self.control_tokens.values()))
            is_text = tf.reduce_all(
                token_ids.values[:, None] != controls, axis=1
            ) & (token_ids.values < self._num_pieces)
            token_ids = tf.ragged.boolean_mask(
                token_ids, token_ids.with_values(is_text)
            )
        text = self._operation.detokenize(token_ids)
        if self.is_ours:
            text = tf.strings.regex_replace(text, ESCAPE + "1", SPACE_MARK)
            text = tf.strings.regex_replace(text, ESCAPE + "0", ESCAPE)
        return tf.strings.unicode_transcode(text, "UTF-8", "UTF-8")

    def save_files(self, folder):
        folder = pathlib.Path(folder)
        (folder / MODEL_FILE).write_bytes(self._model)
        if self._added:
            write_json(folder / ADDED_FILE, dict(self._added))

    @classmethod
    def load_files(cls, folder):
        path = pathlib.Path(folder) / MODEL_FILE
        added = path.with_name(ADDED_FILE)
        try:
            return cls(
                path.read_bytes(),
                control_tokens=read_json(added) if added.exists() else None,
            )
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error}.") from error
        except (tf.errors.OpError, RuntimeError) as error:
            raise InputError(f"{path}: is no SentencePiece model.") from error

    def fingerprint(self):
        added = json.dumps(dict(self._added), sort_keys=True)
        content = self._model + (added.encode() if self._added else b"")
        return hashlib.sha256(content).hexdigest()[:12]


def build_operation(model):
    """Returns the `tf_text.SentencepieceTokenizer` of a model's bytes."""
    with quiet_libraries():
        # Here: it takes 0.12 GB, and other tokenizers do without.
        import tensorflow_text as tf_text

        operation = tf_text.SentencepieceTokenizer(
            model=model, out_type=tf.int32
        )
    operation._model_resource = _NamedModel(model)
    return operation


def _split_words(strings):
    """Returns strings cut before runs of blanks and where letters begin or end.

    Whether there is a cut between two characters depends on these two alone,
    so none is inside a piece that is not cut when it stands alone.
    """
    strings = tf.strings.regex_replace(strings, _WORD, rb"\0" + _CUT)
    return tf.strings.split(strings, _CUT)


def _is_unigram(model):
    parsed = sentencepiece_model_pb2.ModelProto.FromString(model)
    return parsed.trainer_spec.model_type == parsed.trainer_spec.UNIGRAM


class _NamedModel(tf.saved_model.experimental.TrackableResource):
    """The op that holds a SentencePiece model, under a name of its own.

    TF Text creates it without a name. TensorFlow then ties it to a cached
    kernel, and `tf.random.set_seed` (so `keras.utils.set_random_seed` too)
    empties that cache: every tokenizer made before fails from then on.
    """

    def __init__(self, model):
        super().__init__()
        self._model = model
        self._shared_name = f"kerasgpt_{hashlib.sha256(model).hexdigest()}"
        with quiet_libraries():
            # Reading the property creates the resource.
            _ = self.resource_handle

    def _create_resource(self):
        from tensorflow_text.python.ops import sentencepiece_tokenizer

        operations = sentencepiece_tokenizer.gen_sentencepiece_tokenizer
        return operations.sentencepiece_op(
            model=self._model, shared_name=self._shared_name
        )


def train_sentence_piece(texts, *, vocabulary_size, model_type="bpe"):
    """Returns a SentencePiece tokenizer trained on `texts`.

    Args:
        texts: iterable of str.
        vocabulary_size: int, control tokens and 256 bytes included. A text
            that does not support so many pieces gives fewer.
        model_type: str, one of `MODEL_TYPES`: pieces merged from pairs, or
            the likeliest pieces.

    Raises:
        InputError: if there is no text, or not room for bytes and characters.

    Reference: Kudo and Richardson 2018, SentencePiece (arXiv 1808.06226);
    Kudo 2018, Subword Regularization (arXiv 1804.10959), for "unigram".
    """
    smallest = len(CONTROL_TOKENS) + 256 + 1
    if vocabulary_size < smallest + 1:
        raise InputError(
            f"tokenizer.vocabulary_size={vocabulary_size}: at least "
            f"{smallest + 1} ids are needed for control tokens and bytes."
        )
    texts = [
        text.replace(ESCAPE, ESCAPE + "0").replace(SPACE_MARK, ESCAPE + "1")
        for text in texts
    ]
    if not any(texts):
        raise InputError("the tokenizer cannot be trained: there is no text.")
    writer = io.BytesIO()
    try:
        with quiet_libraries():
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_lines(texts, vocabulary_size - smallest),
                model_writer=writer,
                model_type=model_type,
                vocab_size=vocabulary_size,
                hard_vocab_limit=False,
                character_coverage=1.0,
                byte_fallback=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                split_digits=True,
                # Indentation: a third fewer tokens for source code.
                allow_whitespace_only_pieces=True,
                user_defined_symbols=["\n"],
                max_sentence_length=1 << 20,
                pad_id=0,
                pad_piece=CONTROL_TOKENS[0],
                unk_id=1,
                unk_piece=CONTROL_TOKENS[1],
                unk_surface="",
                bos_id=2,
                bos_piece=CONTROL_TOKENS[2],
                eos_id=3,
                eos_piece=CONTROL_TOKENS[3],
                control_symbols=list(CONTROL_TOKENS[4:]),
                num_threads=2,
                minloglevel=2,
            )
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"the tokenizer cannot be trained with tokenizer.vocabulary_size="
            f"{vocabulary_size}: {str(error).splitlines()[-1]}"
        ) from error
    return SentencePieceTokenizer(writer.getvalue())


def _lines(texts, num_pieces):
    """Yields the trainer's sentences: the stretches of common characters.

    The commonest characters, 99.95 % of the text, take at most half of the
    pieces; the rest are spelled in bytes. Chinese text would otherwise leave
    none for words. They are cut out here, as the trainer's own
    `character_coverage` must be at least 0.98. So are line breaks, whose piece
    is given.
    """
    counts = collections.Counter()
    for text in texts:
        counts.update(text)
    ranked = [character for character, _ in counts.most_common()]
    covered = itertools.accumulate(counts[character] for character in ranked)
    enough = CHARACTER_COVERAGE * counts.total()
    num_covering = 1 + sum(count < enough for count in covered)
    num_common = max(1, min(num_pieces // 2, num_covering))
    gaps = {ord(rare): "\n" for rare in ranked[num_common:]}
    if " " not in ranked[:num_common]:
        # Without a piece a space would come back as SentencePiece's mark.
        yield " "
    for text in texts:
        parts = (text.translate(gaps) if gaps else text).split("\n")
        yield from (part for part in parts if part)
