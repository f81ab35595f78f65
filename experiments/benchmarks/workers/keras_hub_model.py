"""Owns KerasHub's GPT-2 of a task, with given weights."""

import keras_hub

# Theirs -> ours.
NAMES = {
    "transformer_layer": "block",
    "self_attention/attention_output": "attention/output",
    "self_attention": "attention",
    "feedforward_intermediate_dense": "feed_forward/up",
    "feedforward_output_dense": "feed_forward/down",
}


def build_backbone(task, weights):
    """Returns a GPT2Backbone; weights are named as in `first_weights`."""
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=task["vocabulary_size"],
        num_layers=task["num_layers"],
        num_heads=task["num_heads"],
        hidden_dim=task["model_dim"],
        intermediate_dim=4 * task["model_dim"],
        dropout=0.0,
        max_sequence_length=task["context_length"],
    )
    for variable in backbone.variables:
        name = variable.path.rsplit("/", 1)[0]
        for theirs, our in NAMES.items():
            name = name.replace(theirs, our)
        if name in weights and not variable.path.endswith("bias"):
            variable.assign(weights[name].reshape(variable.shape))
    return backbone
