"""Owns the public names of kerasgpt, resolved lazily: importing loads nothing.

>>> import kerasgpt
>>> kerasgpt.GPTConfig.from_depth(2).num_layers
2
"""

import importlib

__version__ = "0.1.0"

# Public name -> module that owns it.
_NAMES = {
    "BytePairTokenizer": "kerasgpt.tokenizers",
    "ByteTokenizer": "kerasgpt.tokenizers",
    "ChatTemplate": "kerasgpt.tokenizers",
    "GPTBackbone": "kerasgpt.models",
    "GPTCausalLM": "kerasgpt.models",
    "GPTConfig": "kerasgpt.models",
    "Generator": "kerasgpt.generation",
    "InputError": "kerasgpt.config",
    "SentencePieceTokenizer": "kerasgpt.tokenizers",
    "TrainStep": "kerasgpt.training.step",
    "export_saved_model": "kerasgpt.serving.saved_model",
    "load_model": "kerasgpt.checkpoints",
    "save_model": "kerasgpt.checkpoints",
    "train_byte_pair": "kerasgpt.tokenizers",
    "train_sentence_piece": "kerasgpt.tokenizers",
}
__all__ = [*_NAMES, "__version__"]


def __getattr__(name):
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'kerasgpt' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
