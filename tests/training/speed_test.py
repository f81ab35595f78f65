import itertools

import pytest

from kerasgpt.models import GPTConfig
from kerasgpt.training import speed
from kerasgpt.training.speed import (
    Calibration,
    Speed,
    measure_speed,
    train_call,
)
from kerasgpt.training.stage import TrainConfig
from tests.descriptors import tiny_config


@pytest.fixture
def built(monkeypatch):
    """Makes n blocks take 1 + n seconds a row, and 10 n more to compile.

    Returns the list of (blocks, rows) that were built.
    """
    built = []

    def call(model_config, train_config, count):
        built.append((model_config.num_layers, count))
        seconds = count * (1.0 + model_config.num_layers)
        first = seconds + 10.0 * model_config.num_layers
        return itertools.chain([first], itertools.repeat(seconds))

    monkeypatch.setattr(speed, "train_call", call)
    monkeypatch.setattr(speed, "_seconds", next)
    monkeypatch.setattr(speed, "CALIBRATION_SECONDS", 0.0)
    return built


@pytest.mark.parametrize("depth", [1, 2, 12])
def test_each_further_block_takes_what_the_second_took(built, depth):
    config = GPTConfig.from_depth(depth, context_length=64)
    found = measure_speed(config, TrainConfig(batch_tokens=128))
    assert built == [(1, 2), (2, 2)]
    assert found.step_seconds == pytest.approx(2 * (1 + depth))
    assert found.compile_seconds == pytest.approx(10 * depth)


def test_of_a_large_batch_as_much_as_is_quick_is_timed(built):
    config = GPTConfig.from_depth(4)
    rows = 2**20
    train = TrainConfig(batch_tokens=rows * config.context_length)
    found = measure_speed(config, train)
    (_, timed_rows), _ = built
    assert 1 <= timed_rows < rows
    assert found.step_seconds == pytest.approx(rows * 5)


def test_a_calibration_can_be_asked_again(built):
    config = GPTConfig.from_depth(4, context_length=64)
    calibration = Calibration(config, TrainConfig(batch_tokens=128))
    assert calibration.measure() == calibration.measure()
    assert len(built) == 2


def test_a_stage_takes_its_steps_and_compiling():
    assert Speed(2.0, 5.0).seconds(3) == 11.0


def test_what_is_timed_trains():
    train = TrainConfig(optimizer="adamw", jit_compile=False, learning_rate=0.1)
    call = train_call(tiny_config(num_layers=1), train, 2)
    assert call() > call()
