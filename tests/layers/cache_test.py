import numpy as np
import tensorflow as tf
from keras import ops

from kerasgpt.layers.cache import KVCache, allocate_cache, write_slots


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
    assert not ops.convert_to_numpy(cache.segment_ids).any()
    assert int(cache.length) == 0


def test_updates_go_to_their_slots_and_nothing_else_changes():
    buffer = np.arange(24, dtype="float32").reshape(2, 4, 3)
    updates = -np.ones((2, 2, 3), "float32")
    expected = buffer.copy()
    expected[:, 1:3] = -1
    written = write_slots(ops.array(buffer), ops.array(updates), 1)
    np.testing.assert_array_equal(ops.convert_to_numpy(written), expected)


def test_slots_may_stand_behind_the_heads():
    buffer = np.arange(48, dtype="float32").reshape(2, 3, 4, 2)
    updates = -np.arange(12, dtype="float32").reshape(2, 3, 1, 2)
    expected = buffer.copy()
    expected[:, :, 2:3] = updates
    written = write_slots(ops.array(buffer), ops.array(updates), 2, axis=2)
    np.testing.assert_array_equal(ops.convert_to_numpy(written), expected)


def test_updates_take_the_dtype_of_the_buffer():
    written = write_slots(
        ops.zeros((1, 2), "bfloat16"), ops.ones((1, 1), "float32"), 1
    )
    assert written.dtype == "bfloat16"
    assert ops.convert_to_numpy(ops.cast(written, "float32")).tolist() == [
        [0.0, 1.0]
    ]


def test_the_start_may_be_a_tensor_under_xla():
    @tf.function(jit_compile=True)
    def write(start):
        return write_slots(tf.zeros((2, 4)), tf.ones((2, 1)), start)

    for start in range(4):
        expected = np.zeros((2, 4))
        expected[:, start] = 1
        np.testing.assert_array_equal(write(tf.constant(start)), expected)


def test_a_graph_without_xla_holds_no_xla_op():
    # A server that has XLA switched off refuses to run one.
    @tf.function
    def write(start):
        return write_slots(tf.zeros((2, 4)), tf.ones((2, 1)), start)

    graph = write.get_concrete_function(tf.constant(0)).graph
    assert not [op.type for op in graph.get_operations() if "Xla" in op.type]
