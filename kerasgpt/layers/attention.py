"""Owns attention. Not: which key is visible (masks.py), the cache (cache.py).

Einsum letters of this room: B batch, K key/value heads, T target (of all query
heads that share a key/value head), S source, H head width.
"""

import itertools

import keras
from keras import ops

from kerasgpt.layers.projection import Projection
from kerasgpt.layers.rotary import RotaryEmbedding

# Finite, so that a fully masked row gives numbers, not NaN.
MASKED_SCORE = -1e30
# Queries that are scored together, against the keys up to the last of them.
# At a context of 256, blocks of 64 were no faster and compiled twice as long.
BLOCK_LENGTH = 128
# Backends whose `ops.dot_product_attention` takes a fused kernel by itself
# and shares key/value heads.
FUSED_BACKENDS = ("jax",)


@keras.saving.register_keras_serializable("kerasgpt")
class MultiHeadAttention(keras.layers.Layer):
    """Scaled dot-product attention whose query heads share key/value heads.

    softmax(Q K^T / sqrt(d_k) + M) V, our `head_dim` being the paper's d_k and
    M 0 where the mask is true, very negative elsewhere. `num_kv_heads` equal
    to `num_heads` is multi-head, smaller is grouped-query, 1 is multi-query
    attention. Scores are computed in the compute dtype, their softmax in
    float32. A fully masked row returns zeros before the output projection.

    `keras.layers.GroupQueryAttention` is not used: it has neither rotary
    positions, QK-norm nor a cache, and its 3-D kernels are passed over by
    `keras.optimizers.Muon`, which orthogonalises 2-D kernels only.

    Args:
        num_heads: int. Query heads.
        num_kv_heads: int. Key/value heads, a divisor of `num_heads`.
            `None` = `num_heads`.
        head_dim: int. Width of a head.
        rotary_base: float. Base of the rotary positions. `None` = none.
        rotary_scaling: dict, further arguments of `RotaryEmbedding`.
        qk_norm: bool. RMS-normalise queries and keys, a head at a time.
        use_bias: bool. Biases in the four projections.
        qkv_bias: bool. Biases of queries, keys and values at least.
        norm_epsilon: float. Of the QK-norm.
        kernel_initializer: of the query, key and value projections.
        output_initializer: of the output projection.

    Call arguments:
        hidden_states: float (batch, target_length, model_dim).
        attention_mask: bool (batch, target_length, source_length), true =
            may attend. `None` = causal rows of one segment, by the fused
            kernel of the backend, if it has one.
        positions: int (batch, target_length). Used if `rotary_base` is set.
        keys, values: float (batch, num_kv_heads, slots, head_dim). Cache of
            this layer; source_length is then `slots`. `None` = no cache.
        write: function that writes into such a cache, see `slot_writer`.
            `None` = the cache is attended to as it is.
        source: float (batch, source_length, model_dim). What is attended to
            without a cache, if there are no rotary positions. `None` =
            `hidden_states`.
        is_causal: bool. The mask, by promise, lets no token see one that
            stands after it in the row; those scores are then not computed.

    Returns:
        float (batch, target_length, model_dim), then the keys and values that
        were attended to, (batch, num_kv_heads, source_length, head_dim): the
        updated cache, or those of this call.

    Raises:
        ValueError: if `num_heads % num_kv_heads != 0`.

    Example:
        One token sees itself only, so its attention weight is 1:

        >>> attention = MultiHeadAttention(2, head_dim=4)
        >>> output, keys, values = attention(
        ...     ops.ones((1, 1, 8)), attention_mask=ops.ones((1, 1, 1), "bool"))
        >>> tuple(output.shape), tuple(keys.shape)
        ((1, 1, 8), (1, 2, 1, 4))

    Reference: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2; Ainslie et
    al. 2023, GQA (arXiv 2305.13245), section 2.2; Henry et al. 2020,
    query-key normalisation (arXiv 2010.04245).
    """

    def __init__(
        self,
        num_heads,
        *,
        head_dim,
        num_kv_heads=None,
        rotary_base=None,
        rotary_scaling=None,
        qk_norm=False,
        use_bias=False,
        qkv_bias=False,
        norm_epsilon=1e-6,
        kernel_initializer="glorot_uniform",
        output_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        self.head_dim = head_dim
        self.rotary_base = rotary_base
        self.rotary_scaling = rotary_scaling or {}
        self.qk_norm = qk_norm
        self.use_bias = use_bias
        self.qkv_bias = qkv_bias
        self.norm_epsilon = norm_epsilon
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.output_initializer = keras.initializers.get(output_initializer)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads; received "
                f"num_heads={num_heads}, num_kv_heads={num_kv_heads}."
            )

    def build(self, hidden_states_shape, *unused_shapes, **unused_kwargs):
        model_dim = hidden_states_shape[-1]
        self.query_projection = self._dense("query", self.num_heads)
        self.key_projection = self._dense("key", self.num_kv_heads)
        self.value_projection = self._dense("value", self.num_kv_heads)
        for projection in (
            self.query_projection,
            self.key_projection,
            self.value_projection,
        ):
            projection.build(hidden_states_shape)
        self.output_projection = Projection(
            model_dim,
            use_bias=self.use_bias,
            kernel_initializer=self.output_initializer.clone(),
            dtype=self.dtype_policy,
            name="output",
        )
        self.output_projection.build(
            (None, None, self.num_heads * self.head_dim)
        )
        if self.rotary_base is not None:
            self.rotary = RotaryEmbedding(
                self.rotary_base,
                **self.rotary_scaling,
                dtype=self.dtype_policy,
                name="rotary",
            )
        if self.qk_norm:
            self.query_norm = self._norm("query_norm")
            self.key_norm = self._norm("key_norm")
        self.built = True

    def _dense(self, name, num_heads):
        # A clone each: one instance gives equal values at each call, so query,
        # key and value would start equal.
        return Projection(
            num_heads * self.head_dim,
            use_bias=self.use_bias or self.qkv_bias,
            kernel_initializer=self.kernel_initializer.clone(),
            dtype=self.dtype_policy,
            name=name,
        )

    def _norm(self, name):
        norm = keras.layers.RMSNormalization(
            epsilon=self.norm_epsilon, dtype=self.dtype_policy, name=name
        )
        norm.build((None, None, None, self.head_dim))
        return norm

    def call(
        self,
        hidden_states,
        attention_mask,
        positions=None,
        keys=None,
        values=None,
        write=None,
        is_causal=False,
        source=None,
    ):
        query = self._heads(
            self.query_projection(hidden_states), self.num_heads
        )
        if self.qk_norm:
            query = self.query_norm(query)
        if self.rotary_base is not None:
            query = self.rotary(query, positions)
        # Heads before tokens: with tokens first, XLA on a CPU transposes for
        # every product, and the whole cache for every token.
        query = _swap(query)
        if keys is not None and write is None:
            key, value = keys, values
        else:
            key, value = self._keys_and_values(
                hidden_states if source is None else source, positions
            )
        if write is not None:
            key, value = write(keys, key), write(values, value)
        attended = self._attend(query, key, value, attention_mask, is_causal)
        return self.output_projection(attended), key, value

    def _keys_and_values(self, source, positions):
        key = self._heads(self.key_projection(source), self.num_kv_heads)
        value = self._heads(self.value_projection(source), self.num_kv_heads)
        if self.qk_norm:
            key = self.key_norm(key)
        if self.rotary_base is not None:
            key = self.rotary(key, positions)
        return _swap(key), _swap(value)

    def _heads(self, projected, num_heads):
        return ops.reshape(
            projected,
            (-1, ops.shape(projected)[1], num_heads, self.head_dim),
        )

    def _attend(self, query, key, value, mask, is_causal):
        length = query.shape[2]
        query = query * ops.cast(self.head_dim**-0.5, query.dtype)
        if mask is None:
            attended = self._fused_attention(query, key, value)
        elif is_causal and length is not None:
            edges = [*range(0, length, BLOCK_LENGTH), length]
            attended = [
                self._softmax_attention(
                    query[:, :, start:end],
                    key[:, :, :end],
                    value[:, :, :end],
                    mask[:, start:end, :end],
                )
                for start, end in itertools.pairwise(edges)
            ]
            attended = ops.concatenate(attended, axis=2)
        else:
            attended = self._softmax_attention(query, key, value, mask)
        attended = _swap(attended)
        return ops.reshape(
            attended,
            (-1, ops.shape(attended)[1], self.num_heads * self.head_dim),
        )

    def _fused_attention(self, query, key, value):
        query, key, value = map(_swap, (query, key, value))
        attended = ops.dot_product_attention(
            query, key, value, scale=1.0, is_causal=True
        )
        return _swap(attended)

    def _softmax_attention(self, query, key, value, mask):
        # The queries of a group stand below each other: one product a key head.
        length = ops.shape(query)[2]
        group = self.num_heads // self.num_kv_heads
        stacked = (-1, self.num_kv_heads, group * length)
        scores = ops.einsum(
            "bkth,bksh->bkts",
            ops.reshape(query, (*stacked, self.head_dim)),
            key,
        )
        if group > 1 and length != 1:
            mask = ops.tile(mask, (1, group, 1))
        mask = mask[:, None]
        scores = ops.where(mask, ops.cast(scores, "float32"), MASKED_SCORE)
        highest = ops.stop_gradient(ops.max(scores, axis=-1, keepdims=True))
        exponentials = ops.where(mask, ops.exp(scores - highest), 0.0)
        # Divided by their sum after they weigh the values: a number a row and
        # not one a score is divided, forward and backward. A masked row is all
        # zeros. No maximum with 1: where one key is seen the sum is 1, and JAX
        # would pass on half of its gradient.
        total = ops.sum(exponentials, axis=-1, keepdims=True)
        total = ops.where(total > 0.0, total, 1.0)
        attended = ops.matmul(ops.cast(exponentials, value.dtype), value)
        return ops.reshape(
            attended / ops.cast(total, attended.dtype),
            (-1, self.num_heads, length, self.head_dim),
        )

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "rotary_base": self.rotary_base,
            "rotary_scaling": self.rotary_scaling,
            "qk_norm": self.qk_norm,
            "use_bias": self.use_bias,
            "qkv_bias": self.qkv_bias,
            "norm_epsilon": self.norm_epsilon,
            "kernel_initializer": keras.initializers.serialize(
                self.kernel_initializer
            ),
            "output_initializer": keras.initializers.serialize(
                self.output_initializer
            ),
        }


def _swap(states):
    """Returns (batch, a, b, width) as (batch, b, a, width)."""
    if 1 in states.shape[1:3]:
        # Of one token or head: no number moves.
        shape = ops.shape(states)
        return ops.reshape(states, (-1, shape[2], shape[1], shape[3]))
    return ops.transpose(states, (0, 2, 1, 3))
