import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from kerasgpt.layers.cache import KVCache, allocate_cache, slot_writer


def test_a_new_cache_is_empty_in_every_slot():
    cache = allocate_cache(
        3,
        batch_size=2,
        num_slots=5,
        num_kv_heads=1,
        head_dim=4,
        dtype="bfloat16",
    )
    assert isinstance(cache, KVCache)
    assert len(cache.keys) == len(cache.values) == 3
    for buffer in (*cache.keys, *cache.values):
        assert tuple(buffer.shape) == (2, 1, 5, 4)
        assert buffer.dtype == "bfloat16"
        assert not ops.convert_to_numpy(ops.cast(buffer, "float32")).any()


def test_a_resized_cache_keeps_its_slots_and_adds_empty_ones():
    buffers = tuple(ops.ones((1, 2, 3, 4)) * number for number in (1, 2))
    cache = KVCache(buffers[:1], buffers[1:]).resized(5)
    for buffer, number in ((cache.keys[0], 1), (cache.values[0], 2)):
        buffer = ops.convert_to_numpy(buffer)
        assert buffer.shape == (1, 2, 5, 4)
        assert (buffer[:, :, :3] == number).all()
        assert not buffer[:, :, 3:].any()


def test_a_token_goes_to_the_slot_of_its_position_and_no_other_changes():
    buffer = np.arange(48, dtype="float32").reshape(2, 3, 4, 2)
    updates = -1 - np.arange(24, dtype="float32").reshape(2, 3, 2, 2)
    # Rows write where they are, in any order.
    positions = [[3, 0], [1, 2]]
    expected = buffer.copy()
    for row, slots in enumerate(positions):
        for index, slot in enumerate(slots):
            expected[row, :, slot] = updates[row, :, index]
    write = slot_writer(ops.array(buffer), ops.array(positions))
    written = write(ops.array(buffer), ops.array(updates))
    np.testing.assert_array_equal(ops.convert_to_numpy(written), expected)


def test_updates_take_the_dtype_of_the_buffer():
    buffer = ops.zeros((1, 1, 2, 1), "bfloat16")
    write = slot_writer(buffer, ops.array([[1]]))
    written = write(buffer, ops.ones((1, 1, 1, 1), "float32"))
    assert written.dtype == "bfloat16"
    written = ops.convert_to_numpy(ops.cast(written, "float32"))
    assert written.ravel().tolist() == [0.0, 1.0]


def _write(positions):
    buffer = tf.zeros((2, 1, 4, 1))
    write = slot_writer(buffer, positions[:, None])
    return write(buffer, tf.ones((2, 1, 1, 1)))[:, 0, :, 0]


@pytest.mark.parametrize("jit_compile", [True, False])
def test_positions_may_be_tensors(jit_compile):
    write = tf.function(_write, jit_compile=jit_compile)
    for first, second in ((0, 3), (2, 1)):
        expected = np.zeros((2, 4))
        expected[0, first] = expected[1, second] = 1
        np.testing.assert_array_equal(
            write(tf.constant([first, second])), expected
        )


def test_a_graph_without_xla_holds_no_xla_op():
    # A server that has XLA switched off refuses to run one.
    write = tf.function(_write)
    graph = write.get_concrete_function(tf.constant([0, 0])).graph
    assert not [op.type for op in graph.get_operations() if "Xla" in op.type]
