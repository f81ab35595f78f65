"""Owns weights as integers of 8 bits. Not: the files they are in.

For storage: a loaded model computes in float32 again, since TensorFlow 2.21 on
a processor reads 8-bit weights no faster (experiments/LOG.md), and a SavedModel
of it needs no other ops. Keras' own `quantize("int8")` is not used: it rounds
activations too, and wants Dense's product, not `Projection`'s.
"""

import numpy as np

# Of the tensor that holds the factors of another.
SCALE_SUFFIX = ".scale"
# The largest integer; its negative is the smallest, so that 0 is 0.
LARGEST = 127


def quantize_weights(weights):
    """Returns weights with every matrix as 8-bit integers and their factors.

    One factor an output channel: a column of a kernel, a token of a table.
    Vectors stay as they are.

    Args:
        weights: dict of name to float array, see `copy_to_host`.

    Returns:
        dict of name to array: int8 matrices, and beside each, named
        `SCALE_SUFFIX`, float32 factors of shape (1, columns) or (rows, 1).

    Example:
        >>> kernel = np.array([[0.5, -254.0], [-1.0, 2.0]], "float32")
        >>> found = quantize_weights({"a/kernel": kernel})
        >>> found["a/kernel"]
        array([[  64, -127],
               [-127,    1]], dtype=int8)
        >>> found["a/kernel.scale"].round(4)
        array([[0.0079, 2.    ]], dtype=float32)

    Reference: Dettmers et al. 2022, LLM.int8() (arXiv 2208.07339), section
    2.1, for vector-wise symmetric rounding.
    """
    found = {}
    for name, array in weights.items():
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
            found[name] = array
            continue
        is_table = name.rpartition("/")[2] == "embeddings"
        largest = np.abs(array).max(axis=1 if is_table else 0, keepdims=True)
        # All zero: any factor will do.
        scale = np.where(largest > 0, largest / LARGEST, 1.0)
        found[name] = np.rint(array / scale).astype("int8")
        found[name + SCALE_SUFFIX] = scale.astype("float32")
    return found


def dequantize(integers, scale):
    """Returns the float32 array that integers and their factors stand for."""
    return integers.astype("float32") * scale
