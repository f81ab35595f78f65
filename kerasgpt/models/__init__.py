"""Owns models: config -> backbone -> task. Not: text, sampling, training."""

from kerasgpt.models.gpt import GPTBackbone, GPTCausalLM, GPTConfig, ModelConfig

__all__ = ["GPTBackbone", "GPTCausalLM", "GPTConfig", "ModelConfig"]
