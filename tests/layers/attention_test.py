import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from kerasgpt.layers import attention
from kerasgpt.layers.attention import MultiHeadAttention
from kerasgpt.layers.cache import allocate_cache, slot_writer

BATCH, LENGTH, WIDTH, HEAD_DIM = 2, 6, 8, 4


def _inputs(seed=0, length=LENGTH):
    rng = np.random.default_rng(seed)
    return ops.array(rng.normal(size=(BATCH, length, WIDTH)), "float32")


def _causal(length=LENGTH):
    return ops.array(
        np.broadcast_to(
            np.tril(np.ones((length, length), bool)), (BATCH, length, length)
        )
    )


def _positions(length=LENGTH):
    return ops.array(np.tile(np.arange(length), (BATCH, 1)), "int32")


def _attend(layer, inputs, mask, **further):
    outputs = layer(
        inputs,
        attention_mask=mask,
        positions=_positions(inputs.shape[1]),
        **further,
    )
    return [ops.convert_to_numpy(output) for output in outputs]


def test_the_equation_written_in_numpy():
    layer = MultiHeadAttention(2, head_dim=HEAD_DIM, use_bias=True)
    inputs, mask = _inputs(), _causal()
    _attend(layer, inputs, mask)
    rng = np.random.default_rng(3)
    layer.set_weights([rng.normal(size=w.shape) for w in layer.weights])
    actual, keys, values = _attend(layer, inputs, mask)

    x = ops.convert_to_numpy(inputs)

    def heads(projection):
        kernel, bias = projection.get_weights()
        return (x @ kernel + bias).reshape(BATCH, LENGTH, 2, HEAD_DIM)

    query = heads(layer.query_projection)
    key, value = heads(layer.key_projection), heads(layer.value_projection)
    scores = np.einsum("btnh,bsnh->bnts", query, key) / np.sqrt(HEAD_DIM)
    scores = np.where(np.array(mask)[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    attended = np.einsum("bnts,bsnh->btnh", weights, value)
    kernel, bias = layer.output_projection.get_weights()
    expected = attended.reshape(BATCH, LENGTH, -1) @ kernel + bias
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    for given, wanted in ((keys, key), (values, value)):
        np.testing.assert_allclose(
            given, wanted.swapaxes(1, 2), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("num_kv_heads", [1, 2])
def test_grouped_queries_equal_repeated_key_and_value_heads(num_kv_heads):
    settings = {"head_dim": HEAD_DIM, "rotary_base": 100.0, "qk_norm": True}
    grouped = MultiHeadAttention(4, num_kv_heads=num_kv_heads, **settings)
    full = MultiHeadAttention(4, **settings)
    inputs, mask = _inputs(), _causal()
    for layer in (grouped, full):
        _attend(layer, inputs, mask)
    for name in ("query_projection", "output_projection", "query_norm"):
        getattr(full, name).set_weights(getattr(grouped, name).get_weights())
    full.key_norm.set_weights(grouped.key_norm.get_weights())
    for name in ("key_projection", "value_projection"):
        (kernel,) = getattr(grouped, name).get_weights()
        kernel = kernel.reshape(WIDTH, num_kv_heads, HEAD_DIM)
        kernel = np.repeat(kernel, 4 // num_kv_heads, axis=1)
        getattr(full, name).set_weights([kernel.reshape(WIDTH, -1)])
    np.testing.assert_allclose(
        _attend(grouped, inputs, mask)[0],
        _attend(full, inputs, mask)[0],
        atol=1e-6,
    )


def test_multi_query_attention_keeps_one_key_head():
    layer = MultiHeadAttention(4, num_kv_heads=1, head_dim=HEAD_DIM)
    output, keys, _ = _attend(layer, _inputs(), _causal())
    assert output.shape == (BATCH, LENGTH, WIDTH)
    assert keys.shape == (BATCH, 1, LENGTH, HEAD_DIM)


def test_heads_must_share_evenly():
    with pytest.raises(ValueError, match="num_heads=4, num_kv_heads=3"):
        MultiHeadAttention(4, num_kv_heads=3, head_dim=HEAD_DIM)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_fully_masked_row_gives_zeros(policy):
    layer = MultiHeadAttention(2, head_dim=HEAD_DIM, dtype=policy)
    mask = np.array(_causal())
    mask[0, 3] = False
    outputs = layer(_inputs(), attention_mask=ops.array(mask))
    output = ops.convert_to_numpy(ops.cast(outputs[0], "float32"))
    assert not output[0, 3].any()
    assert output[0, 2].any()
    assert output[1, 3].any()


def test_a_fully_masked_row_has_finite_gradients():
    layer = MultiHeadAttention(2, head_dim=HEAD_DIM, qk_norm=True)
    inputs = tf.Variable(_inputs())
    with tf.GradientTape() as tape:
        output, _, _ = layer(
            inputs, attention_mask=tf.zeros((BATCH, LENGTH, LENGTH), tf.bool)
        )
        loss = tf.reduce_sum(output**2)
    for gradient in tape.gradient(loss, [inputs, *layer.trainable_weights]):
        assert np.isfinite(gradient).all()


def test_a_masked_key_changes_nothing():
    layer = MultiHeadAttention(2, head_dim=HEAD_DIM, rotary_base=100.0)
    mask = np.array(_causal())
    mask[:, :, 2] = False
    inputs = np.array(_inputs())
    before = _attend(layer, ops.array(inputs), ops.array(mask))[0]
    inputs[:, 2] += 100.0
    after = _attend(layer, ops.array(inputs), ops.array(mask))[0]
    others = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(after[:, others], before[:, others])


@pytest.mark.parametrize("length", [4, 8, 10])
def test_leaving_out_later_keys_changes_nothing(length, monkeypatch):
    # Two segments, and padding at the end.
    segment_ids = np.repeat([1, 2, 0], [length // 2, length // 2 - 1, 1])
    same = segment_ids[:, None] == segment_ids[None]
    mask = np.tril(same & (segment_ids[:, None] > 0))
    mask = ops.array(np.broadcast_to(mask, (BATCH, length, length)))
    layer = MultiHeadAttention(
        2, num_kv_heads=1, head_dim=HEAD_DIM, rotary_base=100.0
    )
    inputs = _inputs(length=length)

    def outputs_and_gradients(is_causal):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(
                inputs,
                attention_mask=mask,
                positions=_positions(length),
                is_causal=is_causal,
            )[0]
            loss = ops.sum(ops.sin(outputs))
        watched = [inputs, *(v.value for v in layer.trainable_variables)]
        return [outputs, *tape.gradient(loss, watched)]

    expected = outputs_and_gradients(False)
    monkeypatch.setattr(attention, "BLOCK_LENGTH", 4)
    actual = outputs_and_gradients(True)
    for value, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(value, other, atol=1e-5)


def test_later_keys_are_left_out(monkeypatch):
    # A mask that lets all see all breaks the promise, and the later half is
    # not seen all the same.
    monkeypatch.setattr(attention, "BLOCK_LENGTH", LENGTH // 2)
    layer = MultiHeadAttention(2, head_dim=HEAD_DIM)
    inputs, mask = _inputs(), ops.ones((BATCH, LENGTH, LENGTH), "bool")
    changed = ops.slice_update(
        inputs, (0, LENGTH // 2, 0), _inputs(1)[:, LENGTH // 2 :]
    )
    first = _attend(layer, inputs, mask, is_causal=True)[0]
    second = _attend(layer, changed, mask, is_causal=True)[0]
    np.testing.assert_array_equal(
        first[:, : LENGTH // 2], second[:, : LENGTH // 2]
    )
    assert np.abs(first - second).max() > 0.01


def test_token_by_token_over_a_cache_equals_all_at_once():
    layer = MultiHeadAttention(
        4, num_kv_heads=2, head_dim=HEAD_DIM, rotary_base=100.0, qk_norm=True
    )
    inputs = _inputs()
    whole, all_keys, all_values = _attend(layer, inputs, _causal())
    cache = allocate_cache(
        1,
        batch_size=BATCH,
        num_slots=LENGTH + 2,
        num_kv_heads=2,
        head_dim=HEAD_DIM,
        dtype="float32",
    )
    keys, values = cache.keys[0], cache.values[0]
    for step in range(LENGTH):
        mask = np.zeros((BATCH, 1, LENGTH + 2), bool)
        mask[:, :, : step + 1] = True
        positions = _positions()[:, step : step + 1]
        output, keys, values = layer(
            inputs[:, step : step + 1],
            attention_mask=ops.array(mask),
            positions=positions,
            keys=keys,
            values=values,
            write=slot_writer(keys, positions),
        )
        np.testing.assert_allclose(output[:, 0], whole[:, step], atol=1e-6)
    np.testing.assert_allclose(keys[:, :, :LENGTH], all_keys, atol=1e-6)
    np.testing.assert_allclose(values[:, :, :LENGTH], all_values, atol=1e-6)
    assert not np.any(keys[:, :, LENGTH:])


def test_bfloat16_stays_near_float32():
    settings = {"head_dim": HEAD_DIM, "rotary_base": 100.0, "qk_norm": True}
    exact = MultiHeadAttention(2, **settings)
    mixed = MultiHeadAttention(2, dtype="mixed_bfloat16", **settings)
    inputs, mask = _inputs(), _causal()
    expected = _attend(exact, inputs, mask)[0]
    _attend(mixed, inputs, mask)
    mixed.set_weights(exact.get_weights())
    output, keys, _ = mixed(inputs, attention_mask=mask, positions=_positions())
    assert output.dtype == keys.dtype == "bfloat16"
    # bfloat16 has 8 significant bits, and a few roundings add up.
    np.testing.assert_allclose(
        ops.cast(output, "float32"), expected, atol=0.03, rtol=0.03
    )


def test_query_key_norm_makes_scores_blind_to_scale():
    layer = MultiHeadAttention(2, head_dim=HEAD_DIM, qk_norm=True)
    inputs = _inputs()
    _attend(layer, inputs, _causal())
    value = layer.value_projection.get_weights()
    before = _attend(layer, inputs, _causal())[0]
    for name in ("query_projection", "key_projection"):
        projection = getattr(layer, name)
        projection.set_weights([w * 7 for w in projection.get_weights()])
    layer.value_projection.set_weights(value)
    after = _attend(layer, inputs, _causal())[0]
    np.testing.assert_allclose(after, before, atol=1e-4)


def test_kernels_are_matrices_and_start_unequal():
    layer = MultiHeadAttention(2, head_dim=HEAD_DIM)
    layer.build((None, None, WIDTH))
    assert all(len(weight.shape) == 2 for weight in layer.weights)
    kernels = [
        projection.get_weights()[0]
        for projection in (
            layer.query_projection,
            layer.key_projection,
            layer.value_projection,
        )
    ]
    assert not np.allclose(kernels[0], kernels[1])
    assert not np.allclose(kernels[1], kernels[2])


def test_the_layer_can_be_part_of_a_functional_model():
    hidden = keras.Input((LENGTH, WIDTH))
    mask = keras.Input((LENGTH, LENGTH), dtype="bool")
    output, keys, _ = MultiHeadAttention(2, head_dim=HEAD_DIM)(
        hidden, attention_mask=mask
    )
    assert output.shape[-2:] == (LENGTH, WIDTH)
    assert keys.shape[-2:] == (LENGTH, HEAD_DIM)


def test_no_mask_is_plain_causal_rows():
    attention = MultiHeadAttention(2, head_dim=4)
    hidden_states = keras.random.normal((2, 5, 8), seed=0)
    causal = np.tril(np.ones((2, 5, 5), bool))
    expected, *_ = attention(hidden_states, attention_mask=causal)
    received, *_ = attention(hidden_states, attention_mask=None)
    np.testing.assert_allclose(received, expected, atol=1e-6)
