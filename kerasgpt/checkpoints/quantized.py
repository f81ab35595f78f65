"""Owns weights as integers of 8 or 4 bits. Not: the files they are in.

For storage: a loaded model computes in float32 again, since TensorFlow 2.21 on
a processor reads 8-bit weights no faster (experiments/LOG.md), and a SavedModel
of it needs no other ops. Keras' own `quantize("int8")` and `quantize("int4")`
are not used: they pass over `Projection`, a subclass of Dense, and if made to
take it leave integers where decoding reads kernels (experiments/LOG.md).
"""

import numpy as np

# Of the tensor that holds the factors of another.
SCALE_SUFFIX = ".scale"
# The largest integer of 8 bits; its negative is the smallest, so that 0 is 0.
LARGEST = 127
# Those of 4 bits are kept as 0 to 15, and 8 is 0.
MIDDLE = 8
# Inputs that share a factor at 4 bits: with one a channel, its largest weight
# would leave the others too few steps. 16 bits for 32 weights.
GROUP_LENGTH = 32
# safetensors' names of arrays that are one integer a byte, and two.
INTEGER_TYPES = ("I8", "U8")


def quantize_weights(weights, *, bits=8):
    """Returns weights with every matrix as integers and their factors.

    At 8 bits one factor an output channel: a column of a kernel, a token of a
    table. At 4 bits one for each `GROUP_LENGTH` inputs of a channel, and two
    integers a byte. Vectors stay as they are.

    Args:
        weights: dict of name to float array, see `copy_to_host`.
        bits: int, 8 or 4.

    Returns:
        dict of name to array: integers, and beside each matrix of them, named
        `SCALE_SUFFIX`, its factors. Shapes are those of `stored_shapes`; int8
        with float32 factors, or uint8 with float16 ones.

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
        elif bits == 8:
            axis = 1 if _is_table(name) else 0
            largest = np.abs(array).max(axis=axis, keepdims=True)
            # All zero: any factor will do.
            scale = np.where(largest > 0, largest / LARGEST, 1.0)
            found[name] = np.rint(array / scale).astype("int8")
            found[name + SCALE_SUFFIX] = scale.astype("float32")
        else:
            channels = array if _is_table(name) else array.T
            scale = np.concatenate(
                [
                    group_scale(channels[:, start : start + GROUP_LENGTH])
                    for start in range(0, channels.shape[1], GROUP_LENGTH)
                ],
                axis=1,
            )
            steps = round_to_steps(channels, _spread(scale, channels.shape[1]))
            found[name] = pack_pairs(steps)
            found[name + SCALE_SUFFIX] = scale
    return found


def group_scale(weights):
    """Returns what one step of 4 bits is worth for each row of a group.

    The weight farthest from 0 becomes -8, whichever its sign: a factor may be
    negative. Of -8 to 7 nothing is left unused.

    Args:
        weights: float (channels, inputs).

    Returns:
        float16 (channels, 1).

    Example:
        >>> group_scale(np.array([[1.0, 4.0, -2.0]]))
        array([[-0.5]], dtype=float16)
    """
    farthest = np.abs(weights).argmax(axis=1)[:, None]
    scale = np.take_along_axis(weights, farthest, axis=1) / -MIDDLE
    scale = scale.astype("float16")
    # All zero, or too small for the factor's type: any factor will do.
    return np.where(scale == 0, np.float16(1), scale)


def round_to_steps(weights, scale):
    """Returns float weights as whole steps of `scale`, from -8 to 7."""
    steps = np.rint(weights / scale.astype("float32"))
    return np.clip(steps, -MIDDLE, MIDDLE - 1)


def pack_pairs(steps):
    """Returns uint8 (channels, half of the inputs): two steps a byte.

    Args:
        steps: (channels, inputs), whole numbers from -8 to 7.

    Example:
        >>> pack_pairs(np.array([[-8, -7, 7]]))
        array([[16, 15]], dtype=uint8)
    """
    shifted = (steps + MIDDLE).astype("uint8")
    shifted = np.pad(shifted, ((0, 0), (0, shifted.shape[1] % 2)))
    return shifted[:, ::2] | shifted[:, 1::2] << 4


def stored_shapes(name, shape, kind):
    """Returns the shapes of the tensors that stand for a matrix.

    Args:
        name: str, of its variable.
        shape: tuple of two int, of its variable.
        kind: str, one of `INTEGER_TYPES`.

    Returns:
        dict of name to tuple of int.

    Example:
        >>> stored_shapes("a/kernel", (64, 3), "U8")
        {'a/kernel': (3, 32), 'a/kernel.scale': (3, 2)}
    """
    channels, inputs = shape if _is_table(name) else shape[::-1]
    if kind == "U8":
        stored = (channels, -(-inputs // 2))
        factors = (channels, -(-inputs // GROUP_LENGTH))
    else:
        stored = shape
        factors = (channels, 1) if _is_table(name) else (1, channels)
    return {name: stored, name + SCALE_SUFFIX: factors}


def dequantize(name, integers, scale, shape):
    """Returns the float32 array that integers and their factors stand for.

    Args:
        name, shape: see `stored_shapes`.
        integers, scale: as of `quantize_weights`.
    """
    if integers.dtype != np.uint8:
        return integers.astype("float32") * scale
    inputs = shape[1] if _is_table(name) else shape[0]
    pairs = np.stack((integers & 15, integers >> 4), axis=-1)
    steps = pairs.reshape(len(integers), -1)[:, :inputs].astype("float32")
    channels = (steps - MIDDLE) * _spread(scale, inputs)
    return channels if _is_table(name) else channels.T


def _is_table(name):
    """Returns whether channels are rows: of a table, its tokens."""
    return name.rpartition("/")[2] == "embeddings"


def _spread(scale, inputs):
    """Returns float32 (channels, inputs): the factor of each weight."""
    factors = np.repeat(scale.astype("float32"), GROUP_LENGTH, axis=1)
    return factors[:, :inputs]
