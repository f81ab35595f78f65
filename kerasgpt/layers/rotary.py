"""Owns rotary positions. Not: when they are applied (attention.py)."""

import math

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

    A longer context than was trained slows the pairs down: one that turns
    less than `low_turns` times within `original_length` by `factor`, one that
    turns more than `high_turns` times not at all, those between in proportion.
    That is Llama 3's scaling; with `original_length` 0 all pairs slow down.

    Args:
        base: float. Wavelength base; larger suits longer contexts.
        factor: float. How much slower pairs turn; 1 = as fast as ever.
        original_length: int, tokens. The context that was trained.
        low_turns, high_turns: float. See above.

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

    Reference: Su et al. 2021, RoFormer (arXiv 2104.09864), section 3.2.2; Chen
    et al. 2023, position interpolation (arXiv 2306.15595), section 2.3, for
    slowing all pairs.
    """

    def __init__(
        self,
        base=10000.0,
        *,
        factor=1.0,
        original_length=0,
        low_turns=1.0,
        high_turns=4.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.base = float(base)
        self.factor = factor
        self.original_length = original_length
        self.low_turns = low_turns
        self.high_turns = high_turns

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
        if self.factor != 1.0:
            turns = frequencies * (self.original_length / (2 * math.pi))
            kept = (turns - self.low_turns) / (self.high_turns - self.low_turns)
            kept = ops.clip(kept, 0.0, 1.0)
            frequencies = frequencies * (kept + (1.0 - kept) / self.factor)
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
        return {
            **super().get_config(),
            "base": self.base,
            "factor": self.factor,
            "original_length": self.original_length,
            "low_turns": self.low_turns,
            "high_turns": self.high_turns,
        }
