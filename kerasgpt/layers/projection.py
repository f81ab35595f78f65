"""Owns the matrix product with a kernel. Not: what it is used for."""

import math

import keras
from keras import ops

_LEAST_FLOAT32 = -3.4028234e38


@keras.saving.register_keras_serializable("kerasgpt")
class Projection(keras.layers.Dense):
    """`keras.layers.Dense` without activation, as one product of matrices.

    Dense asks TensorFlow for a tensordot, which in a graph of unknown shapes
    costs a dozen operations on shapes for every product: at a width of 128,
    most of the time of a decoded token. And where it trains a kernel that is
    taller than wide, XLA on a processor needs up to twice the time for the
    kernel's gradient, so that is computed as its transpose
    (experiments/LOG.md).

    Args:
        units, use_bias, kernel_initializer: see `keras.layers.Dense`.

    Call arguments:
        inputs: float (batch, length, features).

    Returns:
        float (batch, length, units).

    Example:
        >>> layer = Projection(3, kernel_initializer="ones")
        >>> layer(ops.ones((1, 1, 2))).numpy()
        array([[[2., 2., 2.]]], dtype=float32)
    """

    def call(self, inputs, training=None):
        rows = ops.reshape(inputs, (-1, inputs.shape[-1]))
        if training and self._has_wide_gradient(inputs.shape):
            # A tensor of the variable, which may not be among the arguments.
            kernel = ops.reshape(self.kernel, (-1, self.units))
            outputs = _product(rows, kernel)
        else:
            outputs = ops.matmul(rows, self.kernel)
        if self.use_bias:
            outputs = ops.add(outputs, self.bias)
        return ops.reshape(outputs, (-1, ops.shape(inputs)[1], self.units))

    def _has_wide_gradient(self, shape):
        *rows, features = shape
        return (
            None not in rows
            and self.compute_dtype == "float32"
            and is_faster_wide(math.prod(rows), features, self.units)
        )


def is_faster_wide(num_rows, height, width):
    """Tells whether a tall product is had sooner as its transpose.

    On a processor XLA multiplies (height, num_rows) with (num_rows, width),
    which is how kernels get their gradients, at a half to nine tenths of the
    speed of (width, num_rows) with (num_rows, height). Of few rows, turning
    the result takes longer than that gains (experiments/LOG.md).

    Example:
        >>> is_faster_wide(4096, 1024, 256), is_faster_wide(4096, 256, 1024)
        (True, False)
        >>> is_faster_wide(256, 1024, 256)
        False
    """
    return height > width and 2 * num_rows >= height


@ops.custom_gradient
def _product(rows, kernel):
    """Returns `rows @ kernel`, with another way to the kernel's gradient."""

    def gradient(*upstreams):
        # One an output under TensorFlow, all in one tuple under JAX.
        upstream = keras.tree.flatten(upstreams)[0]
        transposed = ops.matmul(ops.transpose(upstream), rows)
        # XLA would take the next transpose back into the product, and through
        # a maximum it does not see. What is infinite stays too large to square.
        transposed = ops.maximum(transposed, _LEAST_FLOAT32)
        return (
            ops.matmul(upstream, ops.transpose(kernel)),
            ops.transpose(transposed),
        )

    return ops.matmul(rows, kernel), gradient
