"""Owns rotary positions. Not: when they are applied (attention.py)."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("kerasgpt")
class RotaryEmbedding(keras.layers.Layer):
    """Turns each pair of features by an angle that grows with the position.

    Features i and i + H/2 of a head form a pair, turned by
    `position * base ** (-2 i / H)`; a score of two turned vectors depends on
    the distance of their positions only. This is the half-split layout of
    Llama and Qwen weights. keras-hub has an equal layer, which the tests
    compare with this one; `layers` imports Keras alone.

    Args:
        base: float. Wavelength base; larger suits longer contexts.

    Call arguments:
        heads: float (batch, length, num_heads, head_dim), head_dim even.
        positions: int (batch, length).

    Returns:
        float, shape and dtype of `heads`. Angles are computed in float32.

    Raises:
        ValueError: if head_dim is odd.

    Example:
        Position 0 is not turned; at position 1 the pair (1, 0) becomes
        (cos 1, sin 1):

        >>> heads = ops.convert_to_tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])
        >>> positions = ops.array([[0, 1]])
        >>> RotaryEmbedding()(heads, positions).numpy().round(2)[0, :, 0]
        array([[1.  , 0.  ],
               [0.54, 0.84]], dtype=float32)

    Reference: Su et al. 2021, RoFormer (arXiv 2104.09864), section 3.2.2.
    """

    def __init__(self, base=10000.0, **kwargs):
        super().__init__(**kwargs)
        self.base = float(base)

    def build(self, heads_shape, positions_shape=None):
        if heads_shape[-1] % 2:
            raise ValueError(
                f"RotaryEmbedding pairs features, so head_dim must be even; "
                f"received head_dim={heads_shape[-1]}."
            )

    def call(self, heads, positions):
        half_dim = heads.shape[-1] // 2
        exponents = ops.arange(half_dim, dtype="float32") / half_dim
        frequencies = ops.power(self.base, -exponents)
        angles = ops.cast(positions, "float32")[..., None] * frequencies
        # (batch, length, 1, half_dim): the same turn for every head.
        cosine = ops.cast(ops.cos(angles), heads.dtype)[:, :, None]
        sine = ops.cast(ops.sin(angles), heads.dtype)[:, :, None]
        first, second = heads[..., :half_dim], heads[..., half_dim:]
        return ops.concatenate(
            [
                first * cosine - second * sine,
                second * cosine + first * sine,
            ],
            axis=-1,
        )

    def compute_output_shape(self, heads_shape, positions_shape=None):
        return heads_shape

    def get_config(self):
        return {**super().get_config(), "base": self.base}
