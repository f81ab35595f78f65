"""Question  Of how many planted faults does a run lose anything, beside Keras?
Command   python experiments/fault_table.py record=experiments/records/faults

"Lost": the end is not bit-identical to that of the undisturbed run, a
checkpoint that was told of cannot be used, or something damaged is loaded
without a word. Each trial has its own seed, counted up from `seed`. With
`seconds` a call ends early, and the next one with the same `record` goes on;
the .jsonl files of several records, joined, are one of all.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import math
import os
import pathlib
import shutil
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from experiments.benchmarks.report import (
    Answer,
    Figure,
    machine_facts,
    run_benchmark,
    table,
)
from experiments.faults.damage import (
    damage_a_file,
    fail_to_write,
    flip_a_bit,
    spoil_a_batch,
)
from experiments.faults.hostile import HOSTILE, load_a_hostile_file
from experiments.faults.keras_faults import (
    cut,
    damage_keras_weights,
    flipped,
    kill_keras,
    run_keras_quietly,
    spoil_a_keras_batch,
)
from experiments.faults.ledger import Ledger
from experiments.faults.stops import (
    ask_to_stop,
    go_on_with_another_split,
    kill,
    stop_within_an_epoch,
)
from experiments.faults.trial import (
    ENDED,
    Outcome,
    Truth,
    build_model,
    run_alone,
    start,
    wait_until_told,
)
from kerasgpt.checkpoints import load_model
from kerasgpt.config import Config, InputError, setting
from kerasgpt.console import quiet_libraries
from kerasgpt.files import read_json, write_json
from kerasgpt.serving.saved_model import export_saved_model


@dataclasses.dataclass(frozen=True)
class FaultConfig(Config):
    """How many faults are tried."""

    share: float = setting(
        1.0, "of the full number of trials", minimum=1e-6, maximum=1.0
    )
    faults: str = setting(
        "", "parts of names, comma between: only these; empty = all"
    )
    seed: int = setting(0, "of the first trial", minimum=0)
    processes: int = setting(2, "at a time", minimum=1)
    seconds: float = setting(
        1e9, "after which no trial begins", unit="s", minimum=0.0
    )
    again: bool = setting(
        False, "try those that the record has already once more"
    )
    strict: bool = setting(False, "end with status 2 if anything is lost")
    record: str = setting(
        "",
        "folder that gets <script>.json and .md, and a line for each trial in "
        "<script>.jsonl; empty = none",
    )


CONFIG = FaultConfig()
QUICK = ["share=0.02", "strict=true"]


@dataclasses.dataclass(frozen=True)
class Fault:
    """A row of the table.

    Attributes:
        name: str.
        trials: int, of the full table.
        trial: function of a seed, a folder and the Truth; returns an Outcome.
        needs_processes: bool. It starts some of its own.
        keras: Fault or None: the same with Keras.
    """

    name: str
    trials: int
    trial: object
    needs_processes: bool = False
    keras: object = None


FAULTS = (
    Fault(
        "SIGKILL at random, also within a save",
        200,
        kill,
        needs_processes=True,
        keras=Fault("BackupAndRestore", 40, kill_keras, needs_processes=True),
    ),
    Fault("SIGTERM, SIGINT, one or two", 50, ask_to_stop, needs_processes=True),
    Fault("disk full, EIO, read-only", 50, fail_to_write),
    Fault(
        "one bit flipped in a checkpoint, model or export",
        1000,
        flip_a_bit,
        keras=Fault(
            ".weights.h5",
            100,
            functools.partial(damage_keras_weights, change=flipped),
        ),
    ),
    Fault(
        "cut file, missing file, stale manifest",
        400,
        damage_a_file,
        keras=Fault(
            ".weights.h5, cut",
            100,
            functools.partial(damage_keras_weights, change=cut),
        ),
    ),
    Fault(
        "batch of NaN or infinity, planted spike",
        100,
        spoil_a_batch,
        keras=Fault("fit", 20, spoil_a_keras_batch),
    ),
    Fault("stop within an epoch", 50, stop_within_an_epoch),
    Fault(
        "going on with other replicas and micro-batches",
        20,
        go_on_with_another_split,
        needs_processes=True,
    ),
    Fault("hostile file", len(HOSTILE), load_a_hostile_file),
)


def export_alone(run, export):
    model, tokenizer = load_model(run)
    export_saved_model(model, tokenizer, export, max_new_tokens=4)


def find_truth(folder):
    # The first process starts the one that all are forked from.
    with quiet_libraries():
        start(build_model).join()
    seconds = []
    for name, function in (("run", run_alone), ("keras", run_keras_quietly)):
        process = start(function, folder / name)
        wait_until_told(folder / name, process)
        began = time.monotonic()
        process.join()
        seconds.append(time.monotonic() - began)
    start(export_alone, folder / "run", folder / "export").join()
    return Truth(
        folder / "run",
        folder / "export" / "1",
        seconds[0],
        folder / "keras",
        seconds[1],
    )


def try_all(trial, seeds, folder, truth, until=math.inf):
    """Returns the Outcomes of some trials, one after the other.

    Args:
        until: float, of `time.monotonic`. No trial begins later.
    """
    outcomes = []
    for seed in seeds:
        if time.monotonic() > until:
            break
        try:
            outcomes.append(trial(seed, folder / str(seed), truth))
        except Exception as error:  # a trial that fails has lost its run
            outcomes.append(Outcome(seed, "unforeseen", repr(error)))
        shutil.rmtree(folder / str(seed), ignore_errors=True)
    return outcomes


def try_alone(trial, seeds, folder, truth, until, path):
    """Is a process: writes the outcomes of trials to a file."""
    # Trials damage the files they load: each process has its own.
    own = folder / f"truth_{seeds[0]}"
    shutil.copytree(truth.folder.parent, own)
    truth = dataclasses.replace(
        truth, folder=own / "run", export=own / "export" / "1"
    )
    outcomes = try_all(trial, seeds, folder, truth, until)
    write_json(path, [dataclasses.asdict(outcome) for outcome in outcomes])


def seeds_of(fault, config):
    """Returns the seeds of a row's trials."""
    trials = max(2, round(config.share * fault.trials))
    if fault.trial is load_a_hostile_file:
        trials = fault.trials
    return range(config.seed, config.seed + trials)


