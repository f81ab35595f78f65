"""Owns trials with disks that fail, damaged files and bad batches."""

import contextlib
import dataclasses
import errno
import functools
import json
import os
import random

import numpy as np

from experiments.faults.trial import (
    TRAIN,
    Outcome,
    build_model,
    difference,
    end_of,
    tiny_rows,
    tiny_run,
)
from kerasgpt.checkpoints import (
    list_run_states,
    load_model,
    load_run_state,
    read_run_state,
)
from kerasgpt.config import InputError
from kerasgpt.files import read_manifest, write_manifest
from kerasgpt.training.optimizers import build_optimizer
from kerasgpt.training.schedules import build_schedule

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)


def fail_to_write(seed, folder, truth):
    generator = random.Random(seed)
    code = generator.choice(ERRORS)
    first = generator.randint(1, 150)
    operations = {name: getattr(os, name) for name in ("fsync", "mkdir")}
    count = 0

    def failing(operation, *arguments, **options):
        nonlocal count
        count += 1
        if count >= first:
            raise OSError(code, os.strerror(code))
        return operation(*arguments, **options)

    for name, operation in operations.items():
        setattr(os, name, functools.partial(failing, operation))
    lost = "no error was told"
    try:
        tiny_run(folder)
    except (InputError, OSError) as error:
        lost = "" if "\n" not in str(error) else "the error has many lines"
    finally:
        for name, operation in operations.items():
            setattr(os, name, operation)
    for state in list_run_states(folder / "checkpoints"):
        try:
            read_run_state(state)
        except InputError as error:
            lost = lost or str(error)
    tiny_run(folder)
    fault = f"{errno.errorcode[code]} from file operation {first} on"
    return Outcome(seed, fault, lost or difference(folder, truth.folder))


@functools.cache
def loader():
    model = build_model()
    # The rate of a run is a schedule, and no variable.
    schedule = build_schedule(
        TRAIN.schedule,
        TRAIN.learning_rate,
        total_steps=TRAIN.steps,
        warmup_fraction=TRAIN.warmup_fraction,
        decay_fraction=TRAIN.decay_fraction,
        final_fraction=TRAIN.final_fraction,
    )
    optimizer = build_optimizer(TRAIN.optimizer, schedule, weight_decay=0.0)
    optimizer.build(model.trainable_variables)
    return functools.partial(load_run_state, model=model, optimizer=optimizer)


def loss_of(path, run, export):
    """Returns what is lost now that a file was changed; empty = nothing."""
    states = run / "checkpoints"
    try:
        if export in path.parents:
            read_manifest(export)
        elif run / "model" in path.parents:
            load_model(run)
        else:
            told = []
            try:
                saved = loader()(states, tell=told.append)
            except InputError as error:
                return f"no checkpoint is used: {error}"
            # The one before it must be used, and that be told.
            before = list_run_states(states)[-2]
            is_before = f"step_{saved['step']:08d}" == before.name
            return "" if told and is_before else "loaded"
    except InputError:
        return ""
    return "loaded"


def things(truth):
    """Returns all files whose damage must be found."""
    run = truth.folder
    newest = list_run_states(run / "checkpoints")[-1]
    return sorted(
        path
        for folder in (newest, run / "model", truth.export)
        for path in folder.rglob("*")
        if path.is_file()
    )


@contextlib.contextmanager
def put_back(path):
    content = path.read_bytes()
    try:
        yield content
    finally:
        path.write_bytes(content)


def flip_a_bit(seed, folder, truth):
    generator = random.Random(seed)
    path = generator.choice(things(truth))
    with put_back(path) as content:
        place = generator.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        lost = loss_of(path, truth.folder, truth.export)
    name = path.relative_to(truth.folder.parent)
    return Outcome(seed, f"bit {place} of {name}", lost)


def damage_a_file(seed, folder, truth):
    generator = random.Random(seed)
    path = generator.choice(things(truth))
    kind = generator.choice(("cut", "missing", "stale manifest"))
    if kind == "stale manifest":
        path = path.with_name("manifest.json")
    with contextlib.ExitStack() as stack:
        while not path.is_file():
            # The manifest of a deeper file is further up.
            path = path.parent.with_name("manifest.json")
        content = stack.enter_context(put_back(path))
        if kind == "cut":
            path.write_bytes(content[: generator.randrange(len(content))])
        elif kind == "missing":
            path.unlink()
        else:
            # As if of another save: one file had other bytes then.
            manifest = json.loads(content)
            name = generator.choice(sorted(manifest["files"]))
            other = path.parent / name
            was = stack.enter_context(put_back(other))
            other.write_bytes(was + b" ")
            write_manifest(path.parent)
            other.write_bytes(was)
        lost = loss_of(path, truth.folder, truth.export)
    name = path.relative_to(truth.folder.parent)
    return Outcome(seed, f"{kind}: {name}", lost)


def spoil_a_batch(seed, folder, truth):
    generator = random.Random(seed)
    rows = tiny_rows()
    row = generator.randrange(len(rows["train"]))
    kind = generator.choice(("nan", "inf", "spike"))
    train_rows = rows["train"]
    (piece,) = range(*train_rows.row_splits[row : row + 2])
    first = train_rows.piece_starts[piece] + 1
    here = np.s_[first : first + train_rows.piece_lengths[piece]]
    if kind == "spike":
        train_rows.token_ids[here] = 263
    else:
        train_rows.loss_mask[here] = float(kind)
    config = dataclasses.replace(TRAIN, spike_rise=0.5)
    ends = []
    for name in ("one", "two"):
        tiny_run(folder / name, rows=rows, config=config)
        ends.append(end_of(folder / name))
    model, _ = load_model(folder / "one")
    is_finite = all(np.isfinite(w).all() for w in model.get_weights())
    events = (folder / "one" / "metrics.jsonl").read_text()
    is_noted = '"skipped"' in events or kind == "spike"
    lost = "" if is_finite else "the weights are not finite"
    lost = lost or ("" if ends[0] == ends[1] else "another end on replay")
    lost = lost or ("" if is_noted else "the rows are not noted")
    num_rollbacks = events.count('"rollback"')
    return Outcome(
        seed, f"{kind} in row {row}, {num_rollbacks} rollbacks", lost
    )
