"""Owns the task that all decode: shape, weights, prompts, what is timed.

A task is a dict: vocabulary_size, context_length, num_layers, model_dim,
num_heads, batch_size, prompt_length, new_tokens. It has what first_weights of
gpt_task.py reads.
"""

import numpy as np

from experiments.benchmarks.workers.gpt_task import EMBEDDINGS, first_weights
from experiments.benchmarks.workers.protocol import repeat, timed

# Weights of a new model repeat one token; these are large enough for text
# that moves, so that equal ids prove something.
KERNEL_SCALE, POSITION_SCALE = 4.0, 8.0
# Our control tokens are among these ids; a table row of zeros is never the
# likeliest, so that no one generates them, and nothing stops a row.
NUM_CONTROL_IDS = 16


def weights(task):
    """Returns float32 matrices named as in `first_weights`."""
    scales = {EMBEDDINGS[0]: 1.0, EMBEDDINGS[1]: POSITION_SCALE}
    scaled = {
        name: scales.get(name, KERNEL_SCALE) * value
        for name, value in first_weights(task).items()
    }
    scaled[EMBEDDINGS[0]][:NUM_CONTROL_IDS] = 0
    return scaled


def prompts(task):
    """Returns int32 (batch_size, prompt_length) tokens."""
    return np.random.default_rng(2).integers(
        NUM_CONTROL_IDS,
        task["vocabulary_size"],
        size=(task["batch_size"], task["prompt_length"]),
        dtype=np.int32,
    )


def contestant(generate, **facts):
    """Returns (facts, run) for `serve`.

    Args:
        generate: function that returns the new ids, int (batch_size,
            new_tokens).
        **facts: of the ready message.
    """
    first, _ = timed(generate)
    second, ids = timed(generate)
    return {
        "ids": np.asarray(ids).tolist(),
        "compile_seconds": first - second,
        **facts,
    }, repeat(generate)
