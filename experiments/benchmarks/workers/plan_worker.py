"""Predicts what training will take, or trains and so shows what it takes.

Settings: job, "predict" or "measure"; vocabulary_size, model and train as in a
run's config; steps of one repetition.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

import numpy as np

from experiments.benchmarks.workers.protocol import (
    repeat,
    serve,
    timed,
    versions,
)
from kerasgpt.data.packing import pack
from kerasgpt.data.pipelines import build_training_dataset
from kerasgpt.models import GPTCausalLM, ModelConfig
from kerasgpt.training.memory import memory_parts, num_rows, stage_bytes
from kerasgpt.training.optimizers import build_optimizer
from kerasgpt.training.speed import Calibration
from kerasgpt.training.stage import TrainConfig
from kerasgpt.training.step import TrainStep


def predict(settings, model_config, train_config):
    """What the preflight says, without ever building the whole model."""
    seconds, calibration = timed(
        lambda: Calibration(model_config, train_config)
    )
    parts = memory_parts(model_config, train_config)
    facts = {
        "parameters": model_config.num_parameters,
        "memory": parts,
        "memory_bytes": stage_bytes(parts),
        "build_seconds": seconds,
    }

    def run(_):
        seconds, speed = timed(calibration.measure)
        return {
            "seconds": [settings["steps"] * speed.step_seconds],
            "compile_seconds": speed.compile_seconds,
            "measure_seconds": seconds,
        }

    return facts, run


def measure(settings, model_config, train_config):
    """Real steps of the whole model on packed rows, as a stage runs them."""
    steps, batch_size = settings["steps"], num_rows(model_config, train_config)
    count = steps * batch_size * model_config.context_length + 1
    token_ids = np.random.default_rng(1).integers(
        model_config.vocabulary_size, size=count
    )
    rows = pack(
        token_ids.astype(np.uint16),
        np.ones(count, np.uint8),
        np.array([0, count]),
        row_length=model_config.context_length,
    )
    dataset = build_training_dataset(
        rows, batch_size=batch_size, seed=0, start_step=0, num_steps=steps
    )
    model = GPTCausalLM(model_config, name="gpt")
    model.build()
    step = TrainStep(model, token_bytes=[1] * model_config.vocabulary_size)
    step.build()
    optimizer = build_optimizer(
        train_config.optimizer,
        train_config.peak_learning_rate(model_config.model_dim),
        weight_decay=train_config.weight_decay,
    )
    optimizer.build(model.trainable_variables)
    step.compile(
        optimizer=optimizer, jit_compile=True, steps_per_execution=steps
    )

    def epoch():
        step.fit(dataset, verbose=0, shuffle=False)

    (first, _), (second, _) = timed(epoch), timed(epoch)
    facts = {
        "compile_seconds": first - second,
        "versions": versions("keras", "tensorflow"),
    }
    return facts, repeat(epoch)


JOBS = {"predict": predict, "measure": measure}


def build(settings):
    model_config = ModelConfig.from_dict(settings["model"]).build_config(
        vocabulary_size=settings["vocabulary_size"], context_length=256
    )
    train_config = TrainConfig.from_dict(settings["train"])
    return JOBS[settings["job"]](settings, model_config, train_config)


if __name__ == "__main__":
    serve(build)
