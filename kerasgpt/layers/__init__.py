"""Owns the Keras layers of a Transformer. Not: knowledge of a whole model."""

from kerasgpt.layers.attention import MultiHeadAttention
from kerasgpt.layers.blocks import (
    CrossDecoderBlock,
    DecoderBlock,
    EncoderBlock,
)
from kerasgpt.layers.feed_forward import FeedForward
from kerasgpt.layers.output_transform import OutputTransform
from kerasgpt.layers.recurrent import RecurrentLayer
from kerasgpt.layers.rotary import RotaryEmbedding

__all__ = [
    "CrossDecoderBlock",
    "DecoderBlock",
    "EncoderBlock",
    "FeedForward",
    "MultiHeadAttention",
    "OutputTransform",
    "RecurrentLayer",
    "RotaryEmbedding",
]
