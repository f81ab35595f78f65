import numpy as np
import pytest

from kerasgpt.checkpoints.quantized import (
    GROUP_LENGTH,
    SCALE_SUFFIX,
    dequantize,
    quantize_weights,
    stored_shapes,
)

NAMES = ("a/kernel", "a/embeddings", "a/reverse_embeddings")


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def round_trip(name, array, bits):
    """Returns an array as it comes back."""
    found = quantize_weights({name: array}, bits=bits)
    scale = found[name + SCALE_SUFFIX]
    return dequantize(name, found[name], scale, array.shape)


@pytest.mark.parametrize("name", NAMES)
def test_no_weight_is_off_by_more_than_half_a_step(name):
    array = draw(30, 20)
    found = quantize_weights({name: array})
    scale = found[name + SCALE_SUFFIX]
    # A factor an output: of a table, its tokens are what is read and written.
    assert scale.shape == ((30, 1) if name == "a/embeddings" else (1, 20))
    assert found[name].dtype == np.int8
    error = np.abs(dequantize(name, found[name], scale, array.shape) - array)
    assert (error <= scale / 2 * 1.001).all()
    assert error.max() > 0


def test_one_large_channel_does_not_spoil_the_others():
    array = draw(30, 20)
    array[:, 3] *= 1000
    error = round_trip("a/kernel", array, 8) - array
    assert np.abs(np.delete(error, 3, axis=1)).max() < 0.02


@pytest.mark.parametrize("bits", [8, 4])
def test_a_channel_of_zeros_stays_zero(bits):
    again = round_trip("a/kernel", np.zeros((3, 2), "float32"), bits)
    np.testing.assert_array_equal(again, np.zeros((3, 2)))
    assert again.dtype == np.float32


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", NAMES)
def test_what_was_rounded_is_rounded_to_itself(name, bits):
    once = round_trip(name, draw(70, 50), bits)
    np.testing.assert_allclose(round_trip(name, once, bits), once, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (32, 32), (65, 31)])
def test_weights_of_4_bits_come_back_in_their_places(name, shape):
    # Whole steps, of which each group has the farthest, so nothing is lost.
    array = np.random.default_rng(0).integers(-7, 8, shape).astype("float32")
    inputs = 1 if name == "a/embeddings" else 0
    np.moveaxis(array, inputs, 0)[::GROUP_LENGTH] = -8
    np.testing.assert_array_equal(round_trip(name, array, 4), array)
    # A group of the other sign has a factor below zero.
    np.testing.assert_array_equal(round_trip(name, -array, 4), -array)


@pytest.mark.parametrize("name", NAMES)
def test_no_weight_of_4_bits_is_off_by_more_than_a_step_of_its_group(name):
    array = draw(70, 50)
    error = np.abs(round_trip(name, array, 4) - array)
    rows = (error, array) if name == "a/embeddings" else (error.T, array.T)
    for start in range(0, rows[0].shape[1], GROUP_LENGTH):
        error, group = (one[:, start : start + GROUP_LENGTH] for one in rows)
        step = np.abs(group).max(axis=1, keepdims=True) / 8
        # Of the sign that the farthest has not, 7 steps are all there are.
        assert (error <= step * 1.01).all()
        assert (error <= step * 0.51).mean() > 0.97


def test_a_weight_too_small_for_its_factor_is_zero_and_spoils_no_other():
    array = np.full((40, 2), 1e-9, "float32")
    array[:, 1] = 1
    again = round_trip("a/kernel", array, 4)
    np.testing.assert_allclose(again, [[0, 1]] * 40)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_those_that_were_promised(name, bits):
    found = quantize_weights({name: draw(70, 51)}, bits=bits)
    kind = {8: "I8", 4: "U8"}[bits]
    shapes = {part: array.shape for part, array in found.items()}
    assert shapes == stored_shapes(name, (70, 51), kind)


def test_a_matrix_of_4_bits_is_less_than_a_seventh():
    found = quantize_weights({"a/kernel": draw(128, 64)}, bits=4)
    size = sum(array.nbytes for array in found.values())
    assert size == 128 * 64 * 4.5 / 8


@pytest.mark.parametrize("bits", [8, 4])
def test_vectors_and_random_states_stay(bits):
    weights = {
        "a/scale": draw(4),
        "seed_generator_state_0": np.array([[1, 2]], "uint32"),
    }
    found = quantize_weights(weights, bits=bits)
    assert set(found) == set(weights)
    assert all(found[name] is weights[name] for name in weights)
