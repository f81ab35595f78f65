"""Owns one line per public class: how to create it, and what it eats.

`conformance_test.py` fails for a public class that is missing here.
"""

import functools

import numpy as np

from kerasgpt.layers import (
    CrossDecoderBlock,
    DecoderBlock,
    EncoderBlock,
    FeedForward,
    MultiHeadAttention,
    OutputTransform,
    RecurrentLayer,
    RotaryEmbedding,
)
from kerasgpt.layers.projection import Projection
from kerasgpt.layers.recurrent import RecurrentCell
from kerasgpt.models import (
    ClassifierConfig,
    EncoderBackbone,
    EncoderConfig,
    EncoderDecoderBackbone,
    EncoderDecoderConfig,
    GPTBackbone,
    GPTCausalLM,
    GPTConfig,
    MaskedLM,
    RecurrentBackbone,
    RecurrentCausalLM,
    RecurrentConfig,
    Seq2SeqLM,
    TextClassifier,
)
from kerasgpt.models.tied_lm import ConfiguredModel, TiedLM
from kerasgpt.tokenizers import (
    BytePairTokenizer,
    ByteTokenizer,
    SentencePieceTokenizer,
    WordPieceTokenizer,
    train_byte_pair,
    train_sentence_piece,
    train_word_piece,
)
from kerasgpt.training.step import TrainStep
from tests.harness import Subject

BATCH, LENGTH, WIDTH = 2, 5, 8
TINY = {
    "vocabulary_size": 10,
    "context_length": 8,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 4,
    "model_dim": WIDTH,
    "inner_dim": 16,
}


def tiny_config(**changes):
    """Returns the smallest `GPTConfig`, with some fields changed."""
    return GPTConfig(**{**TINY, **changes})


LINES = ["to be, or not to be, that is the question", "你好，世界", "a 1 2 3"]


def tiny_recurrent(kind="gru", **changes):
    """Returns the smallest `RecurrentConfig`, with some fields changed."""
    fields = {
        "vocabulary_size": TINY["vocabulary_size"],
        "context_length": TINY["context_length"],
        "model_dim": WIDTH,
    }
    return RecurrentConfig(kind=kind, **{**fields, **changes})


def tiny_encoder(**changes):
    """Returns the smallest `EncoderConfig`, with some fields changed."""
    fields = {
        "vocabulary_size": TINY["vocabulary_size"],
        "context_length": LENGTH,
        "num_layers": 2,
        "num_heads": 2,
        "head_dim": 4,
        "model_dim": WIDTH,
        "inner_dim": 16,
    }
    return EncoderConfig(**{**fields, **changes})


def tiny_bert(**changes):
    """Returns an `EncoderConfig` as BERT has it, with some fields changed."""
    fields = {
        "norm_order": "post",
        "norm_epsilon": 1e-12,
        "embedding_norm": True,
        "use_bias": True,
        "output_transform": True,
        "mark_ids": (4, 2, 3),
    }
    return tiny_encoder(**{**fields, **changes})


def tiny_encoder_decoder(**changes):
    """Returns the smallest `EncoderDecoderConfig`, with changed fields."""
    fields = {
        "vocabulary_size": TINY["vocabulary_size"],
        "context_length": LENGTH,
        "num_layers": 2,
        "num_heads": 2,
        "head_dim": 4,
        "model_dim": WIDTH,
        "inner_dim": 16,
    }
    return EncoderDecoderConfig(**{**fields, **changes})


@functools.cache
def tiny_sentence_piece():
    """Returns a SentencePiece tokenizer trained on a few lines."""
    return train_sentence_piece(LINES * 20, vocabulary_size=320)


@functools.cache
def tiny_unigram():
    """Returns one of likeliest pieces trained on the same lines."""
    return train_sentence_piece(
        LINES * 20, vocabulary_size=320, model_type="unigram"
    )


@functools.cache
def tiny_word_piece():
    """Returns a WordPiece tokenizer trained on the same lines."""
    return train_word_piece(LINES * 20, vocabulary_size=120)


@functools.cache
def tiny_bert_pieces():
    """Returns its pieces, with texts cut into words as BERT does."""
    tokenizer = tiny_word_piece()
    return WordPieceTokenizer(
        tokenizer.pieces,
        control_tokens=list(tokenizer.control_tokens),
        bert_words={
            "lower_case": False,
            "strip_accents": False,
            "split_han": True,
        },
    )


@functools.cache
def tiny_byte_pair():
    """Returns a byte-pair tokenizer trained on the same lines."""
    return train_byte_pair(LINES * 20, vocabulary_size=320)


