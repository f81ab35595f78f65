import numpy as np
import pytest

from kerasgpt.checkpoints.quantized import (
    SCALE_SUFFIX,
    dequantize,
    quantize_weights,
)

NAMES = ("a/kernel", "a/embeddings", "a/reverse_embeddings")


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


@pytest.mark.parametrize("name", NAMES)
def test_no_weight_is_off_by_more_than_half_a_step(name):
    array = draw(30, 20)
    found = quantize_weights({name: array})
    scale = found[name + SCALE_SUFFIX]
    # A factor an output: of a table, its tokens are what is read and written.
    assert scale.shape == ((30, 1) if name == "a/embeddings" else (1, 20))
    assert found[name].dtype == np.int8
    error = np.abs(dequantize(found[name], scale) - array)
    assert (error <= scale / 2 * 1.001).all()
    assert error.max() > 0


def test_one_large_channel_does_not_spoil_the_others():
    array = draw(30, 20)
    array[:, 3] *= 1000
    found = quantize_weights({"a/kernel": array})
    error = dequantize(found["a/kernel"], found["a/kernel.scale"]) - array
    assert np.abs(np.delete(error, 3, axis=1)).max() < 0.02


def test_a_channel_of_zeros_stays_zero():
    found = quantize_weights({"a/kernel": np.zeros((3, 2), "float32")})
    again = dequantize(found["a/kernel"], found["a/kernel.scale"])
    np.testing.assert_array_equal(again, np.zeros((3, 2)))
    assert again.dtype == np.float32


def test_what_was_rounded_is_rounded_to_itself():
    once = quantize_weights({"a/kernel": draw(30, 20)})
    array = dequantize(once["a/kernel"], once["a/kernel.scale"])
    twice = quantize_weights({"a/kernel": array})
    np.testing.assert_array_equal(twice["a/kernel"], once["a/kernel"])


def test_vectors_and_random_states_stay():
    weights = {
        "a/scale": draw(4),
        "seed_generator_state_0": np.array([[1, 2]], "uint32"),
    }
    found = quantize_weights(weights)
    assert set(found) == set(weights)
    assert all(found[name] is weights[name] for name in weights)
