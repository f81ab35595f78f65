"""Owns 4-bit kernels whose errors make up for each other, by GPTQ.

Not: how integers are kept (quantized.py). Keras' own `quantize("gptq")` is not
used: it calls a block with hidden states alone, and ours ask for a mask, too;
and it makes up for less than the paper does (experiments/LOG.md).
"""

import contextlib
import functools

import numpy as np

from kerasgpt.checkpoints.quantized import (
    GROUP_LENGTH,
    dequantize,
    group_scale,
    pack_pairs,
    round_to_steps,
)
from kerasgpt.layers.projection import Projection

# Added to the squares of inputs, as a share of their mean: the paper's.
DAMPING = 0.01


def quantize_kernels(model, inputs):
    """Rounds the kernels of a model's blocks to 4 bits, for given texts.

    One block after the other: each reads what the rounded ones before it make
    of the texts. Tables are not touched.

    Args:
        model: GPTCausalLM; its kernels become the rounded ones.
        inputs: dict of arrays, one batch, see `GPTBackbone`.

    Returns:
        dict of a kernel's path to (integers, factors), as `quantize_weights`
        stores them.

    Reference: Frantar et al. 2022, GPTQ (arXiv 2210.17323), algorithm 1.
    """
    found = {}
    for block in model.backbone.blocks:
        block.call = functools.partial(_call_rounded, block, found)
    try:
        model.backbone(inputs)
    finally:
        for block in model.backbone.blocks:
            del block.call
    return found


def _call_rounded(block, found, *arguments, **options):
    """Calls a block twice: to see what its kernels read, and rounded."""
    call = functools.partial(type(block).call, block, *arguments, **options)
    layers = [
        layer
        for layer in block._flatten_layers()
        if isinstance(layer, Projection)
    ]
    with contextlib.ExitStack() as stack:
        squares = [stack.enter_context(_watched(layer)) for layer in layers]
        call()
    for layer, square in zip(layers, squares, strict=True):
        kernel = np.asarray(layer.kernel)
        integers, scale = round_kernel(kernel, square)
        path = layer.kernel.path
        found[path] = integers, scale
        layer.kernel.assign(dequantize(path, integers, scale, kernel.shape))
    return call()


@contextlib.contextmanager
def _watched(layer):
    """Yields the float64 (features, features) sum of x xᵀ over its inputs."""
    features = layer.kernel.shape[0]
    total = np.zeros((features, features))

    def call(inputs, **options):
        rows = np.asarray(inputs, "float32").reshape(-1, features)
        np.add(total, rows.T @ rows, out=total)
        return type(layer).call(layer, inputs, **options)

    layer.call = call
    try:
        yield total
    finally:
        del layer.call


def round_kernel(kernel, squares):
    """Returns a kernel as 4-bit integers and factors, fitted to its inputs.

    Input after input is rounded, and the weights of those that follow are
    changed so that the outputs stay nearest to what they were.

    Args:
        kernel: float32 (inputs, channels).
        squares: float64 (inputs, inputs): the sum of x xᵀ over inputs x.

    Returns:
        uint8 (channels, half of the inputs), float16 (channels, groups).

    Example:
        Two inputs that are always equal: what the first is rounded down, the
        second is rounded up.

        >>> kernel = np.array([[-8.0], [2.4], [2.4]])
        >>> x = np.array([[1.0, 0, 0], [0, 1, 1]])
        >>> integers, scale = round_kernel(kernel, x.T @ x)
        >>> dequantize("kernel", integers, scale, (3, 1)).T
        array([[-8.,  2.,  3.]], dtype=float32)
    """
    weights = kernel.T.astype("float64")
    num_inputs = weights.shape[1]
    damping = DAMPING * np.trace(squares) / num_inputs or 1.0
    inverse = np.linalg.inv(squares + damping * np.eye(num_inputs))
    # Row i: how an error of input i is made up for by those after it, when
    # those before it are settled.
    follow = np.linalg.cholesky(inverse).T
    steps, scales = np.zeros_like(weights), []
    for start in range(0, num_inputs, GROUP_LENGTH):
        end = min(start + GROUP_LENGTH, num_inputs)
        scale = group_scale(weights[:, start:end])
        scales.append(scale)
        errors = np.zeros((len(weights), end - start))
        for index in range(start, end):
            column = weights[:, index : index + 1]
            rounded = round_to_steps(column, scale)
            steps[:, index] = rounded[:, 0]
            error = column - rounded * scale.astype("float64")
            errors[:, index - start : index - start + 1] = (
                error / follow[index, index]
            )
            weights[:, index:end] -= (
                errors[:, index - start, None] * follow[index, index:end]
            )
        weights[:, end:] -= errors @ follow[start:end, end:]
    return pack_pairs(steps), np.concatenate(scales, axis=1)