def _hidden_states(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def _causal():
    mask = np.tril(np.ones((LENGTH, LENGTH), bool))
    return np.broadcast_to(mask, (BATCH, LENGTH, LENGTH)).copy()


def _positions():
    return np.tile(np.arange(LENGTH, dtype="int32"), (BATCH, 1))


def _block_inputs():
    return _hidden_states(BATCH, LENGTH, WIDTH), {
        "attention_mask": _causal(),
        "positions": _positions(),
    }


def _heads():
    return _hidden_states(BATCH, LENGTH, 2, 4), {"positions": _positions()}


def _tokens():
    # Every id of the vocabulary, so that every row of a table is trained.
    token_ids = np.arange(BATCH * LENGTH, dtype="int32").reshape(BATCH, LENGTH)
    inputs = {
        "token_ids": token_ids % TINY["vocabulary_size"],
        "positions": _positions(),
        "segment_ids": np.ones((BATCH, LENGTH), "int32"),
    }
    return inputs, {}


def _cross_inputs():
    first, further = _block_inputs()
    source = {
        "source": _hidden_states(BATCH, 3, WIDTH),
        "source_mask": np.ones((BATCH, LENGTH, 3), bool),
    }
    return first, {**further, **source}


def _pairs():
    inputs, _ = _tokens()
    source = {f"source_{name}": inputs[name] for name in ("positions",)}
    return {
        **inputs,
        **source,
        "source_ids": inputs["token_ids"][:, ::-1].copy(),
        "source_segment_ids": inputs["segment_ids"],
    }, {}


ATTENTION = {"head_dim": 4, "num_kv_heads": 1, "rotary_base": 100.0}
LAYERS = (
    Subject(RotaryEmbedding, lambda: RotaryEmbedding(100.0), _heads),
    Subject(
        MultiHeadAttention,
        lambda: MultiHeadAttention(2, qk_norm=True, **ATTENTION),
        _block_inputs,
    ),
    Subject(
        Projection,
        lambda: Projection(6),
        lambda: (_hidden_states(BATCH, LENGTH, WIDTH), {}),
    ),
    Subject(
        FeedForward,
        lambda: FeedForward(16, activation="swiglu", use_bias=True),
        lambda: (_hidden_states(BATCH, LENGTH, WIDTH), {}),
    ),
    Subject(
        DecoderBlock,
        lambda: DecoderBlock(num_heads=2, inner_dim=16, **ATTENTION),
        _block_inputs,
    ),
    Subject(
        EncoderBlock,
        lambda: EncoderBlock(num_heads=2, inner_dim=16, **ATTENTION),
        _block_inputs,
    ),
    Subject(
        CrossDecoderBlock,
        lambda: CrossDecoderBlock(num_heads=2, inner_dim=16, **ATTENTION),
        _cross_inputs,
    ),
    Subject(
        RecurrentLayer,
        lambda: RecurrentLayer("gru", 6),
        lambda: (
            _hidden_states(BATCH, LENGTH, WIDTH),
            {"kept": np.ones((BATCH, LENGTH, 2), "float32")},
        ),
    ),
)
BACKBONES = (
    Subject(GPTBackbone, lambda: GPTBackbone(tiny_config()), _tokens),
    Subject(EncoderBackbone, lambda: EncoderBackbone(tiny_encoder()), _tokens),
    Subject(
        EncoderDecoderBackbone,
        lambda: EncoderDecoderBackbone(tiny_encoder_decoder()),
        _pairs,
    ),
    Subject(
        RecurrentBackbone, lambda: RecurrentBackbone(tiny_recurrent()), _tokens
    ),
)
TASKS = (
    Subject(
        GPTCausalLM, lambda: GPTCausalLM(tiny_config()), _tokens, TrainStep
    ),
    Subject(
        TextClassifier,
        lambda: TextClassifier(
            # As many classes as tokens: the harness predicts tokens.
            ClassifierConfig.of(tiny_config(), list("abcdefghij"))
        ),
        _tokens,
        TrainStep,
    ),
    Subject(MaskedLM, lambda: MaskedLM(tiny_encoder()), _tokens, TrainStep),
    Subject(MaskedLM, lambda: MaskedLM(tiny_bert()), _tokens, TrainStep),
    Subject(
        Seq2SeqLM,
        lambda: Seq2SeqLM(tiny_encoder_decoder()),
        _pairs,
        TrainStep,
    ),
    Subject(
        RecurrentCausalLM,
        lambda: RecurrentCausalLM(tiny_recurrent()),
        _tokens,
        TrainStep,
    ),
)
TOKENIZERS = (
    Subject(ByteTokenizer, ByteTokenizer),
    Subject(BytePairTokenizer, tiny_byte_pair),
    Subject(SentencePieceTokenizer, tiny_sentence_piece),
    Subject(SentencePieceTokenizer, tiny_unigram),
)
# Those that need not give a text back.
PIECE_TOKENIZERS = (
    Subject(WordPieceTokenizer, tiny_word_piece),
    Subject(WordPieceTokenizer, tiny_bert_pieces),
)
# Public Keras classes that are part or base of others listed above.
NOT_ALONE = (ConfiguredModel, OutputTransform, RecurrentCell, TiedLM)
