"""Owns trials that stop a run: by a signal, or within an epoch."""

import contextlib
import os
import random
import re
import signal
import time

import numpy as np

from experiments.faults.trial import (
    ENDED,
    TRAIN,
    Outcome,
    difference,
    losses_of,
    run_alone,
    run_split,
    start,
    told_path,
    wait_until_told,
)
from kerasgpt.data.pipelines import build_training_dataset, training_row_numbers

MOST_SECONDS = 5.0
# Replicas, and parts of the rows of each.
SPLITS = ((1, 1), (1, 4), (2, 1), (2, 4))
# Sums in another order, over all steps of a run.
LOSS_TOLERANCE = 1e-5


def finish(folder):
    """Lets a stopped run go on to its end; returns how many steps it redid."""
    before = told_path(folder).read_text() if told_path(folder).exists() else ""
    start(run_alone, folder).join()
    told = told_path(folder).read_text()[len(before) :]
    steps = re.findall(r"^run (\d+)/\d+  loss", before, re.MULTILINE)
    resumed = re.search(r"goes on at step (\d+)", told)
    return max(
        0,
        int(steps[-1] if steps else 0) - int(resumed[1] if resumed else 0),
    )


def kill(seed, folder, truth):
    generator = random.Random(seed)
    if seed % 2:
        at = generator.randint(1, 225)
        fault = f"SIGKILL at file operation {at}"
        process = start(run_alone, folder, at)
    elif seed % 4:
        # Most of the time of so short a run goes into compiling.
        step = generator.randrange(1, TRAIN.steps)
        wait = generator.uniform(0.0, 0.05)
        fault = f"SIGKILL {wait:.3f} s after step {step} was told"
        process = start(run_alone, folder)
        wait_until_told(folder, process, f"run {step}/{TRAIN.steps}  loss")
        process.join(wait)
        process.kill()
    else:
        process = start(run_alone, folder)
        wait_until_told(folder, process)
        wait = generator.uniform(0.0, truth.seconds)
        fault = f"SIGKILL after {wait:.3f} s"
        process.join(wait)
        process.kill()
    process.join()
    if process.exitcode == 0:
        return Outcome(seed, ENDED)
    redone_steps = finish(folder)
    lost = difference(folder, truth.folder)
    # One interval, and the one whose checkpoint was being written.
    if redone_steps >= 2 * TRAIN.evaluate_steps:
        lost = lost or f"{redone_steps} steps"
    return Outcome(seed, fault, lost, redone_steps=redone_steps)


def ask_to_stop(seed, folder, truth):
    generator = random.Random(seed)
    number = generator.choice((signal.SIGTERM, signal.SIGINT))
    num_signals = 2 if generator.random() < 0.2 else 1
    process = start(run_alone, folder)
    wait_until_told(folder, process)
    wait = generator.uniform(0.0, truth.seconds)
    process.join(wait)
    began = time.monotonic()
    for _ in range(num_signals):
        with contextlib.suppress(ProcessLookupError, TypeError):
            os.kill(process.pid, number)
    process.join()
    seconds, status = time.monotonic() - began, process.exitcode
    if status == 0:
        return Outcome(seed, ENDED)
    lost = ""
    # A signal that finds no handler any more ends the interpreter.
    if status not in (-number, 128 + number):
        lost = f"status {status}"
    elif seconds > MOST_SECONDS:
        lost = f"{seconds:.1f} s"
    redone_steps = finish(folder)
    if status == 128 + number and num_signals == 1 and redone_steps:
        lost = lost or f"{redone_steps} steps"
    return Outcome(
        seed,
        f"{num_signals} {number.name} after {wait:.3f} s, status {status}",
        lost or difference(folder, truth.folder),
        seconds,
        redone_steps,
    )


def go_on_with_another_split(seed, folder, truth):
    generator = random.Random(seed)
    before, after = generator.sample(SPLITS, 2)
    stop = generator.randrange(1, TRAIN.steps)
    start(run_split, folder / "plain", *SPLITS[0]).join()
    start(run_split, folder / "split", *before, stop).join()
    fault = f"{before} replicas and parts, from step {stop} on {after}"
    if (folder / "split" / "result.json").exists():
        return Outcome(seed, ENDED)
    start(run_split, folder / "split", *after).join()
    ends = [losses_of(folder / name) for name in ("plain", "split")]
    if len(ends[0]) != len(ends[1]):
        return Outcome(seed, fault, "it could not go on")
    most = np.abs(np.subtract(*ends)).max()
    lost = "" if most <= LOSS_TOLERANCE else f"a loss differs by {most:.1e}"
    return Outcome(seed, fault, lost)


class RowNumbers:
    """Stands for packed rows: a row holds nothing but its number."""

    row_length = 1
    input_names = ("token_ids", "positions", "segment_ids")

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def assemble(self, numbers):
        column = np.asarray(numbers, np.int32)[:, None]
        return *[column] * 4, np.ones(column.shape, np.float32)


def stop_within_an_epoch(seed, folder, truth):
    generator = random.Random(seed)
    count, batch_size = generator.randint(5, 60), generator.randint(1, 8)
    steps = 3 * count // batch_size + 1
    stops = sorted(generator.sample(range(1, steps), min(3, steps - 1)))
    read = []
    for first, last in zip([0, *stops], [*stops, steps], strict=True):
        dataset = build_training_dataset(
            RowNumbers(count),
            batch_size=batch_size,
            seed=seed,
            start_step=first,
            num_steps=last,
        )
        for inputs, _, _ in dataset.as_numpy_iterator():
            read.extend(inputs["token_ids"][:, 0].tolist())
    epochs = [read[i : i + count] for i in range(0, 3 * count, count)]
    is_once = all(sorted(epoch) == [*range(count)] for epoch in epochs)
    noted = [
        number
        for step in range(steps)
        for number in training_row_numbers(
            step, num_rows=count, batch_size=batch_size, seed=seed
        ).numpy()
    ]
    lost = "" if is_once and noted == read else "a sample"
    fault = f"{count} rows by {batch_size}, stopped at {stops}"
    return Outcome(seed, fault, lost)
