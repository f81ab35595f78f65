"""Owns the Transformer block. Not: how blocks are stacked (models)."""

import keras

from kerasgpt.layers.attention import MultiHeadAttention
from kerasgpt.layers.feed_forward import FeedForward


def build_norm(kind, *, epsilon, name, dtype=None):
    """Returns a keras layer normalisation: kind "layer" or "rms".

    Raises:
        ValueError: for an unknown kind.
    """
    if kind == "layer":
        return keras.layers.LayerNormalization(
            epsilon=epsilon, name=name, dtype=dtype
        )
    if kind == "rms":
        return keras.layers.RMSNormalization(
            epsilon=epsilon, name=name, dtype=dtype
        )
    raise ValueError(f'norm must be "layer" or "rms"; received {kind!r}.')


@keras.saving.register_keras_serializable("kerasgpt")
class DecoderBlock(keras.layers.Layer):
    """Pre-norm block: `x + attention(norm(x))`, then `x + network(norm(x))`.

    Post-norm, `norm(x + attention(x))`, then `norm(x + network(x))`.

    Args:
        num_heads, num_kv_heads, head_dim, rotary_base, rotary_scaling,
            qk_norm, qkv_bias: see `MultiHeadAttention`.
        inner_dim, activation: see `FeedForward`.
        norm: "layer" (GPT-2) or "rms" (Llama, Qwen).
        norm_order: "pre", or "post" (GPT-1).
        norm_epsilon: float. Of all norms of the block.
        use_bias: bool. Biases in all projections.
        dropout_rate: float. Of both residual branches; 0 builds no dropout.
        kernel_initializer, output_initializer: into and out of a branch.

    Call arguments:
        hidden_states: float (batch, target_length, model_dim).
        attention_mask: bool (batch, target_length, source_length), true =
            may attend.
        positions, keys, values, write, is_causal: see `MultiHeadAttention`.

    Returns:
        float (batch, target_length, model_dim), then keys and values as
        `MultiHeadAttention` returns them.

    Example:
        >>> block = DecoderBlock(num_heads=2, head_dim=4, inner_dim=16)
        >>> x = keras.ops.ones((1, 3, 8))
        >>> output, keys, values = block(
        ...     x, attention_mask=keras.ops.ones((1, 3, 3), "bool"))
        >>> tuple(output.shape)
        (1, 3, 8)

    Raises:
        ValueError: for an unknown norm or order of it.

    Reference: Xiong et al. 2020, on layer normalisation (arXiv 2002.04745),
    figure 1, (b) and (a).
    """

    def __init__(
        self,
        *,
        num_heads,
        head_dim,
        inner_dim,
        num_kv_heads=None,
        rotary_base=None,
        rotary_scaling=None,
        qk_norm=False,
        activation="gelu",
        norm="rms",
        norm_order="pre",
        norm_epsilon=1e-6,
        use_bias=False,
        qkv_bias=False,
        dropout_rate=0.0,
        kernel_initializer="glorot_uniform",
        output_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if norm_order not in ("pre", "post"):
            raise ValueError(
                f'norm_order must be "pre" or "post"; received {norm_order!r}.'
            )
        self.settings = {
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
            "head_dim": head_dim,
            "inner_dim": inner_dim,
            "rotary_base": rotary_base,
            "rotary_scaling": rotary_scaling,
            "qk_norm": qk_norm,
            "activation": activation,
            "norm": norm,
            "norm_order": norm_order,
            "norm_epsilon": norm_epsilon,
            "use_bias": use_bias,
            "qkv_bias": qkv_bias,
            "dropout_rate": dropout_rate,
        }
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.output_initializer = keras.initializers.get(output_initializer)
        shared = {
            "use_bias": use_bias,
            "kernel_initializer": self.kernel_initializer,
            "output_initializer": self.output_initializer,
            "dtype": self.dtype_policy,
        }
        self.attention_norm = build_norm(
            norm,
            epsilon=norm_epsilon,
            name="attention_norm",
            dtype=self.dtype_policy,
        )
        self.attention = MultiHeadAttention(
            num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rotary_base=rotary_base,
            rotary_scaling=rotary_scaling,
            qk_norm=qk_norm,
            qkv_bias=qkv_bias,
            norm_epsilon=norm_epsilon,
            name="attention",
            **shared,
        )
        self.feed_forward_norm = build_norm(
            norm,
            epsilon=norm_epsilon,
            name="feed_forward_norm",
            dtype=self.dtype_policy,
        )
        self.feed_forward = FeedForward(
            inner_dim, activation=activation, name="feed_forward", **shared
        )
        self.dropout = (
            keras.layers.Dropout(
                dropout_rate, name="dropout", dtype=self.dtype_policy
            )
            if dropout_rate
            else keras.layers.Identity(name="dropout", dtype=self.dtype_policy)
        )

    def build(self, hidden_states_shape, *unused_shapes, **unused_kwargs):
        self.attention_norm.build(hidden_states_shape)
        self.attention.build(hidden_states_shape)
        self.feed_forward_norm.build(hidden_states_shape)
        self.feed_forward.build(hidden_states_shape)
        self.built = True

    def call(
        self,
        hidden_states,
        attention_mask,
        positions=None,
        keys=None,
        values=None,
        write=None,
        is_causal=False,
        training=None,
    ):
        attended, keys, values = self.attention(
            self._norm(self.attention_norm, "pre", hidden_states),
            attention_mask=attention_mask,
            positions=positions,
            keys=keys,
            values=values,
            write=write,
            is_causal=is_causal,
        )
        hidden_states = hidden_states + self.dropout(
            attended, training=training
        )
        hidden_states = self._norm(self.attention_norm, "post", hidden_states)
        widened = self.feed_forward(
            self._norm(self.feed_forward_norm, "pre", hidden_states)
        )
        hidden_states = hidden_states + self.dropout(widened, training=training)
        hidden_states = self._norm(
            self.feed_forward_norm, "post", hidden_states
        )
        return hidden_states, keys, values

    def _norm(self, norm, order, hidden_states):
        is_here = order == self.settings["norm_order"]
        return norm(hidden_states) if is_here else hidden_states

    def get_config(self):
        return {
            **super().get_config(),
            **self.settings,
            "kernel_initializer": keras.initializers.serialize(
                self.kernel_initializer
            ),
            "output_initializer": keras.initializers.serialize(
                self.output_initializer
            ),
        }
