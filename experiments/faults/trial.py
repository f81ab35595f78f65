"""Owns the run that faults are planted in, and what became of a trial.

Not: the faults.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import re
import signal
import sys
import time

import numpy as np

from kerasgpt.checkpoints import list_run_states
from kerasgpt.console import guard, quiet_libraries
from kerasgpt.data.packing import pack
from kerasgpt.models import GPTCausalLM, GPTConfig
from kerasgpt.tokenizers import ByteTokenizer
from kerasgpt.training.distribution import build_strategy
from kerasgpt.training.stage import TrainConfig, train

with quiet_libraries():
    import keras
    import tensorflow as tf


# A run of seconds that has all that a long one has: dropout, validations,
# checkpoints, several epochs.
LENGTH, SEED = 16, 3
TRAIN = TrainConfig(
    steps=24,
    batch_tokens=2 * LENGTH,
    optimizer="adamw",
    learning_rate=1e-2,
    evaluate_steps=4,
    log_steps=1,
    jit_compile=False,
    patience=99,
)
MODEL = GPTConfig(
    vocabulary_size=265,
    context_length=LENGTH,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    model_dim=16,
    dropout_rate=0.2,
)
TEXT = "to be, or not to be, that is the question: " * 16
# A trial whose fault came too late.
ENDED = "the run had ended"
# Loaded once by the process that all others are forked from.
PRELOADED = [
    "tensorflow",
    "keras",
    "kerasgpt.training.stage",
    "kerasgpt.serving.saved_model",
]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one trial.

    Attributes:
        seed: int.
        fault: str, what was done.
        lost: str, what was lost; empty = nothing.
        seconds: float, until a signal was obeyed.
        redone_steps: int, steps trained again.
    """

    seed: int
    fault: str
    lost: str = ""
    seconds: float = 0.0
    redone_steps: int = 0


@dataclasses.dataclass(frozen=True)
class Truth:
    """The undisturbed run, and how long it takes after its first line."""

    folder: pathlib.Path
    export: pathlib.Path
    seconds: float
    keras_folder: pathlib.Path
    keras_seconds: float


def tiny_rows():
    token_ids = np.array(ByteTokenizer().encode(TEXT))
    parts = {"train": token_ids[:480], "validation": token_ids[480:]}
    return {
        name: pack(
            part,
            np.ones(len(part), np.float32),
            np.array([0, len(part)]),
            row_length=LENGTH,
        )
        for name, part in parts.items()
    }


def build_model(config=MODEL):
    keras.utils.set_random_seed(SEED)
    model = GPTCausalLM(config, name="gpt")
    model.build()
    return model


def tiny_run(
    folder, *, rows=None, config=TRAIN, tell=lambda line: None, model=None
):
    """Trains in `folder` to the end, or goes on there."""
    return train(
        model or build_model(),
        ByteTokenizer(),
        rows or tiny_rows(),
        config,
        folder,
        name="run",
        seed=SEED,
        sample=lambda model: "",
        strategy=tf.distribute.get_strategy(),
        tell=tell,
    )


def told_path(folder):
    return pathlib.Path(f"{folder}.told")


def run_alone(folder, kill_at=0):
    """Is a process: trains, and may kill itself within a save."""
    count_file_operations(kill_at)

    def tell(line):
        with open(told_path(folder), "a") as file:
            file.write(f"{line}\n")

    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
        sys.exit(guard(lambda: tiny_run(folder, tell=tell)))


def run_split(folder, num_replicas, accumulate_steps, stop_after=0):
    """Is a process: trains on replicas, and may ask itself to stop.

    Without dropout, whose draws depend on how rows are split.
    """
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * num_replicas,
    )

    def tell(line):
        if line.startswith(f"run {stop_after}/{TRAIN.steps}  loss"):
            os.kill(os.getpid(), signal.SIGTERM)

    config = dataclasses.replace(
        TRAIN, batch_tokens=8 * LENGTH, accumulate_steps=accumulate_steps
    )
    strategy = build_strategy("none" if num_replicas == 1 else "mirrored")
    with (
        open(os.devnull, "w") as null,
        contextlib.redirect_stderr(null),
        strategy.scope(),
    ):
        model = build_model(dataclasses.replace(MODEL, dropout_rate=0.0))
        run = functools.partial(
            tiny_run, folder, config=config, model=model, tell=tell
        )
        sys.exit(guard(run))


def count_file_operations(kill_at):
    """Kills this process before its `kill_at`-th flush or rename; 0 = never."""
    count = 0

    def counted(operation, *arguments, **options):
        nonlocal count
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return operation(*arguments, **options)

    for name in ("fsync", "rename", "replace"):
        setattr(os, name, functools.partial(counted, getattr(os, name)))


def end_of(folder):
    """Returns a hash of all that a finished run leaves but for the times."""
    state = list_run_states(folder / "checkpoints")[-1]
    told = (folder / "metrics.jsonl").read_text()
    told = re.sub(r'"tokens_per_second": [^,}]+', "", told)
    digest = hashlib.sha256(told.encode())
    for path in (
        state / "model.safetensors",
        state / "optimizer.safetensors",
        folder / "model" / "model.safetensors",
        folder / "result.json",
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def difference(folder, truth):
    """Returns what a resumed run lost; empty = nothing."""
    if not (folder / "result.json").is_file():
        return "it could not go on"
    return "" if end_of(folder) == end_of(truth) else "another end"


def losses_of(folder):
    """Returns the losses that a run told, in their order."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def start(function, *arguments):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def wait_until_told(folder, process, text=""):
    """Returns once a run has told of something, or has ended."""
    path = told_path(folder)
    while process.is_alive():
        if path.is_file() and text in path.read_text():
            return
        time.sleep(0.005)
