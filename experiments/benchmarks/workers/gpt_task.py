"""Owns the task that all train: shape, first weights, batches. NumPy only.

A task is a dict: vocabulary_size, context_length, num_layers, model_dim,
num_heads, batch_size, num_batches (of one repetition), and the optimizer's
learning_rate, weight_decay, beta_2.
"""

import numpy as np

# Of the layer normalisation and of Adam: the libraries' defaults differ.
NORM_EPSILON, ADAM_EPSILON = 1e-5, 1e-7
# Never decayed, besides what is not a matrix.
EMBEDDINGS = ("token_embedding", "position_embedding")


def first_weights(task):
    """Returns the matrices that training begins with, the same each time.

    Returns:
        dict of name to float32 (input_dim, output_dim): the embeddings, and
        of each block i "block_i/attention/" query, key, value, output and
        "block_i/feed_forward/" up, down. All else begins at one (gains) or
        zero (biases).
    """
    generator = np.random.default_rng(0)
    width, inner = task["model_dim"], 4 * task["model_dim"]
    shapes = {
        EMBEDDINGS[0]: (task["vocabulary_size"], width),
        EMBEDDINGS[1]: (task["context_length"], width),
    }
    for block in range(task["num_layers"]):
        for name in ("query", "key", "value", "output"):
            shapes[f"block_{block}/attention/{name}"] = (width, width)
        shapes[f"block_{block}/feed_forward/up"] = (width, inner)
        shapes[f"block_{block}/feed_forward/down"] = (inner, width)
    return {
        name: 0.02 * generator.standard_normal(shape, np.float32)
        for name, shape in shapes.items()
    }


def batches(task):
    """Returns int32 (num_batches, batch_size, context_length + 1) tokens."""
    return np.random.default_rng(1).integers(
        task["vocabulary_size"],
        size=(
            task["num_batches"],
            task["batch_size"],
            task["context_length"] + 1,
        ),
        dtype=np.int32,
    )


def loss_head_inputs(settings):
    """Returns float32 (num_tokens, model_dim) hidden states, a float32
    (vocabulary_size, model_dim) kernel and int32 (num_tokens,) targets.
    """
    generator = np.random.default_rng(0)
    vocabulary_size, width = settings["vocabulary_size"], settings["model_dim"]
    count = settings["num_tokens"]
    return (
        generator.standard_normal((count, width), np.float32),
        0.02 * generator.standard_normal((vocabulary_size, width), np.float32),
        generator.integers(vocabulary_size, size=count, dtype=np.int32),
    )
