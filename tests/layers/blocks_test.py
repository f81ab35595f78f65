import keras
import numpy as np
import pytest
from keras import ops

from kerasgpt.layers.blocks import DecoderBlock, build_norm

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
