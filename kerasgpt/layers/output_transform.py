"""Owns what stands before logits in BERT. Not: the table that gives them."""

import keras
from keras import ops

from kerasgpt.layers.blocks import build_norm
from kerasgpt.layers.feed_forward import ACTIVATIONS
from kerasgpt.layers.projection import Projection


@keras.saving.register_keras_serializable("kerasgpt")
class OutputTransform(keras.layers.Layer):
    """BERT's way from hidden states to the table: `norm(f(project(x)))`.

    Each token's bias is a further column of the table, which a further
    feature that is always 1 brings in: to all who use hidden states and a
    kernel, this is one more of them.

    Args:
        vocabulary_size: int.
        activation: see `FeedForward`, one without a gate.
        norm, norm_epsilon: see `DecoderBlock`.

    Call arguments:
        hidden_states: float (batch, length, model_dim).

    Returns:
        float (batch, length, model_dim + 1).

    Raises:
        ValueError: for an activation with a gate.

    Example:
        >>> layer = OutputTransform(9)
        >>> tuple(layer(ops.ones((1, 2, 4))).shape)
        (1, 2, 5)
        >>> tuple(layer.extend(ops.ones((9, 4))).shape)
        (9, 5)

    Reference: Devlin et al. 2019, BERT (arXiv 1810.04805), in the code that
    came with it.
    """

    def __init__(
        self,
        vocabulary_size,
        *,
        activation="gelu",
        norm="layer",
        norm_epsilon=1e-6,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if ACTIVATIONS[activation][1]:
            raise ValueError(
                f"output_transform needs an activation without a gate; "
                f"received {activation!r}."
            )
        self.settings = {
            "vocabulary_size": vocabulary_size,
            "activation": activation,
            "norm": norm,
            "norm_epsilon": norm_epsilon,
        }
        self.norm = build_norm(
            norm, epsilon=norm_epsilon, name="norm", dtype=self.dtype_policy
        )

    def build(self, hidden_states_shape):
        self.dense = Projection(
            hidden_states_shape[-1],
            kernel_initializer=keras.initializers.VarianceScaling(
                1.0, "fan_in", "normal"
            ),
            dtype=self.dtype_policy,
            name="dense",
        )
        self.dense.build(hidden_states_shape)
        self.norm.build(hidden_states_shape)
        self.bias = self.add_weight(
            shape=(self.settings["vocabulary_size"],),
            initializer="zeros",
            name="bias",
        )
        self.built = True

    def call(self, hidden_states):
        function, _ = ACTIVATIONS[self.settings["activation"]]
        hidden_states = self.norm(function(self.dense(hidden_states)))
        return ops.pad(hidden_states, [(0, 0), (0, 0), (0, 1)], "constant", 1.0)

    def extend(self, table):
        """Returns (vocabulary_size, model_dim + 1): a table with the biases."""
        bias = ops.cast(ops.convert_to_tensor(self.bias), table.dtype)
        return ops.concatenate([table, bias[:, None]], axis=1)

    def get_config(self):
        return {**super().get_config(), **self.settings}
