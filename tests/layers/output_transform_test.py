import keras
import numpy as np
import pytest

from kerasgpt.layers import OutputTransform


def test_each_token_has_a_bias_beside_the_product_with_its_row():
    layer = OutputTransform(3, activation="relu2", norm_epsilon=0.0)
    layer.build((None, None, 2))
    layer.dense.kernel.assign([[1.0, 0.0], [0.0, 3.0]])
    layer.dense.bias.assign([0.0, 1.0])
    layer.norm.beta.assign([0.0, 10.0])
    layer.bias.assign([5.0, 6.0, 7.0])
    hidden_states = layer(np.array([[[1.0, 1.0]]]))
    # (1, 4) squared is (1, 16), normalised (-1, 1), moved (-1, 11).
    np.testing.assert_allclose(hidden_states, [[[-1.0, 11.0, 1.0]]], atol=1e-5)
    table = keras.ops.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    logits = hidden_states @ keras.ops.transpose(layer.extend(table))
    np.testing.assert_allclose(logits, [[[4.0, 17.0, 17.0]]], atol=1e-5)


def test_an_activation_with_a_gate_is_refused():
    with pytest.raises(ValueError, match="without a gate; received 'swiglu'"):
        OutputTransform(3, activation="swiglu")
