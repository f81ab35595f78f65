"""Owns weights of KerasHub's (KerasNLP's) presets, in. Not: their tokenizers.

A preset is read by KerasHub itself, which builds what its files name: unlike
a folder of transformers, it should come from somebody you trust.
"""

import importlib

import numpy as np

from kerasgpt.checkpoints.model_folder import name_variables
from kerasgpt.config import InputError
from kerasgpt.models.gpt import GPTCausalLM, GPTConfig

# keras_hub:gpt2_base_en, or keras_hub: and a folder that holds a preset.
PREFIX = "keras_hub:"
# The part of a path that is theirs -> ours, longer ones first.
NAMES = {
    "transformer_layer_": "block_",
    "self_attention_layer_norm": "attention_norm",
    "feedforward_layer_norm": "feed_forward_norm",
    "self_attention/attention_output": "attention/output",
    "self_attention/": "attention/",
    "feedforward_intermediate_dense": "feed_forward/up",
    "feedforward_output_dense": "feed_forward/down",
}
FINAL_NORM = "layer_norm/"


def load_preset(name):
    """Returns the model of a GPT-2 preset, by name or in a folder.

    Args:
        name: str: a name that KerasHub knows, such as gpt2_base_en (it is
            then downloaded), or a folder that `save_to_preset` wrote.

    Returns:
        GPTCausalLM.

    Raises:
        InputError: if KerasHub cannot load it, or it is of another shape.
    """
    # Not above: it takes seconds, which other sources need not wait.
    keras_hub = importlib.import_module("keras_hub")
    try:
        backbone = keras_hub.models.GPT2Backbone.from_preset(name)
    except Exception as error:  # KerasHub's, Kaggle's or HDF5's: any kind
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{PREFIX}{name}: KerasHub has no GPT-2 there: {lines[0]}"
        ) from error
    arrays = {_our_name(v.path): v for v in backbone.variables}

    def fill(layer):
        for ours, variable in name_variables(layer.variables).items():
            array = np.asarray(arrays.pop(ours).numpy(), "float32")
            # Theirs have an axis for heads.
            variable.assign(array.reshape(variable.shape))

    config = GPTConfig(
        vocabulary_size=backbone.vocabulary_size,
        context_length=backbone.max_sequence_length,
        num_layers=backbone.num_layers,
        num_heads=backbone.num_heads,
        num_kv_heads=backbone.num_heads,
        head_dim=backbone.hidden_dim // backbone.num_heads,
        model_dim=backbone.hidden_dim,
        inner_dim=backbone.intermediate_dim,
        activation="gelu_tanh",
        norm="layer",
        norm_epsilon=1e-5,
        position="learned",
        qk_norm=False,
        use_bias=True,
    )
    model = GPTCausalLM(config, fill=fill, name="gpt")
    model.build()
    return model


def _our_name(path):
    """Returns our name of a variable of theirs.

    Example:
        >>> _our_name("transformer_layer_0/self_attention/query/kernel")
        'backbone/block_0/attention/query/kernel'
        >>> _our_name("layer_norm/gamma")
        'backbone/final_norm/gamma'
    """
    if path.startswith(FINAL_NORM):
        path = path.replace(FINAL_NORM, "final_norm/")
    for theirs, ours in NAMES.items():
        path = path.replace(theirs, ours)
    return f"backbone/{path}"
