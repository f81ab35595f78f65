import keras
import numpy as np
import pytest
from keras import ops

from kerasgpt.layers.rotary import RotaryEmbedding


def _heads(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def _turn(heads, positions, base=10000.0):
    return ops.convert_to_numpy(
        RotaryEmbedding(base)(ops.array(heads), ops.array(positions))
    )


def test_turns_follow_the_formula():
    heads, positions = _heads(1, 3, 2, 6), np.array([[4, 0, 9]])
    turned = _turn(heads, positions, base=100.0)
    for place, position in enumerate(positions[0]):
        for i in range(3):
            angle = position * 100.0 ** (-2 * i / 6)
            turn = complex(np.cos(angle), np.sin(angle))
            pair = heads[0, place, :, i] + 1j * heads[0, place, :, i + 3]
            expected = pair * turn
            actual = turned[0, place, :, i] + 1j * turned[0, place, :, i + 3]
            np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_position_zero_is_not_turned_and_lengths_stay():
    heads = _heads(2, 3, 2, 8)
    zero = np.zeros((2, 3), int)
    np.testing.assert_array_equal(_turn(heads, zero), heads)
    turned = _turn(heads, zero + 77)
    np.testing.assert_allclose(
        np.linalg.norm(turned, axis=-1),
        np.linalg.norm(heads, axis=-1),
        rtol=1e-5,
    )


def test_a_score_depends_on_the_distance_only():
    query, key = _heads(1, 1, 1, 8), _heads(2, 1, 1, 8)[1:]

    def score(query_position, key_position):
        return np.sum(
            _turn(query, [[query_position]]) * _turn(key, [[key_position]])
        )

    # Angles near 100 carry a float32 error of about 1e-5.
    assert score(5, 2) == pytest.approx(score(105, 102), abs=1e-4)
    assert score(5, 2) != pytest.approx(score(5, 3), abs=1e-2)


def test_a_packed_row_restarts_its_positions():
    heads = _heads(1, 2, 2, 8)
    packed = np.concatenate([heads, heads], axis=1)
    turned = _turn(packed, [[0, 1, 0, 1]])
    np.testing.assert_array_equal(turned[:, :2], turned[:, 2:])


def test_angles_are_float32_under_bfloat16():
    # 1001 is no bfloat16: angles computed in it would be those of 1000.
    layer = RotaryEmbedding(dtype="bfloat16")
    heads = ops.cast(ops.array(_heads(1, 1, 1, 8)), "bfloat16")
    turned = layer(heads, ops.array([[1001]]))
    assert turned.dtype == "bfloat16"
    exact = _turn(ops.convert_to_numpy(ops.cast(heads, "float32")), [[1001]])
    np.testing.assert_allclose(
        ops.convert_to_numpy(ops.cast(turned, "float32")), exact, atol=0.03
    )


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="head_dim must be even"):
        RotaryEmbedding()(keras.Input((3, 2, 5)), keras.Input((3,)))
