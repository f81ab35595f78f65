import json

import keras
import numpy as np
import pytest
from keras import ops

from kerasgpt.evaluation.metrics import BitsPerByte

LN_2 = float(np.log(2))


def _update(metric, losses, targets, weights):
    metric.update_state(
        ops.array(losses, "float32"),
        ops.array(targets, "int32"),
        ops.array(weights, "float32"),
    )


def test_bits_over_bytes_worked_by_hand():
    # 3 + 1 + 2 bits over 2 + 4 + 4 bytes.
    metric = BitsPerByte([0, 2, 4])
    _update(metric, [[3 * LN_2, LN_2, 2 * LN_2]], [[1, 2, 2]], [[1, 1, 1]])
    assert float(metric.result()) == pytest.approx(0.6)


def test_control_tokens_cost_bits_and_bring_no_bytes():
    metric = BitsPerByte([0, 2])
    _update(metric, [[LN_2, LN_2]], [[0, 1]], [[1, 1]])
    assert float(metric.result()) == pytest.approx(2 / 2)


def test_tokens_without_weight_do_not_exist():
    metric = BitsPerByte([0, 2])
    _update(
        metric, [[LN_2, 99.0], [99.0, LN_2]], [[1, 1]] * 2, [[1, 0], [0, 1]]
    )
    assert float(metric.result()) == pytest.approx(2 / 4)


def test_batches_add_up_and_a_reset_forgets():
    metric = BitsPerByte([1, 3])
    _update(metric, [[LN_2]], [[0]], [[1]])
    _update(metric, [[3 * LN_2]], [[1]], [[1]])
    assert float(metric.result()) == pytest.approx(4 / 4)
    metric.reset_state()
    assert float(metric.result()) == 0.0
    _update(metric, [[5 * LN_2]], [[0]], [[1]])
    assert float(metric.result()) == pytest.approx(5.0)


def test_an_even_guess_over_bytes_costs_eight_bits():
    metric = BitsPerByte([1] * 256)
    losses = np.full((2, 10), np.log(256))
    _update(metric, losses, np.arange(20).reshape(2, 10), np.ones((2, 10)))
    assert float(metric.result()) == pytest.approx(8.0, rel=1e-5)


def test_the_metric_survives_json():
    metric = BitsPerByte([0, 2, 4], name="cost")
    text = json.dumps(keras.saving.serialize_keras_object(metric))
    rebuilt = keras.saving.deserialize_keras_object(json.loads(text))
    assert rebuilt.name == "cost"
    assert rebuilt.token_bytes == [0, 2, 4]