def try_fault(fault, seeds, folder, truth, *, processes, until):
    """Returns the Outcomes of a row, as far as there is time."""
    parts = [seeds[i::processes] for i in range(processes)]
    parts = [part for part in parts if part]
    folder.mkdir()

    def answer(part):
        if fault.needs_processes:
            return try_all(fault.trial, part, folder, truth, until)
        path = folder / f"outcomes_{part[0]}.json"
        arguments = fault.trial, part, folder, truth, until, path
        start(try_alone, *arguments).join()
        return [Outcome(**outcome) for outcome in read_json(path)]

    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        return [o for part in pool.map(answer, parts) for o in part]


def facts_of(outcomes):
    """Returns a dict of what the record tells of a row."""
    lost = [outcome for outcome in outcomes if outcome.lost]
    return {
        "trials": len(outcomes),
        "lost": [dataclasses.asdict(outcome) for outcome in lost],
        "reasons": collections.Counter(outcome.lost for outcome in lost),
        "too_late": sum(outcome.fault == ENDED for outcome in outcomes),
        "most_seconds": max((o.seconds for o in outcomes), default=0.0),
        "most_redone_steps": max((o.redone_steps for o in outcomes), default=0),
    }


def ask(config):
    until = time.monotonic() + config.seconds
    header = ["fault", "trials", "lost", "Keras", "trials", "lost"]
    rows, figures, data = [], [], {}
    names = [name for name in config.faults.split(",") if name]
    facts = machine_facts()
    path = config.record and pathlib.Path(config.record) / "fault_table.jsonl"
    ledger = Ledger(path, facts["commit"])
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        (root / "truth").mkdir()
        find = functools.cache(lambda: find_truth(root / "truth"))
        for number, fault in enumerate(FAULTS):
            row = []
            is_chosen = not names or any(name in fault.name for name in names)
            for kind in filter(None, (fault, fault.keras)):
                seeds = seeds_of(kind, config)
                if is_chosen and config.again:
                    ledger.forget(kind.name)
                tried = ledger.outcomes(kind.name, seeds)
                left = [seed for seed in seeds if seed not in tried]
                if is_chosen and left and time.monotonic() < until:
                    more = try_fault(
                        kind,
                        left,
                        root / f"{number}_{len(row)}",
                        find(),
                        processes=config.processes,
                        until=until,
                    )
                    ledger.add(kind.name, more)
                outcomes = [*ledger.outcomes(kind.name, seeds).values()]
                if not outcomes:
                    continue
                found = data[kind.name] = facts_of(outcomes)
                lost = len(found["lost"])
                row += [kind.name, str(len(outcomes)), str(lost)]
                told = f"{lost} of {len(outcomes)} lost"
                if kind is fault:
                    figures.append(Figure(fault.name, "0", told, not lost))
                print(f"{kind.name}: {told}", flush=True)
            if row:
                rows.append(row)
    late = {name: found["too_late"] for name, found in data.items()}
    lines = [
        *table(header, rows),
        "",
        *(
            f"{name}: {count} came when the run had ended, and prove nothing."
            for name, count in late.items()
            if count
        ),
        f"Seeds from {config.seed} on; {facts['cpu']}, commit "
        f"{', '.join(ledger.commits())}, {facts['date']}.",
    ]
    if config.strict and not all(figure.is_met for figure in figures):
        reasons = {name: found["lost"] for name, found in data.items()}
        print(*lines, *reasons.items(), sep="\n")
        raise InputError("a fault was not survived, see above.")
    return Answer(lines, figures, {"faults": data, "facts": facts})


if __name__ == "__main__":
    run_benchmark(ask, CONFIG, quick=QUICK, document=__doc__)
