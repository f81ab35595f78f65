"""Owns the key/value cache. Not: attending over it, nor when to allocate it."""

from typing import NamedTuple

from keras import ops


class KVCache(NamedTuple):
    """Keys and values of the tokens a model has already read.

    A token's slot is its position in its row, so rows may differ in length
    and in where they write, and a query sees the slots up to its own
    position: what lies beyond, left by padding or by an earlier text, is
    overwritten before anybody sees it.

    Attributes:
        keys: tuple, one float (batch, num_kv_heads, slots, head_dim) a layer:
            a head's slots lie side by side, as the products with a query read
            them. With slots before heads, XLA on a CPU copied the whole cache
            for every token.
        values: tuple, as `keys`.
    """

    keys: tuple
    values: tuple

    def resized(self, num_slots):
        """Returns a cache of so many slots, no fewer, the new ones zero."""
        missing = num_slots - ops.shape(self.keys[0])[2]

        def pad(buffer):
            return ops.pad(buffer, [[0, 0], [0, 0], [0, missing], [0, 0]])

        return KVCache(
            keys=tuple(pad(keys) for keys in self.keys),
            values=tuple(pad(values) for values in self.values),
        )


def scatter(rows, indices, updates):
    """Returns (count, width) `rows` with `updates` (n, width) at `indices`.

    `ops.scatter_update`, and not `ops.slice_update`: under TensorFlow the
    latter is always an XLA op, which a server with XLA switched off refuses
    to run.
    """
    return ops.scatter_update(rows, indices[:, None], updates)


def slot_writer(buffer, positions, *, scatter=scatter):
    """Returns a function that writes a call's tokens into a layer's buffer.

    Where they go is the same in all layers and is worked out once.

    Args:
        buffer: float (batch, num_kv_heads, slots, head_dim), one of them.
        positions: int32 (batch, length). The slots, less than `slots`.
        scatter: function as `scatter`, which may change `rows` in place.

    Returns:
        function of (buffer, updates (batch, num_kv_heads, length, head_dim)),
        returns the buffer that holds the updates.

    Example:
        >>> buffer = ops.zeros((1, 1, 4, 1))
        >>> write = slot_writer(buffer, ops.array([[2, 3]]))
        >>> write(buffer, ops.ones((1, 1, 2, 1))).numpy().ravel()
        array([0., 0., 1., 1.], dtype=float32)
    """
    batch_size, num_heads, num_slots, head_dim = ops.shape(buffer)
    first = ops.arange(batch_size * num_heads, dtype="int32") * num_slots
    first = ops.reshape(first, (-1, num_heads, 1))
    indices = ops.reshape(first + positions[:, None, :], (-1,))

    def write(buffer, updates):
        rows = scatter(
            ops.reshape(buffer, (-1, head_dim)),
            indices,
            ops.cast(ops.reshape(updates, (-1, head_dim)), buffer.dtype),
        )
        return ops.reshape(rows, (-1, num_heads, num_slots, head_dim))

    return write


def allocate_cache(
    num_layers, *, batch_size, num_slots, num_kv_heads, head_dim, dtype
):
    """Returns an empty `KVCache` of `num_slots` tokens a row."""
    shape = (batch_size, num_kv_heads, num_slots, head_dim)
    return KVCache(
        keys=tuple(ops.zeros(shape, dtype) for _ in range(num_layers)),
        values=tuple(ops.zeros(shape, dtype) for _ in range(num_layers)),
    )
