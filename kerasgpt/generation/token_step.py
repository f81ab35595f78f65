"""Owns one cached token of each row, in few operations. Not: whole texts.

What a block computes is told by kerasgpt/layers; here the same numbers are had
with one token a row in mind: query, key and value are one product, no row has
a length, and what all layers share is worked out once.
"""

import math
from typing import Any, NamedTuple

import tensorflow as tf
from keras import ops

from kerasgpt.layers.attention import MASKED_SCORE
from kerasgpt.layers.cache import KVCache, slot_writer
from kerasgpt.layers.feed_forward import ACTIVATIONS
from kerasgpt.models.gpt import GPTCausalLM

# From so many numbers on XLA reads a kernel by several threads.
_LARGE_KERNEL = 1 << 19
# A table of 38 million numbers does not pay for its copy (LOG.md).
_LARGEST_TABLE = 1 << 22
# A kernel that lacks less than this share of them is had sooner with zeros.
_MOST_ZEROS = 0.25


class JoinedProjection(NamedTuple):
    """Query, key and value of a block as one product, and what else is copied.

    Attributes:
        kernel: float (model_dim, (num_heads + 2 num_kv_heads) head_dim), and
            perhaps columns of zeros, see `_filled`.
        bias: () or float, of the kernel's columns.
        gain: () or float (num_heads + num_kv_heads, head_dim). Of the QK-norm.
        down: () or float (model_dim, hidden_dim). The feed-forward's last
            kernel transposed: XLA multiplies one row with it in half to two
            thirds of the time, and eight rows in 1.4 times (LOG.md).
    """

    kernel: Any
    bias: Any
    gain: Any
    down: Any


class Joined(NamedTuple):
    """Copies of a model's weights, in the shape that one token is read by.

    Attributes:
        blocks: tuple of JoinedProjection.
        table: () or float (model_dim, vocabulary_size). A tied table
            transposed, for one row: 3 to 4 % of a token at 12M (LOG.md).
    """

    blocks: tuple = ()
    table: Any = ()

    def for_rows(self):
        """Returns it without what is slower for several rows."""
        blocks = tuple(block._replace(down=()) for block in self.blocks)
        return Joined(blocks)


def join_projections(model, *, num_rows=None):
    """Returns what `TokenStep` reads of a GPTCausalLM besides the model.

    It holds copies: of what the model is now, and to be had once a call and
    not once a token. Scores are scaled here, in the query's columns. Of a
    model of another kind it is empty.

    Args:
        model: task model.
        num_rows: int. Rows that will be read together, where it is known.

    Returns:
        Joined.
    """
    if not isinstance(model, GPTCausalLM):
        return Joined()
    backbone = model.backbone
    blocks = tuple(_joined_block(block, num_rows) for block in backbone.blocks)
    table = ()
    if num_rows == 1 and model.config.tie_embeddings:
        table = ops.convert_to_tensor(backbone.token_embedding.embeddings)
        size = math.prod(table.shape)
        is_worth_it = _LARGE_KERNEL <= size <= _LARGEST_TABLE
        table = ops.transpose(table) if is_worth_it else ()
    return Joined(blocks, table)


def _joined_block(block, num_rows):
    attention, last = block.attention, block.feed_forward.down
    scale = attention.head_dim**-0.5
    kinds = (
        attention.query_projection,
        attention.key_projection,
        attention.value_projection,
    )
    # The QK-norm undoes what is done to its input, so there it is the gain.
    scales = (1.0 if attention.qk_norm else scale, 1.0, 1.0)

    def join(parts):
        scaled = [
            part if factor == 1.0 else part * factor
            for part, factor in zip(parts, scales, strict=True)
        ]
        return ops.cast(
            ops.concatenate(scaled, axis=-1), attention.compute_dtype
        )

    bias, gain = (), ()
    if kinds[0].use_bias:
        bias = join([ops.convert_to_tensor(one.bias) for one in kinds])
    if attention.qk_norm:
        query = ops.convert_to_tensor(attention.query_norm.scale) * scale
        key = ops.convert_to_tensor(attention.key_norm.scale)
        gain = ops.concatenate(
            [
                ops.tile(query[None], (attention.num_heads, 1)),
                ops.tile(key[None], (attention.num_kv_heads, 1)),
            ],
            axis=0,
        )
    kernel = join([ops.convert_to_tensor(one.kernel) for one in kinds])
    down = ()
    if num_rows == 1:
        kernel = _filled(kernel)
        if math.prod(last.kernel.shape) >= _LARGE_KERNEL:
            down = ops.cast(
                ops.transpose(ops.convert_to_tensor(last.kernel)),
                last.compute_dtype,
            )
    return JoinedProjection(kernel, bias, gain, down)


