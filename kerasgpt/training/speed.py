"""Owns how long a train step takes on this machine. Not: its memory."""

import dataclasses
import statistics
import time

import numpy as np
import tensorflow as tf

from kerasgpt.training.distribution import (
    build_strategy,
    resolve_jit_compile,
)
from kerasgpt.training.memory import num_rows
from kerasgpt.training.optimizers import build_optimizer
from kerasgpt.training.stage import build_model
from kerasgpt.training.step import TrainStep

# A timed step does no more than this: a second or two on two cores.
CALIBRATION_FLOPS = 2e11
# Each model is timed so often, and on until so many seconds are used.
CALIBRATION_CALLS, CALIBRATION_SECONDS = 3, 3.0


@dataclasses.dataclass(frozen=True)
class Speed:
    """Seconds of a train step on this machine, and to compile it first."""

    step_seconds: float
    compile_seconds: float

    def seconds(self, steps):
        """Returns the seconds of a stage of so many steps."""
        return self.compile_seconds + steps * self.step_seconds


class Calibration:
    """Real train steps of a shape with one block and with two, compiled.

    What the second block adds is added for each that is left. Takes some ten
    seconds, most of it to compile.

    Args:
        model_config: GPTConfig.
        train_config: TrainConfig.
    """

    def __init__(self, model_config, train_config):
        small = [
            dataclasses.replace(model_config, num_layers=number)
            for number in (1, 2)
        ]
        rows = num_rows(model_config, train_config)
        row_flops = (
            small[-1].training_flops_per_token * model_config.context_length
        )
        timed_rows = max(1, min(rows, int(CALIBRATION_FLOPS / row_flops)))
        self._scale = rows / timed_rows
        self._more_blocks = model_config.num_layers - 1
        self._calls = [
            train_call(config, train_config, timed_rows) for config in small
        ]
        self._first_seconds = self._seconds()

    def measure(self):
        """Returns the Speed of the whole model, now."""
        rounds = []
        end = time.perf_counter() + CALIBRATION_SECONDS
        while len(rounds) < CALIBRATION_CALLS or time.perf_counter() < end:
            rounds.append(self._seconds())
        step_seconds = [
            statistics.median(column) for column in zip(*rounds, strict=True)
        ]
        compile_seconds = [
            first - step
            for first, step in zip(
                self._first_seconds, step_seconds, strict=True
            )
        ]
        return Speed(
            step_seconds=self._scale * self._whole(*step_seconds),
            compile_seconds=self._whole(*compile_seconds),
        )

    def _seconds(self):
        """Returns seconds of a step with one block, and with two."""
        # In turn, so that noise of the machine hits both.
        return [_seconds(call) for call in self._calls]

    def _whole(self, one, two):
        return one + self._more_blocks * max(0.0, two - one)


def measure_speed(model_config, train_config):
    """Returns the Speed of a model trained so, see `Calibration`."""
    return Calibration(model_config, train_config).measure()


def train_call(model_config, train_config, count):
    """Returns a function that runs a train step and returns its loss.

    Its first call compiles.

    Args:
        model_config: GPTConfig.
        train_config: TrainConfig.
        count: int, rows of the batch.
    """
    strategy = build_strategy("none")
    model = build_model(model_config, train_config, strategy)
    step = TrainStep(
        model,
        clip_norm=train_config.clip_norm,
        token_bytes=[1] * model_config.vocabulary_size,
    )
    step.build()
    step.compile(
        optimizer=build_optimizer(
            train_config.optimizer,
            train_config.peak_learning_rate(model_config.model_dim),
            weight_decay=train_config.weight_decay,
        ),
        jit_compile=resolve_jit_compile(train_config.jit_compile, strategy),
    )
    step.make_train_function()
    shape = (count, model_config.context_length)
    token_ids = np.random.default_rng(0).integers(
        model_config.vocabulary_size, size=shape, dtype=np.int32
    )
    inputs = {
        "token_ids": token_ids,
        "positions": np.broadcast_to(
            np.arange(shape[1], dtype=np.int32), shape
        ),
        "segment_ids": np.ones(shape, np.int32),
    }
    batch = (inputs, token_ids, np.ones(shape, np.float32))
    batches = iter(tf.data.Dataset.from_tensors(batch).repeat())
    return lambda: float(step.train_function(batches)["loss"])


def _seconds(function):
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
