import numpy as np
import pytest
from keras import ops

from kerasgpt.training.losses import token_losses


def test_the_loss_of_a_token_worked_by_hand():
    # Logits (ln 3, 0) give the probabilities 3/4 and 1/4.
    logits = ops.array([[[np.log(3.0), 0.0], [np.log(3.0), 0.0]]])
    losses = token_losses(logits, ops.array([[0, 1]]))
    expected = [[np.log(4 / 3), np.log(4)]]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_losses_are_the_log_softmax_and_are_not_reduced():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 7)).astype("float32")
    targets = rng.integers(0, 7, (3, 4))
    shifted = logits - logits.max(-1, keepdims=True)
    expected = np.log(np.exp(shifted).sum(-1)) - np.take_along_axis(
        shifted, targets[..., None], -1
    ).squeeze(-1)
    losses = token_losses(ops.array(logits), ops.array(targets))
    assert losses.shape == (3, 4)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)


def test_large_logits_stay_finite():
    losses = token_losses(ops.array([[[1e4, 0.0]]]), ops.array([[1]]))
    assert float(losses[0, 0]) == pytest.approx(1e4)


def test_losses_are_float32_whatever_the_logits_are():
    logits = ops.cast(ops.zeros((1, 1, 3)), "bfloat16")
    losses = token_losses(logits, ops.array([[1]]))
    assert losses.dtype == "float32"
    assert float(losses[0, 0]) == pytest.approx(np.log(3), rel=1e-6)
