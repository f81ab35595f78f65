"""One token a row is what the model makes of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from kerasgpt.generation import decode, prefill, token_step
from kerasgpt.generation.token_step import TokenStep, join_projections
from kerasgpt.models import GPTCausalLM, GPTConfig
from kerasgpt.models.gpt import RotaryScaling

SLOTS = 12
# Each differs from our defaults: RMS norm, rotary, QK-norm, ReLU², tied.
SHAPES = {
    "ours": {},
    "gpt-2": {
        "norm": "layer",
        "position": "learned",
        "qk_norm": False,
        "use_bias": True,
        "activation": "gelu_tanh",
    },
    "gpt-1": {
        "norm": "layer",
        "norm_order": "post",
        "position": "learned",
        "qk_norm": False,
        "use_bias": True,
        "activation": "gelu",
    },
    "llama": {
        "num_kv_heads": 2,
        "qk_norm": False,
        "activation": "swiglu",
        "tie_embeddings": False,
        "rotary_scaling": RotaryScaling(factor=4.0, original_length=8),
    },
    "qwen": {
        "num_kv_heads": 1,
        "qkv_bias": True,
        "qk_norm": False,
        "activation": "swiglu",
    },
    "qk-norm and shared heads": {"num_kv_heads": 2, "activation": "geglu"},
    # A head whose scale is no power of two.
    "narrow heads": {"head_dim": 6, "qk_norm": False},
}


def build_model(changes, dtype="float32"):
    model = GPTCausalLM(
        GPTConfig(
            **{
                "vocabulary_size": 40,
                "context_length": SLOTS,
                "num_layers": 2,
                "num_heads": 4,
                "num_kv_heads": 4,
                "head_dim": 8,
                "model_dim": 16,
                "inner_dim": 24,
                **changes,
            }
        ),
        dtype=dtype,
    )
    model.build()
    rng = np.random.default_rng(3)
    model.set_weights(
        [w + rng.normal(scale=0.3, size=w.shape) for w in model.get_weights()]
    )
    return model


def build_step(model):
    return TokenStep(model, join_projections(model), SLOTS)


def as_the_model(model, token_ids, positions, cache):
    logits, cache = model(
        {"token_ids": token_ids[:, None], "positions": positions[:, None]},
        cache=cache,
    )
    return logits[:, 0], cache


@pytest.mark.parametrize(
    ("shape", "jit_compile"),
    [*((shape, False) for shape in SHAPES), ("ours", True), ("gpt-2", True)],
)
def test_a_step_is_a_call_of_the_model(shape, jit_compile):
    model = build_model(SHAPES[shape])
    step = tf.function(build_step(model), jit_compile=jit_compile)
    rng = np.random.default_rng(0)
    expected_cache = cache = model.allocate_cache(3, SLOTS)
    # Rows begin in different places, and one ends in the last slot.
    for count in range(5):
        token_ids = ops.array(rng.integers(0, 40, size=3), "int32")
        positions = ops.array([0, 3, 7], "int32") + count
        expected, expected_cache = as_the_model(
            model, token_ids, positions, expected_cache
        )
        logits, cache = step(token_ids, positions, cache)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(
        tf.nest.flatten(cache), tf.nest.flatten(expected_cache), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def assert_reads_as_the_model(model, joined):
    step = TokenStep(model, joined, SLOTS)
    cache = model.allocate_cache(1, SLOTS)
    arguments = ops.array([7]), ops.array([0])
    expected, _ = as_the_model(model, *arguments, cache)
    logits, _ = step(*arguments, cache)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def turned(model, num_rows):
    """Returns the copies that are kept transposed."""
    joined = join_projections(model, num_rows=num_rows)
    return tf.nest.flatten([[one.down for one in joined.blocks], joined.table])


@pytest.mark.parametrize("shape", ["ours", "gpt-2"])
def test_large_kernels_are_kept_transposed_for_one_row(shape, monkeypatch):
    model = build_model(SHAPES[shape])
    assert not turned(model, 1)
    monkeypatch.setattr(token_step, "_LARGE_KERNEL", 1)
    assert not turned(model, 2)
    backbone = model.backbone
    *down, table = turned(model, 1)
    assert len(down) == len(backbone.blocks)
    kernel = backbone.blocks[0].feed_forward.down.kernel
    assert tuple(down[0].shape) == tuple(kernel.shape)[::-1]
    np.testing.assert_array_equal(
        table, ops.transpose(backbone.token_embedding.embeddings)
    )
    assert_reads_as_the_model(model, join_projections(model, num_rows=1))
    for_rows = join_projections(model, num_rows=1).for_rows()
    assert not for_rows.table and not any(one.down for one in for_rows.blocks)
    monkeypatch.setattr(token_step, "_LARGEST_TABLE", 1)
    assert len(turned(model, 1)) == len(down)


@pytest.mark.parametrize("shape", ["ours", "gpt-2"])
def test_a_kernel_that_is_nearly_large_is_filled_for_one_row(
    shape, monkeypatch
):
    model = build_model(SHAPES[shape])

    def shape_of(num_rows):
        joined = join_projections(model, num_rows=num_rows)
        return tuple(joined.blocks[0].kernel.shape)

    height, width = shape_of(1)
    # The next width that may be had.
    wider = 32 * (width // 32 + 1)
    monkeypatch.setattr(token_step, "_LARGE_KERNEL", height * wider)
    monkeypatch.setattr(token_step, "_MOST_ZEROS", 0.0)
    assert shape_of(1) == (height, width)
    monkeypatch.setattr(token_step, "_MOST_ZEROS", 1.0)
    assert shape_of(2) == (height, width)
    assert shape_of(1) == (height, wider)
    assert_reads_as_the_model(model, join_projections(model, num_rows=1))


def test_slots_beyond_a_row_are_not_seen():
    model = build_model({})
    step = build_step(model)
    empty = model.allocate_cache(1, SLOTS)
    noisy = tf.nest.map_structure(
        lambda buffer: ops.concatenate(
            [buffer[:, :, :5], 9.0 + buffer[:, :, 5:]], axis=2
        ),
        empty,
    )
    arguments = ops.array([7]), ops.array([4])
    np.testing.assert_array_equal(
        step(*arguments, empty)[0], step(*arguments, noisy)[0]
    )


def test_a_small_dtype_is_kept():
    model = build_model({}, dtype="mixed_bfloat16")
    logits, cache = build_step(model)(
        ops.array([7, 8]),
        ops.array([0, 0]),
        model.allocate_cache(2, SLOTS),
    )
    assert {one.dtype for one in tf.nest.flatten(cache)} == {tf.bfloat16}
    expected, _ = as_the_model(
        model,
        ops.array([7, 8]),
        ops.array([0, 0]),
        model.allocate_cache(2, SLOTS),
    )
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    np.testing.assert_allclose(logits, expected, rtol=0.1, atol=0.1)


def test_three_products_are_one():
    model = build_model({"num_kv_heads": 2})
    joined = join_projections(model).blocks
    assert [tuple(one.kernel.shape) for one in joined] == [(16, 8 * 8)] * 2
    attention = model.backbone.blocks[1].attention
    np.testing.assert_array_equal(
        joined[1].kernel[:, 4 * 8 : 6 * 8], attention.key_projection.kernel
    )


def loop_operations(num_layers):
    """Returns how many operations a token has in a loop outside XLA."""
    model = build_model({"num_layers": num_layers})

    @tf.function(autograph=False)
    def run(token_ids, lengths, limits):
        state = prefill(
            model,
            token_ids,
            lengths,
            max_new_tokens=tf.reduce_max(limits),
            with_counts=False,
        )
        state = decode(
            model,
            state,
            None,
            max_new_tokens=limits,
            stop_ids=limits,
            num_steps=tf.reduce_max(limits),
        )
        return state.token_ids

    vector = tf.TensorSpec([None], tf.int32)
    graph = run.get_concrete_function(
        tf.TensorSpec([None, None], tf.int32), vector, vector
    ).graph.as_graph_def()
    (body,) = (
        function
        for function in graph.library.function
        if "while_body" in function.signature.name
    )
    return sum(node.op != "Const" for node in body.node_def)


def test_a_token_has_few_operations():
    # Outside XLA each takes a microsecond or two, more than its numbers do in
    # a small model.
    first, second = loop_operations(1), loop_operations(2)
    assert second - first <= 60
    assert first - (second - first) <= 75
