"""Owns the position-wise network. Not: norm and residual (blocks.py)."""

import keras
from keras import ops

from kerasgpt.layers.projection import Projection

# name -> (function, whether a gate multiplies it)
ACTIVATIONS = {
    "gelu": (lambda x: ops.gelu(x, approximate=False), False),
    "gelu_tanh": (lambda x: ops.gelu(x, approximate=True), False),
    "relu2": (lambda x: ops.square(ops.relu(x)), False),
    "swiglu": (ops.silu, True),
    "geglu": (lambda x: ops.gelu(x, approximate=False), True),
}


@keras.saving.register_keras_serializable("kerasgpt")
class FeedForward(keras.layers.Layer):
    """Widens each token, bends it, and projects it back.

    `down(f(up(x)))`, and for the gated kinds `down(f(gate(x)) * up(x))`.

    Args:
        inner_dim: int. Width between the projections.
        activation: "gelu" (GPT), "gelu_tanh" (GPT-2), "relu2", "swiglu"
            (Llama, Qwen) or "geglu".
        use_bias: bool. Biases in the projections.
        kernel_initializer: of the projections into `inner_dim`.
        output_initializer: of the projection back.

    Call arguments:
        hidden_states: float (batch, length, model_dim).

    Returns:
        float (batch, length, model_dim).

    Raises:
        ValueError: for an unknown activation.

    Example:
        With all kernels one, 1 -> max(1, 0)^2 in each of 3 inner features,
        which sum to 3:

        >>> layer = FeedForward(3, activation="relu2",
        ...     kernel_initializer="ones", output_initializer="ones")
        >>> layer(ops.ones((1, 1, 1))).numpy()
        array([[[3.]]], dtype=float32)

    Reference: Shazeer 2020, GLU variants (arXiv 2002.05202), section 2; So et
    al. 2021, Primer (arXiv 2109.08668), section 4, for squared ReLU.
    """

    def __init__(
        self,
        inner_dim,
        *,
        activation="gelu",
        use_bias=False,
        kernel_initializer="glorot_uniform",
        output_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {sorted(ACTIVATIONS)}; received "
                f"{activation!r}."
            )
        self.inner_dim = inner_dim
        self.activation = activation
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.output_initializer = keras.initializers.get(output_initializer)

    def build(self, hidden_states_shape):
        model_dim = hidden_states_shape[-1]
        inner_shape = (*hidden_states_shape[:-1], self.inner_dim)
        self.up = self._dense("up", self.inner_dim, self.kernel_initializer)
        self.up.build(hidden_states_shape)
        if ACTIVATIONS[self.activation][1]:
            self.gate = self._dense(
                "gate", self.inner_dim, self.kernel_initializer
            )
            self.gate.build(hidden_states_shape)
        self.down = self._dense("down", model_dim, self.output_initializer)
        self.down.build(inner_shape)
        self.built = True

    def _dense(self, name, width, initializer):
        return Projection(
            width,
            use_bias=self.use_bias,
            kernel_initializer=initializer.clone(),
            dtype=self.dtype_policy,
            name=name,
        )

    def call(self, hidden_states):
        function, is_gated = ACTIVATIONS[self.activation]
        up = self.up(hidden_states)
        if is_gated:
            return self.down(function(self.gate(hidden_states)) * up)
        return self.down(function(up))

    def compute_output_shape(self, hidden_states_shape):
        return hidden_states_shape

    def get_config(self):
        return {
            **super().get_config(),
            "inner_dim": self.inner_dim,
            "activation": self.activation,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(
                self.kernel_initializer
            ),
            "output_initializer": keras.initializers.serialize(
                self.output_initializer
            ),
        }
