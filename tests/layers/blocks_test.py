import keras
import numpy as np
import pytest
from keras import ops

from kerasgpt.layers.blocks import (
    CrossDecoderBlock,
    DecoderBlock,
    EncoderBlock,
    build_norm,
)

SETTINGS = {"num_heads": 2, "head_dim": 4, "inner_dim": 16}


def _inputs():
    rng = np.random.default_rng(0)
    return ops.array(rng.normal(size=(2, 5, 8)), "float32")


def _causal():
    return ops.array(np.broadcast_to(np.tril(np.ones((5, 5), bool)), (2, 5, 5)))


def test_both_branches_are_added_to_their_normalised_input():
    block = DecoderBlock(**SETTINGS, activation="swiglu")
    x, mask = _inputs(), _causal()
    output, keys, values = block(x, attention_mask=mask)
    attended, key, value = block.attention(
        block.attention_norm(x), attention_mask=mask
    )
    x = x + attended
    expected = x + block.feed_forward(block.feed_forward_norm(x))
    np.testing.assert_allclose(output, expected, atol=1e-6)
    np.testing.assert_allclose(keys, key, atol=1e-6)
    np.testing.assert_allclose(values, value, atol=1e-6)


def test_silent_outputs_leave_the_residual_stream_alone():
    block = DecoderBlock(**SETTINGS, output_initializer="zeros")
    x = _inputs()
    output, _, _ = block(x, attention_mask=_causal())
    np.testing.assert_array_equal(output, x)


def test_dropout_acts_in_training_only():
    block = DecoderBlock(**SETTINGS, dropout_rate=0.5)
    x, mask = _inputs(), _causal()
    still, _, _ = block(x, attention_mask=mask)
    again, _, _ = block(x, attention_mask=mask, training=False)
    np.testing.assert_array_equal(still, again)
    first, _, _ = block(x, attention_mask=mask, training=True)
    second, _, _ = block(x, attention_mask=mask, training=True)
    assert not np.allclose(first, second)


def test_branches_do_not_start_with_equal_kernels():
    block = DecoderBlock(**{**SETTINGS, "inner_dim": 8}, activation="swiglu")
    block(_inputs(), attention_mask=_causal())
    kernels = [w.numpy() for w in block.weights if w.shape == (8, 8)]
    assert len(kernels) == 7
    for index, one in enumerate(kernels):
        for other in kernels[index + 1 :]:
            assert not np.allclose(one, other)


def test_biases_are_everywhere_or_nowhere():
    for use_bias, count in ((False, 0), (True, 4 + 3)):
        block = DecoderBlock(**SETTINGS, activation="swiglu", use_bias=use_bias)
        block(_inputs(), attention_mask=_causal())
        biases = [w for w in block.weights if w.name == "bias"]
        assert len(biases) == count


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("layer", keras.layers.LayerNormalization),
        ("rms", keras.layers.RMSNormalization),
    ],
)
def test_norms_have_their_kind_epsilon_and_name(kind, cls):
    norm = build_norm(kind, epsilon=0.25, name="final", dtype="float32")
    assert type(norm) is cls
    assert norm.epsilon == 0.25
    assert norm.name == "final"


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match=r"norm must be .*'batch'"):
        build_norm("batch", epsilon=1e-6, name="x")


def test_an_encoder_block_is_a_decoder_block_that_sees_all():
    decoder = DecoderBlock(**SETTINGS)
    encoder = EncoderBlock(**SETTINGS)
    x, mask = _inputs(), np.ones((2, 5, 5), bool)
    expected, _, _ = decoder(x, attention_mask=mask)
    encoder(x, attention_mask=mask)
    encoder.set_weights(decoder.get_weights())
    np.testing.assert_allclose(encoder(x, attention_mask=mask), expected)


def _cross_block(**changes):
    block = CrossDecoderBlock(**{**SETTINGS, **changes})
    source = ops.convert_to_numpy(_inputs())[:, ::-2].copy()
    mask = np.ones((2, 5, 3), bool)
    block(_inputs(), _causal(), source=source, source_mask=mask)
    return block, source, mask


@pytest.mark.parametrize("norm_order", ["pre", "post"])
def test_a_cross_block_reads_the_visible_source_alone(norm_order):
    block, source, mask = _cross_block(norm_order=norm_order)
    mask[:, :, 2] = False
    output, *_ = block(_inputs(), _causal(), source=source, source_mask=mask)
    unseen, seen = source.copy(), source.copy()
    unseen[:, 2] += 5
    seen[:, 0] += 5
    same, *_ = block(_inputs(), _causal(), source=unseen, source_mask=mask)
    other, *_ = block(_inputs(), _causal(), source=seen, source_mask=mask)
    np.testing.assert_allclose(same, output, atol=1e-6)
    assert np.abs(other - output).max(axis=-1).min() > 1e-4


def test_keys_of_the_source_are_worked_out_once():
    block, source, mask = _cross_block()
    output, _, _, keys, values = block(
        _inputs(), _causal(), source=source, source_mask=mask
    )
    again, *_ = block(
        _inputs(),
        _causal(),
        source_mask=mask,
        source_keys=keys,
        source_values=values,
    )
    np.testing.assert_allclose(again, output, atol=1e-6)
