import keras
import numpy as np
import pytest
from keras import ops

from kerasgpt.layers.recurrent import KINDS, RecurrentCell, RecurrentLayer

WIDTH, UNITS, LENGTH = 3, 4, 5
STOCK = {
    "rnn": keras.layers.SimpleRNN,
    "gru": keras.layers.GRU,
    "lstm": keras.layers.LSTM,
}
# Keras has z, r, n of a GRU and i, f, c, o of an LSTM.
ORDER_IN_KERAS = {"rnn": [0], "gru": [1, 0, 2], "lstm": [0, 1, 3, 2]}


def inputs(length=LENGTH, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, length, WIDTH)).astype("float32")


def ones(length=LENGTH):
    return np.ones((2, length, 2), "float32")


def build(kind):
    layer = RecurrentLayer(kind, UNITS)
    layer(inputs(), ones())
    rng = np.random.default_rng(1)
    layer.set_weights(
        [rng.normal(size=w.shape) * 0.7 for w in layer.get_weights()]
    )
    return layer


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_keras(kind):
    layer = build(kind)
    order = ORDER_IN_KERAS[kind]
    stock = STOCK[kind](UNITS, return_sequences=True)
    stock.build((None, None, WIDTH))

    def reordered(values):
        parts = np.split(np.asarray(values), len(order), axis=-1)
        return np.concatenate([parts[place] for place in order], axis=-1)

    kernels = [ops.convert_to_numpy(k) for k in layer.cell.recurrent_kernels]
    bias = reordered(layer.projection.bias)
    if kind == "gru":
        # Theirs has a second bias, of which ours keeps the candidate's part.
        second = np.zeros_like(bias)
        second[-UNITS:] = ops.convert_to_numpy(layer.cell.candidate_bias)
        bias = np.stack([bias, second])
    stock.set_weights(
        [
            reordered(layer.projection.kernel),
            reordered(np.concatenate(kernels, axis=1)),
            bias,
        ]
    )
    output, _ = layer(inputs(), ones())
    np.testing.assert_allclose(output, stock(inputs()), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_forgets_begins_anew(kind):
    layer = build(kind)
    kept = ones()
    kept[:, 2, 0] = 0
    output, _ = layer(inputs(), kept)
    alone, _ = layer(inputs()[:, 2:], ones(LENGTH - 2))
    np.testing.assert_allclose(output[:, 2:], alone, atol=1e-6)
    whole, _ = layer(inputs(), ones())
    assert np.abs(output[:, 2:] - whole[:, 2:]).max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_state(kind):
    layer = build(kind)
    kept = ones()
    kept[:, 3:, 1] = 0
    _, states = layer(inputs(), kept)
    _, expected = layer(inputs()[:, :3], ones(3))
    assert len(states) == KINDS[kind][1]
    for state, other in zip(states, expected, strict=True):
        np.testing.assert_allclose(state, other, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_may_be_read_in_parts(kind):
    layer = build(kind)
    whole, last = layer(inputs(), ones())
    first, states = layer(inputs()[:, :2], ones(2))
    second, states = layer(inputs()[:, 2:], ones(LENGTH - 2), states=states)
    joined = ops.concatenate([first, second], axis=1)
    np.testing.assert_allclose(joined, whole, atol=1e-6)
    for state, other in zip(states, last, strict=True):
        np.testing.assert_allclose(state, other, atol=1e-6)


def test_gates_begin_orthogonal_and_a_forget_gate_open():
    layer = RecurrentLayer("lstm", UNITS)
    layer(inputs(), ones())
    for kernel in layer.cell.recurrent_kernels:
        product = np.asarray(kernel) @ np.asarray(kernel).T
        np.testing.assert_allclose(product, np.eye(UNITS), atol=1e-5)
    bias = np.asarray(layer.projection.bias).reshape(4, UNITS)
    np.testing.assert_array_equal(bias[:, 0], [0, 1, 0, 0])
    for kind in ("rnn", "gru"):
        layer = RecurrentLayer(kind, UNITS)
        layer(inputs(), ones())
        assert not np.asarray(layer.projection.bias).any()


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"kind must be one of .*'tree'"):
        RecurrentCell("tree", 3)
