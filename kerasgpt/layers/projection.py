"""Owns the matrix product with a kernel. Not: what it is used for."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("kerasgpt")
class Projection(keras.layers.Dense):
    """`keras.layers.Dense` without activation, as one product of matrices.

    Dense asks TensorFlow for a tensordot, which in a graph of unknown shapes
    costs a dozen operations on shapes for every product: at a width of 128,
    most of the time of a decoded token (experiments/LOG.md).

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
        outputs = ops.matmul(rows, self.kernel)
        if self.use_bias:
            outputs = ops.add(outputs, self.bias)
        return ops.reshape(outputs, (-1, ops.shape(inputs)[1], self.units))
