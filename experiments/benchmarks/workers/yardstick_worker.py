"""Measures what the machine can do: float32 matrix product, reading memory.

Settings: library, "torch" or "tensorflow".
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

from experiments.benchmarks.workers.protocol import serve, timed, versions

SIZES = (1024, 2048)
# Far more than the caches hold.
FLOATS = 32 * 1024 * 1024
TRIES = 4


def build(settings):
    library = settings["library"]
    if library == "torch":
        import torch

        ones, product, total = torch.ones, torch.matmul, torch.sum
    else:
        import tensorflow as tf

        ones = tf.ones
        product, total = tf.function(tf.matmul), tf.function(tf.reduce_sum)
    matrices = {size: ones((size, size)) for size in SIZES}
    vector = ones((FLOATS,))

    def best_seconds(function, *arguments):
        # On a CPU both libraries return when the work is done.
        return min(timed(lambda: function(*arguments))[0] for _ in range(TRIES))

    def run(_):
        return {
            "flops": max(
                2 * size**3 / best_seconds(product, matrix, matrix)
                for size, matrix in matrices.items()
            ),
            "bytes_per_second": 4 * FLOATS / best_seconds(total, vector),
        }

    run(None)
    return {"versions": versions(library)}, run


if __name__ == "__main__":
    serve(build)
