"""Owns the key/value cache. Not: attending over it, nor when to allocate it."""

from typing import Any, NamedTuple

from keras import ops


class KVCache(NamedTuple):
    """Keys and values of the tokens a model has already read.

    Slots are filled left to right by all rows at once; what a slot holds is
    told by its position and segment, so rows may differ in length: an unused
    or padded slot has segment 0, and nobody attends to it.

    Attributes:
        keys: tuple, one float (batch, num_kv_heads, slots, head_dim) a layer:
            a head's slots lie side by side, as the products with a query read
            them. With slots before heads, XLA on a CPU copied the whole cache
            for every token.
        values: tuple, as `keys`.
        positions: int32 (batch, slots).
        segment_ids: int32 (batch, slots). 0 = empty or padding.
        length: int32 (). Slots filled so far, the next one to write.
    """

    keys: tuple
    values: tuple
    positions: Any
    segment_ids: Any
    length: Any


def allocate_cache(
    num_layers, *, batch_size, num_slots, num_kv_heads, head_dim, dtype
):
    """Returns an empty `KVCache` of `num_slots` tokens a row."""
    shape = (batch_size, num_kv_heads, num_slots, head_dim)
    return KVCache(
        keys=tuple(ops.zeros(shape, dtype) for _ in range(num_layers)),
        values=tuple(ops.zeros(shape, dtype) for _ in range(num_layers)),
        positions=ops.zeros((batch_size, num_slots), "int32"),
        segment_ids=ops.zeros((batch_size, num_slots), "int32"),
        length=ops.zeros((), "int32"),
    )


def write_slots(buffer, updates, start, *, axis=1):
    """Returns `buffer` with `updates` in the slots from `start` on.

    Args:
        buffer: (batch, ..., slots, ...).
        updates: (batch, ..., length, ...), `length` known when traced.
        start: int32 (). First slot to write.
        axis: int. Where `slots` and `length` stand, at least 1.

    Returns:
        As `buffer`.

    A scatter and not `ops.slice_update`: under TensorFlow the latter is always
    an XLA op, which a server with XLA switched off refuses to run.

    Example:
        >>> write_slots(ops.zeros((1, 4)), ops.ones((1, 2)), 1)[0].numpy()
        array([0., 1., 1., 0.], dtype=float32)
    """
    shape, length = ops.shape(buffer), ops.shape(updates)[axis]
    rows = ops.reshape(buffer, (-1, *shape[axis:]))
    updates = ops.reshape(updates, (-1, length, *shape[axis + 1 :]))
    count = ops.shape(rows)[0]
    numbers = ops.arange(count, dtype="int32")[:, None]
    slots = start + ops.arange(length, dtype="int32")[None, :]
    indices = ops.stack(
        [
            ops.broadcast_to(numbers, (count, length)),
            ops.broadcast_to(slots, (count, length)),
        ],
        axis=-1,
    )
    written = ops.scatter_update(rows, indices, ops.cast(updates, buffer.dtype))
    return ops.reshape(written, shape)
