import json
import math

import keras
import numpy as np
import pytest
from keras import ops

from kerasgpt.training.schedules import WarmupStableDecay, build_schedule


def _values(schedule, steps):
    return [float(schedule(step)) for step in steps]


def _wsd(**changes):
    settings = {"total_steps": 100, "warmup_steps": 10, "decay_steps": 20}
    return WarmupStableDecay(2.0, **{**settings, **changes})


def test_the_rate_rises_stays_and_falls():
    values = _values(_wsd(), [0, 4, 9, 10, 50, 79, 80, 90, 99, 100])
    expected = [0.2, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 0.1, 0.0]
    assert values == pytest.approx(expected, abs=1e-6)


def test_the_rate_ends_at_its_fraction_and_stays_there():
    schedule = _wsd(final_fraction=0.1)
    values = _values(schedule, [80, 90, 100, 150])
    assert values == pytest.approx([2.0, 1.1, 0.2, 0.2], abs=1e-6)


def test_no_step_has_rate_zero_before_the_end():
    values = _values(_wsd(), range(100))
    assert min(values) > 0
    assert max(values) == 2.0
    assert np.argmax(np.diff(values) < 0) == 80


def test_short_runs_have_a_rate_too():
    for total in (1, 2, 3):
        schedule = build_schedule(
            "wsd",
            1.0,
            total_steps=total,
            warmup_fraction=0.1,
            decay_fraction=0.2,
            final_fraction=0.0,
        )
        assert min(_values(schedule, range(total))) > 0


def test_fractions_become_steps():
    schedule = build_schedule(
        "wsd",
        2.0,
        total_steps=100,
        warmup_fraction=0.1,
        decay_fraction=0.2,
        final_fraction=0.1,
    )
    assert schedule.get_config() == {
        "peak_learning_rate": 2.0,
        "total_steps": 100,
        "warmup_steps": 10,
        "decay_steps": 20,
        "final_fraction": 0.1,
    }


def test_the_cosine_rises_and_falls_like_one():
    schedule = build_schedule(
        "cosine",
        2.0,
        total_steps=110,
        warmup_fraction=10 / 110,
        decay_fraction=0.2,
        final_fraction=0.1,
    )
    assert float(schedule(0)) == pytest.approx(0.2)
    assert float(schedule(10)) == pytest.approx(2.0)
    for step in (35, 60, 85, 110):
        share = 0.5 * (1 + math.cos(math.pi * (step - 10) / 100))
        expected = 2.0 * (0.9 * share + 0.1)
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match=r"schedule must be .*'linear'"):
        build_schedule(
            "linear",
            1.0,
            total_steps=1,
            warmup_fraction=0,
            decay_fraction=0,
            final_fraction=0,
        )


def test_the_schedule_survives_json():
    schedule = _wsd(final_fraction=0.1)
    text = json.dumps(keras.saving.serialize_keras_object(schedule))
    rebuilt = keras.saving.deserialize_keras_object(json.loads(text))
    steps = range(0, 110, 7)
    assert _values(rebuilt, steps) == _values(schedule, steps)


def test_a_step_may_be_a_tensor_of_any_integer_type():
    for dtype in ("int32", "int64"):
        assert float(_wsd()(ops.array(4, dtype))) == pytest.approx(1.0)
