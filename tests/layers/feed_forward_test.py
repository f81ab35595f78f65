import math

import numpy as np
import pytest
from keras import ops

from kerasgpt.layers.feed_forward import ACTIVATIONS, FeedForward


def _gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _gelu_tanh(x):
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + np.tanh(inner))


FORMULAS = {
    "gelu": lambda up, gate: _gelu(up),
    "gelu_tanh": lambda up, gate: _gelu_tanh(up),
    "relu2": lambda up, gate: np.maximum(up, 0) ** 2,
    "swiglu": lambda up, gate: gate / (1 + np.exp(-gate)) * up,
    "geglu": lambda up, gate: _gelu(gate) * up,
}


def test_every_activation_has_a_formula_here():
    assert set(FORMULAS) == set(ACTIVATIONS)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_formula_written_in_numpy(activation, use_bias):
    layer = FeedForward(
        6,
        activation=activation,
        use_bias=use_bias,
    )
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    layer.build(x.shape)
    rng = np.random.default_rng(1)
    layer.set_weights([rng.normal(size=w.shape) for w in layer.weights])

    def dense(projection, value):
        weights = projection.get_weights()
        return value @ weights[0] + (weights[1] if use_bias else 0)

    up = dense(layer.up, x)
    gate = dense(layer.gate, x) if ACTIVATIONS[activation][1] else None
    expected = dense(layer.down, FORMULAS[activation](up, gate))
    actual = ops.convert_to_numpy(layer(ops.array(x)))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_biases_are_built_on_request_only():
    for use_bias, count in ((False, 3), (True, 6)):
        layer = FeedForward(6, activation="swiglu", use_bias=use_bias)
        layer.build((None, None, 4))
        assert len(layer.weights) == count


def test_up_and_gate_do_not_start_equal():
    layer = FeedForward(6, activation="swiglu")
    layer.build((None, None, 4))
    up, gate = layer.up.get_weights()[0], layer.gate.get_weights()[0]
    assert not np.allclose(up, gate)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"activation must be .*'tanh'"):
        FeedForward(4, activation="tanh")
