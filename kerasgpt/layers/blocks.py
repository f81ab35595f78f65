"""Owns the Transformer blocks. Not: how they are stacked (models)."""

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


def build_dropout(rate, dtype, *, name="dropout"):
    """Returns a keras layer of dropout; of rate 0, one without a seed."""
    if rate:
        return keras.layers.Dropout(rate, name=name, dtype=dtype)
    return keras.layers.Identity(name=name, dtype=dtype)


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
        self.dropout = build_dropout(dropout_rate, self.dtype_policy)

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
        hidden_states, keys, values = self._branch(
            self.attention,
            self.attention_norm,
            hidden_states,
            training,
            attention_mask=attention_mask,
            positions=positions,
            keys=keys,
            values=values,
            write=write,
            is_causal=is_causal,
        )
        (hidden_states,) = self._branch(
            self.feed_forward, self.feed_forward_norm, hidden_states, training
        )
        return hidden_states, keys, values

    def _branch(self, layer, norm, hidden_states, training, **inputs):
        """Returns the hidden states after a branch, and what else it gives."""
        is_pre = self.settings["norm_order"] == "pre"
        read = norm(hidden_states) if is_pre else hidden_states
        outputs = layer(read, **inputs)
        added, *others = outputs if isinstance(outputs, tuple) else (outputs,)
        hidden_states = hidden_states + self.dropout(added, training=training)
        return (hidden_states if is_pre else norm(hidden_states), *others)

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


@keras.saving.register_keras_serializable("kerasgpt")
class EncoderBlock(DecoderBlock):
    """A `DecoderBlock` whose tokens may see those after them, too.

    Args:
        **settings: see `DecoderBlock`.

    Call arguments:
        hidden_states: float (batch, length, model_dim).
        attention_mask: bool (batch, length, length), true = may attend.
        positions: see `MultiHeadAttention`.

    Returns:
        float (batch, length, model_dim).

    Example:
        >>> block = EncoderBlock(num_heads=2, head_dim=4, inner_dim=16)
        >>> x = keras.ops.ones((1, 3, 8))
        >>> mask = keras.ops.ones((1, 3, 3), "bool")
        >>> tuple(block(x, attention_mask=mask).shape)
        (1, 3, 8)

    Reference: Vaswani et al. 2017 (arXiv 1706.03762), section 3.1.
    """

    def call(
        self, hidden_states, attention_mask, positions=None, training=None
    ):
        hidden_states, _, _ = super().call(
            hidden_states,
            attention_mask=attention_mask,
            positions=positions,
            training=training,
        )
        return hidden_states


@keras.saving.register_keras_serializable("kerasgpt")
class CrossDecoderBlock(DecoderBlock):
    """A `DecoderBlock` that also attends to what an encoder has read.

    Between attention and network: `x + attention(norm(x), source)`. The
    source has no rotary positions: where a token stands, the encoder knew.

    Args:
        **settings: see `DecoderBlock`.

    Call arguments:
        hidden_states, attention_mask, positions, keys, values, write,
            is_causal: see `DecoderBlock`.
        source: float (batch, source_length, model_dim), of the encoder.
        source_mask: bool (batch, target_length, source_length).
        source_keys, source_values: those of the source, as an earlier call
            returned them, instead of the source.

    Returns:
        float (batch, target_length, model_dim), then keys and values of the
        target and keys and values of the source, as `MultiHeadAttention`
        returns them.

    Example:
        >>> block = CrossDecoderBlock(num_heads=2, head_dim=4, inner_dim=16)
        >>> ones = keras.ops.ones
        >>> output, *cache = block(ones((1, 2, 8)), ones((1, 2, 2), "bool"),
        ...     source=ones((1, 5, 8)), source_mask=ones((1, 2, 5), "bool"))
        >>> [tuple(part.shape) for part in (output, cache[0], cache[2])]
        [(1, 2, 8), (1, 2, 2, 4), (1, 2, 5, 4)]

    Reference: Vaswani et al. 2017 (arXiv 1706.03762), section 3.1.
    """

    def __init__(self, **settings):
        super().__init__(**settings)
        shared = self.settings
        self.cross_norm = build_norm(
            shared["norm"],
            epsilon=shared["norm_epsilon"],
            name="cross_norm",
            dtype=self.dtype_policy,
        )
        self.cross_attention = MultiHeadAttention(
            shared["num_heads"],
            num_kv_heads=shared["num_kv_heads"],
            head_dim=shared["head_dim"],
            qk_norm=shared["qk_norm"],
            use_bias=shared["use_bias"],
            qkv_bias=shared["qkv_bias"],
            norm_epsilon=shared["norm_epsilon"],
            kernel_initializer=self.kernel_initializer,
            output_initializer=self.output_initializer,
            name="cross_attention",
            dtype=self.dtype_policy,
        )

    def build(self, hidden_states_shape, *unused_shapes, **unused_kwargs):
        self.cross_norm.build(hidden_states_shape)
        self.cross_attention.build(hidden_states_shape)
        super().build(hidden_states_shape)

    def call(
        self,
        hidden_states,
        attention_mask,
        source=None,
        source_mask=None,
        positions=None,
        keys=None,
        values=None,
        write=None,
        source_keys=None,
        source_values=None,
        is_causal=False,
        training=None,
    ):
        hidden_states, keys, values = self._branch(
            self.attention,
            self.attention_norm,
            hidden_states,
            training,
            attention_mask=attention_mask,
            positions=positions,
            keys=keys,
            values=values,
            write=write,
            is_causal=is_causal,
        )
        hidden_states, source_keys, source_values = self._branch(
            self.cross_attention,
            self.cross_norm,
            hidden_states,
            training,
            attention_mask=source_mask,
            source=source,
            keys=source_keys,
            values=source_values,
        )
        (hidden_states,) = self._branch(
            self.feed_forward, self.feed_forward_norm, hidden_states, training
        )
        return hidden_states, keys, values, source_keys, source_values
