"""Owns next-token choice and the decode loop."""

from kerasgpt.generation.generate import Generator, decode, prefill
from kerasgpt.generation.samplers import SamplerSettings, choose_next

__all__ = [
    "Generator",
    "SamplerSettings",
    "choose_next",
    "decode",
    "prefill",
]
