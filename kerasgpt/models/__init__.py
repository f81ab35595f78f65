"""Owns models: config -> backbone -> task. Not: text, sampling, training."""

from kerasgpt.models.gpt import GPTBackbone, GPTCausalLM, GPTConfig, ModelConfig
from kerasgpt.models.heads import ClassifierConfig, TextClassifier

__all__ = [
    "ClassifierConfig",
    "GPTBackbone",
    "GPTCausalLM",
    "GPTConfig",
    "ModelConfig",
    "TextClassifier",
]
