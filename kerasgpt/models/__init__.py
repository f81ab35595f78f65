"""Owns models: config -> backbone -> task. Not: text, sampling, training."""

from kerasgpt.models.encoder import EncoderBackbone, EncoderConfig, MaskedLM
from kerasgpt.models.encoder_decoder import (
    EncoderDecoderBackbone,
    EncoderDecoderConfig,
    Seq2SeqLM,
)
from kerasgpt.models.gpt import GPTBackbone, GPTCausalLM, GPTConfig, ModelConfig
from kerasgpt.models.heads import ClassifierConfig, TextClassifier
from kerasgpt.models.ngram import NGramModel
from kerasgpt.models.recurrent import (
    RecurrentBackbone,
    RecurrentCausalLM,
    RecurrentConfig,
)

__all__ = [
    "ClassifierConfig",
    "EncoderBackbone",
    "EncoderConfig",
    "EncoderDecoderBackbone",
    "EncoderDecoderConfig",
    "GPTBackbone",
    "GPTCausalLM",
    "GPTConfig",
    "MaskedLM",
    "ModelConfig",
    "NGramModel",
    "RecurrentBackbone",
    "RecurrentCausalLM",
    "RecurrentConfig",
    "Seq2SeqLM",
    "TextClassifier",
]