def _filled(kernel):
    """Returns a kernel with columns of zeros, if that makes it a large one."""
    height, width = kernel.shape
    # A few more than that many it takes: 384 x 1,366 are still one thread's.
    wanted = 32 * math.ceil(_LARGE_KERNEL / height / 32)
    if width < wanted <= (1 + _MOST_ZEROS) * width:
        return ops.pad(kernel, ((0, 0), (0, wanted - width)))
    return kernel


def token_reader(model, joined, cache, *, slot_writer=slot_writer):
    """Returns what reads one token a row: of a GPT, a `TokenStep`.

    Args:
        model: task model that continues texts.
        joined: what `join_projections` returned for it.
        cache: of the model; it tells the slots.
        slot_writer: see `GPTBackbone`.
    """
    if isinstance(model, GPTCausalLM):
        return TokenStep(
            model,
            joined,
            ops.shape(cache.keys[0])[2],
            slot_writer=slot_writer,
        )

    def read(token_ids, positions, cache):
        inputs = {"token_ids": token_ids, "positions": positions}
        inputs = {name: value[:, None] for name, value in inputs.items()}
        logits, cache = model(inputs, cache=cache)
        return logits[:, 0], cache

    return read


class TokenStep:
    """Reads one token of each row and returns what may follow it.

    Equal to `model({"token_ids", "positions"}, cache=cache)` with one token a
    row, but for rounding.

    Args:
        model: GPTCausalLM.
        joined: what `join_projections` returned for it.
        num_slots: int or int32 (). Of the caches that are to come.
        slot_writer: see `GPTBackbone`.

    Call arguments:
        token_ids: int32 (batch,).
        positions: int32 (batch,), less than the slots and the context.
        cache: KVCache.

    Returns:
        float32 (batch, vocabulary_size) logits; the KVCache that holds the
        tokens.

    Example:
        >>> from kerasgpt.models.gpt import GPTCausalLM, GPTConfig
        >>> model = GPTCausalLM(GPTConfig.from_depth(1))
        >>> model.build()
        >>> step = TokenStep(model, join_projections(model), 4)
        >>> logits, cache = step(
        ...     ops.array([7]), ops.array([0]), model.allocate_cache(1, 4))
        >>> tuple(logits.shape)
        (1, 256)
    """

    def __init__(self, model, joined, num_slots, *, slot_writer=slot_writer):
        self.model = model
        self.joined = joined
        self.slot_writer = slot_writer
        self.turns = None
        if model.config.position == "rotary":
            attention = model.backbone.blocks[0].attention
            self.turns = _turns(attention, num_slots)

    def __call__(self, token_ids, positions, cache):
        backbone = self.model.backbone
        config = self.model.config
        states = self._row_of(backbone.token_embedding, token_ids)
        if config.position == "learned":
            states = states + self._row_of(
                backbone.position_embedding, positions
            )
        slots = ops.arange(ops.shape(cache.keys[0])[2], dtype="int32")
        # Added to scores (batch, heads, queries of a head, slots).
        hidden = MASKED_SCORE * ops.cast(
            (slots[None] > positions[:, None])[:, None, None], "float32"
        )
        write = self.slot_writer(cache.keys[0], positions[:, None])
        turn = None
        if config.position == "rotary":
            turn = tf.unstack(tf.gather(self.turns, positions), 2, axis=1)
        all_keys, all_values = [], []
        for block, joined, keys, values in zip(
            backbone.blocks, self.joined.blocks, *cache, strict=True
        ):
            is_pre = config.norm_order == "pre"
            read = block.attention_norm(states) if is_pre else states
            attended, keys, values = _attend(
                block.attention, joined, read, turn, hidden, keys, values, write
            )
            states = states + attended
            if not is_pre:
                states = block.attention_norm(states)
            read = block.feed_forward_norm(states) if is_pre else states
            states = states + _widen(block.feed_forward, read, joined.down)
            if not is_pre:
                states = block.feed_forward_norm(states)
            all_keys.append(keys)
            all_values.append(values)
        logits = _project_back(
            self.model, backbone.final_norm(states), self.joined.table
        )
        return logits, KVCache(tuple(all_keys), tuple(all_values))

    def _row_of(self, embedding, token_ids):
        # `ops.take` looks for ids below 0.
        rows = tf.gather(tf.convert_to_tensor(embedding.embeddings), token_ids)
        return ops.cast(rows, self.model.backbone.compute_dtype)


