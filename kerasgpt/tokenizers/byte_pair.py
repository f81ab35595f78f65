"""Owns byte-level byte-pair encoding: training it, running it, its file."""

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
from kerasgpt.files import read_json, write_text
from kerasgpt.tokenizers.sentence_piece import build_operation
from kerasgpt.tokenizers.tokenizer import CONTROL_TOKENS, Tokenizer
from kerasgpt.tokenizers.word_merge import WordMerger, run_as_graphs
from kerasgpt.tokenizers.word_split import WORD_SPLITS, split_words

VOCABULARY_FILE = "byte_pair.json"
# What a later normalisation of text may be called, None besides.
NORMALIZATIONS = ("NFC", "NFD", "NFKC", "NFKD")
# Words counted before they are handed to the trainer, texts read at once.
_TEXTS_A_BATCH = 256
# Bytes of the longest token learned: 21 Chinese characters.
_LONGEST_TOKEN = 64


def _byte_characters():
    """Returns the character that stands for each byte, as GPT-2 has it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    points = {byte: byte for byte in printable}
    points |= {byte: 256 + place for place, byte in enumerate(others)}
    return [chr(points[byte]) for byte in range(256)]


BYTE_CHARACTERS = _byte_characters()


class _ByteOfCharacter(dict):
    """For `str.translate`, which takes a KeyError for "as it is"."""

    def __missing__(self, point):
        raise ValueError(f"{chr(point)!r} stands for no byte.")


_CHARACTERS = dict(enumerate(BYTE_CHARACTERS))
_BYTES = _ByteOfCharacter(
    {ord(character): byte for byte, character in enumerate(BYTE_CHARACTERS)}
)


def spell(token):
    r"""Returns the GPT-2 spelling of bytes, one character a byte.

    Example:
        >>> spell(b" a\n")
        'ĠaĊ'
    """
    # Latin-1 has a character for each byte.
    return token.decode("latin-1").translate(_CHARACTERS)


def unspell(text):
    """Returns the bytes of a GPT-2 spelling.

    Raises:
        ValueError: for a character that stands for no byte.
    """
    return text.translate(_BYTES).encode("latin-1")


class BytePairTokenizer(Tokenizer):
    r"""GPT-2's and Llama 3's tokenizer, run in the graph.

    A text is cut into words; in each, the pair of neighbours that stands first
    in `merges` becomes one token, until there is none. Any text comes back as
    it was, unless it is normalised.

    The merging is that of SentencePiece, over one character a byte: it joins
    the neighbours whose union has the best score, which is the same once each
    token can come from one pair only. That is checked here.

    Args:
        vocabulary: dict from bytes to id.
        merges: list of (bytes, bytes), first the ones that merge first.
        control_tokens: dict from str to id. `None` = ours, ids 0 to 8.
        split: str, how words are cut; one of `word_split.WORD_SPLITS`.
        normalization: str, such as "NFC", or None.
        whole_words: bool. A word that is a token is never spelled by merges.

    Raises:
        InputError: if these make no byte-level vocabulary.

    Example:
        >>> vocabulary = {bytes([byte]): 9 + byte for byte in range(256)}
        >>> tokenizer = BytePairTokenizer(
        ...     {**vocabulary, b"to": 265}, [(b"t", b"o")])
        >>> tokenizer.encode("to two")
        [265, 41, 125, 128, 120]
        >>> tokenizer.decode([265, 41, 125, 128, 120])
        'to two'

    Reference: Sennrich et al. 2016 (arXiv 1508.07909); Radford et al. 2019,
    Language Models are Unsupervised Multitask Learners, section 2.2.
    """

    kind = "byte_pair"

    def __init__(
        self,
        vocabulary,
        merges,
        *,
        control_tokens=None,
        split="llama3",
        normalization=None,
        whole_words=False,
    ):
        super().__init__(name="byte_pair_tokenizer")
        if control_tokens is not None:
            self.control_tokens = dict(control_tokens)
        self.split = split
        self.normalization = normalization
        self.whole_words = whole_words
        # As text: a tf.Module would wrap every list inside, which takes 8 s.
        self._text = json.dumps(
            {
                "split": split,
                "normalization": normalization,
                "whole_words": whole_words,
                "control_tokens": dict(self.control_tokens),
                "vocabulary": {spell(one): i for one, i in vocabulary.items()},
                "merges": [[spell(one) for one in pair] for pair in merges],
            },
            sort_keys=True,
        )
        self.vocabulary_size = 1 + max(
            *vocabulary.values(), *self.control_tokens.values()
        )
        ranks = {}
        for rank, (left, right) in enumerate(merges):
            ranks.setdefault(left + right, rank)
        _require_sound(vocabulary, merges, ranks, self)
        self._operation = build_operation(
            _merging_model(vocabulary, ranks, self.vocabulary_size)
        )
        by_id = [b""] * self.vocabulary_size
        for token, token_id in vocabulary.items():
            by_id[token_id] = token
        self.token_bytes = [len(token) for token in by_id]
        ids = tf.range(self.vocabulary_size, dtype=tf.int64)
        self._texts = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(ids, tf.constant(by_id)), b""
        )
        self._merger = WordMerger(
            [left + right for left, right in merges],
            self._self_merging(vocabulary),
            lambda words: self._operation.tokenize(_spell_strings(words)),
            word_ids=vocabulary if whole_words else None,
        )
        self._eagerly = run_as_graphs(
            (self._encode, tf.TensorSpec([None], tf.string)),
            (self._decode, tf.RaggedTensorSpec([None, None], tf.int32)),
        )

    @property
    def vocabulary(self):
        """Dict from bytes to id, control tokens left out."""
        spelled = json.loads(self._text)["vocabulary"]
        return {unspell(token): i for token, i in spelled.items()}

    @property
    def merges(self):
        """List of (bytes, bytes), first the ones that merge first."""
        spelled = json.loads(self._text)["merges"]
        return [(unspell(left), unspell(right)) for left, right in spelled]

    def encode_strings(self, strings):
        if tf.executing_eagerly():
            return self._eagerly(0, tf.convert_to_tensor(strings))
        return self._encode(strings)

    def decode_ids(self, token_ids):
        if not isinstance(token_ids, tf.RaggedTensor):
            token_ids = tf.RaggedTensor.from_tensor(token_ids)
        if tf.executing_eagerly():
            return self._eagerly(1, token_ids)
        return self._decode(token_ids)

    def save_files(self, folder):
        write_text(pathlib.Path(folder) / VOCABULARY_FILE, self._text)

    @classmethod
    def load_files(cls, folder):
        path = pathlib.Path(folder) / VOCABULARY_FILE
        state = read_json(path)
        try:
            vocabulary = {
                unspell(one): i for one, i in state.pop("vocabulary").items()
            }
            merges = [
                (unspell(left), unspell(right))
                for left, right in state.pop("merges")
            ]
            return cls(vocabulary, merges, **state)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: is no vocabulary of byte pairs."
            ) from error

    def fingerprint(self):
        return hashlib.sha256(self._text.encode()).hexdigest()[:12]

    def _encode(self, strings):
        if self.normalization:
            # Here: it takes 0.12 GB, and most byte pairs do without.
            import tensorflow_text as tf_text

            strings = tf_text.normalize_utf8(strings, self.normalization)
        return self._merger(split_words(strings, self.split))

    def _decode(self, token_ids):
        pieces = tf.ragged.map_flat_values(
            self._texts.lookup, tf.cast(token_ids, tf.int64)
        )
        text = tf.strings.reduce_join(pieces, axis=-1)
        return tf.strings.unicode_transcode(text, "UTF-8", "UTF-8")

    def _self_merging(self, vocabulary):
        """Returns the tokens that merges make of what they spell, a dict."""
        rows = self._operation.tokenize(list(map(spell, vocabulary))).to_list()
        return {
            token: token_id
            for (token, token_id), row in zip(
                vocabulary.items(), rows, strict=True
            )
            if row == [token_id]
        }


def _spell_strings(strings):
    """Returns `spell` of each string of a vector, in graph code."""
    points = tf.constant([ord(one) for one in BYTE_CHARACTERS], tf.int32)
    # One string has one length, so that its bytes can be had as a tensor.
    joined = tf.io.decode_raw(tf.strings.reduce_join(strings), tf.uint8)
    flat = tf.gather(points, tf.cast(tf.reshape(joined, [-1]), tf.int32))
    rows = tf.RaggedTensor.from_row_lengths(
        flat, tf.strings.length(strings), validate=False
    )
    return tf.strings.unicode_encode(rows, "UTF-8")


def _merging_model(vocabulary, ranks, vocabulary_size):
    """Returns the SentencePiece model that merges as `ranks` say, bytes.

    Its ids are those of the vocabulary; one more is what it calls unknown,
    which no text is, as all bytes are known.
    """
    model = sentencepiece_model_pb2.ModelProto()
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    by_id = [None] * vocabulary_size
    for token, token_id in vocabulary.items():
        by_id[token_id] = token
    for token_id, token in enumerate(by_id):
        if token is not None and (len(token) == 1 or token in ranks):
            # Ranks up to 2^24 are exact in float32.
            score = float(-ranks.get(token, 0))
            model.pieces.add(piece=spell(token), score=score)
        else:
            # Never made from text: control tokens, and what no merge makes.
            # The name has a character that stands for no byte.
            model.pieces.add(piece=f"\ue000{token_id}", type=kinds.CONTROL)
    model.pieces.add(piece="\ue000", type=kinds.UNKNOWN)
    specification = model.trainer_spec
    specification.model_type = specification.BPE
    specification.unk_id = vocabulary_size
    specification.bos_id = specification.eos_id = specification.pad_id = -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = False
    return model.SerializeToString()


def _require_sound(vocabulary, merges, ranks, tokenizer):
    """Refuses what is no vocabulary, by an InputError."""
    if tokenizer.split not in WORD_SPLITS:
        raise InputError(
            f"word split {tokenizer.split!r} is unknown; there are "
            f"{', '.join(WORD_SPLITS)}."
        )
    if tokenizer.normalization not in (None, *NORMALIZATIONS):
        raise InputError(
            f"normalization {tokenizer.normalization!r} is unknown; there "
            f"are {', '.join(NORMALIZATIONS)}."
        )
    missing = [b for b in range(256) if bytes([b]) not in vocabulary]
    if missing:
        raise InputError(
            f"the vocabulary lacks the byte 0x{missing[0]:02X}; a byte-level "
            f"one has all 256."
        )
    ids = [*vocabulary.values(), *tokenizer.control_tokens.values()]
    if len(ids) != len(set(ids)) or min(ids) < 0:
        raise InputError("two tokens have one id, or an id is below 0.")
    for left, right in merges:
        if not {left, right, left + right} <= vocabulary.keys():
            raise InputError(
                f"the merge of {left!r} and {right!r} needs a token that the "
                f"vocabulary lacks."
            )
    listed = {left + right: (left, right) for left, right in merges[::-1]}
    for token, pair in listed.items():
        # The only two parts of two bytes need no check.
        parts = last_parts(token, ranks) if len(token) > 2 else pair
        if len(parts) == 2 and tuple(parts) != pair:
            raise InputError(
                f"the token {token!r} is listed as a merge of {pair[0]!r} and "
                f"{pair[1]!r}, and comes from {parts[0]!r} and {parts[1]!r}: "
                f"these merges are in an order that no training gives."
            )


def last_parts(token, ranks):
    """Returns the last two parts that merge to a token, or more if none do.

    Whichever pair of neighbours is listed: where the union of two is a token,
    these two are its listed merge, and no other pair makes it. For as long as
    a run over a whole word stays inside a token's bytes, it is the run over
    the token alone, so it comes by these two parts.

    Args:
        token: bytes, at least two.
        ranks: dict from bytes to the rank of the merge that makes them.

    Example:
        >>> last_parts(b"abc", {b"ab": 1, b"bc": 0, b"abc": 2})
        [b'a', b'bc']
    """
    parts = [token[place : place + 1] for place in range(len(token))]
    worst = len(ranks)
    while len(parts) > 2:
        found = [
            ranks.get(left + right, worst)
            for left, right in itertools.pairwise(parts)
        ]
        best = min(found)
        if best == worst:
            break
        place = found.index(best)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def train_byte_pair(texts, *, vocabulary_size, split="llama3"):
    """Returns a byte-pair tokenizer trained on `texts`.

    The pairs are counted by SentencePiece's trainer, over words and their
    numbers, one character a byte.

    Args:
        texts: iterable of str.
        vocabulary_size: int, control tokens and 256 bytes included. A text
            that does not support so many gives fewer.
        split: str, how words are cut; one of `word_split.WORD_SPLITS`.

    Raises:
        InputError: if there is no text, or not room for bytes.
    """
    smallest = len(CONTROL_TOKENS) + 256
    if vocabulary_size < smallest + 1:
        raise InputError(
            f"tokenizer.vocabulary_size={vocabulary_size}: at least "
            f"{smallest + 1} ids are needed for control tokens and bytes."
        )
    counts = _count_words(texts, split)
    if not counts:
        raise InputError("the tokenizer cannot be trained: there is no text.")
    num_merges = vocabulary_size - smallest
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += _learn(counts, num_merges)[:num_merges]
    ranks = {token: place for place, token in enumerate(tokens[256:])}
    return BytePairTokenizer(
        {one: len(CONTROL_TOKENS) + i for i, one in enumerate(tokens)},
        [tuple(last_parts(token, ranks)) for token in ranks],
        split=split,
    )


def _count_words(texts, split):
    """Returns how often each word of two bytes and more is in texts."""
    count = tf.function(
        lambda strings: tf.unique_with_counts(
            split_words(strings, split).values, tf.int64
        ),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    counts = collections.Counter()
    batch = []

    def flush():
        found = count(tf.constant(batch, tf.string, (len(batch),)))
        words = found.y.numpy().tolist()
        for word, number in zip(words, found.count.numpy(), strict=True):
            if len(word) > 1:
                counts[word] += int(number)
        batch.clear()

    for text in texts:
        batch.append(text)
        if len(batch) == _TEXTS_A_BATCH:
            flush()
    flush()
    return counts


def _learn(counts, num_merges):
    """Returns the tokens of at least two bytes, the first learned first."""
    lines = (f"{spell(word)}\t{number}" for word, number in counts.items())
    num_bytes = len({byte for word in counts for byte in word})
    writer = io.BytesIO()
    with quiet_libraries():
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            input_format="tsv",
            model_writer=writer,
            model_type="bpe",
            # Every byte that is seen has a piece; so has the unknown.
            vocab_size=num_merges + num_bytes + 1,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            split_by_unicode_script=False,
            split_by_number=False,
            max_sentencepiece_length=_LONGEST_TOKEN,
            max_sentence_length=1 << 20,
            bos_id=-1,
            eos_id=-1,
            minloglevel=2,
        )
    model = sentencepiece_model_pb2.ModelProto.FromString(writer.getvalue())
    normal = sentencepiece_model_pb2.ModelProto.SentencePiece.NORMAL
    return [
        unspell(one.piece)
        for one in model.pieces
        if one.type == normal and len(one.piece) > 1
    ]