def _turns(attention, num_slots):
    """Returns cosines and sines (slots, 2, 1, head_dim) of all positions.

    A head is then turned by `head * cosine + swapped * sine`, where its halves
    have changed places.
    """
    half = attention.head_dim // 2
    # (1, 0) turned is (cosine, sine).
    basis = ops.concatenate([ops.ones((half,)), ops.zeros((half,))], axis=0)
    turned = attention.rotary(
        ops.broadcast_to(basis, (1, num_slots, 1, 2 * half)),
        ops.arange(num_slots, dtype="int32")[None],
    )[0]
    cosine, sine = ops.split(turned, 2, axis=-1)
    return ops.stack(
        [
            ops.concatenate([cosine, cosine], axis=-1),
            ops.concatenate([-sine, sine], axis=-1),
        ],
        axis=1,
    )


def _attend(attention, joined, states, turn, hidden, keys, values, write):
    """Returns the output of `attention`, and its cache with the token."""
    num_heads, num_kv_heads = attention.num_heads, attention.num_kv_heads
    head_dim = attention.head_dim
    projected = ops.matmul(states, joined.kernel)
    width = (num_heads + 2 * num_kv_heads) * head_dim
    if projected.shape[-1] > width:
        projected = projected[:, :width]
    if _has(joined.bias):
        projected = projected + joined.bias
    heads = ops.reshape(projected, (-1, num_heads + 2 * num_kv_heads, head_dim))
    # `ops.split` works its sizes out, in operations.
    both, value = tf.split(heads, [num_heads + num_kv_heads, num_kv_heads], 1)
    if _has(joined.gain):
        both = ops.rms_normalization(
            both, scale=joined.gain, epsilon=attention.norm_epsilon
        )
    if turn:
        cosine, sine = turn
        first, second = ops.split(both, 2, axis=-1)
        both = both * cosine + ops.concatenate([second, first], -1) * sine
    query, key = tf.split(both, [num_heads, num_kv_heads], 1)
    keys, values = write(keys, key), write(values, value)
    query = ops.reshape(
        query, (-1, num_kv_heads, num_heads // num_kv_heads, head_dim)
    )
    scores = ops.cast(_product(query, keys, adj_y=True), "float32") + hidden
    # oneDNN takes a softmax, too, and hands it to threads.
    weights = ops.cast(ops.exp(ops.log_softmax(scores)), values.dtype)
    attended = ops.reshape(
        _product(weights, values), (-1, num_heads * head_dim)
    )
    return _apply(attention.output_projection, attended), keys, values


def _product(first, second, *, adj_y=False):
    """Returns the products of pairs of matrices, each by one thread.

    For `tf.matmul`, oneDNN shares even a head's few numbers out to threads: 33
    µs where this takes 3.
    """
    return tf.raw_ops.BatchMatMulV3(
        x=first, y=second, Tout=first.dtype, adj_y=adj_y
    )


def _widen(network, states, down):
    function, is_gated = ACTIVATIONS[network.activation]
    up = _apply(network.up, states)
    if is_gated:
        up = function(_apply(network.gate, states)) * up
    else:
        up = function(up)
    return _apply(network.down, up, down)


def _apply(projection, states, transposed=()):
    """Returns what a Projection makes of states (batch, features)."""
    if _has(transposed):
        outputs = tf.matmul(states, transposed, transpose_b=True)
    else:
        outputs = ops.matmul(states, ops.cast(projection.kernel, states.dtype))
    if projection.use_bias:
        outputs = outputs + ops.cast(projection.bias, states.dtype)
    return outputs


def _project_back(model, states, table):
    states = ops.cast(states, "float32")
    if _has(table):
        return tf.matmul(states, table)
    embedding = model.backbone.token_embedding
    if model.config.tie_embeddings:
        # `ops` would write the whole table transposed, for every token.
        table = tf.convert_to_tensor(embedding.embeddings)
        return tf.matmul(states, table, transpose_b=True)
    return ops.matmul(states, embedding.reverse_embeddings)


def _has(part):
    return not isinstance(part, tuple)
