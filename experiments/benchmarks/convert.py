"""Question  How long do weights of transformers take to load, and what memory?
Command   python experiments/benchmarks/convert.py

GPT-2 of 124M parameters with random weights, written by transformers and read
in fresh processes; its logits are compared first.
"""

import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments.benchmarks.contest import (
    Contest,
    ContestConfig,
    ours,
    peer,
)
from experiments.benchmarks.report import (
    Answer,
    Figure,
    Spread,
    machine_line,
    run_benchmark,
    table,
)
from kerasgpt.config import InputError

CONFIG = ContestConfig(repeats=3)
QUICK = ["repeats=1"]
GOAL_SECONDS, GOAL_BYTES, TOLERANCE = 20, 1.5e9, 1e-4
PHASES = ("import", "load", "save")
HEADER = ["what", "seen"]


def played(contestant, config):
    """Returns the Outcome of one process that only starts."""
    with Contest([contestant], config, with_yardsticks=False) as contest:
        outcome = contest.outcomes[0]
    if outcome.missing:
        raise InputError(f"not measured: {outcome.missing}")
    return contest, outcome


def ask(config):
    data, outcomes = {}, []
    with tempfile.TemporaryDirectory() as folder:
        settings = {"folder": f"{folder}/gpt2", "out": f"{folder}/out"}
        writer = peer("transformers", "write_gpt2_worker.py", settings, config)
        contest, _ = played(writer, config)
        data["transformers"] = contest.record
        for number in range(1, config.repeats + 1):
            name = f"kerasgpt {number}"
            reader = ours(
                name,
                "convert_worker.py",
                {**settings, "started": time.time()},
            )
            contest, outcome = played(reader, config)
            data[name] = contest.record
            outcomes.append(outcome)
    phases = {
        phase: Spread.of([one.facts["phases"][phase] for one in outcomes])
        for phase in PHASES
    }
    difference = max(one.facts["difference"] for one in outcomes)
    # Before what is measured beside it: saving, and logits.
    peak = Spread.of([one.facts["loaded_peak_bytes"] for one in outcomes])
    rows = [[f"{phase}, seconds", s.show()] for phase, s in phases.items()]
    rows += [
        ["resident memory at its peak, loaded, MB", peak.show(1e-6, 0)],
        ["largest difference of a logit", f"{difference:.1e}"],
    ]
    figures = [
        Figure(
            "GPT-2 124M from transformers: load",
            f"≤ {GOAL_SECONDS} s",
            f"{phases['load'].show()} s",
            phases["load"].high <= GOAL_SECONDS,
        ),
        Figure(
            "the same: memory of the process",
            f"≤ {GOAL_BYTES / 1e9} GB",
            f"{peak.show(1e-9, 2)} GB",
            peak.high <= GOAL_BYTES,
        ),
        Figure(
            "the same: logits against transformers",
            f"≤ {TOLERANCE:.0e}",
            f"{difference:.1e}",
            difference <= TOLERANCE,
        ),
    ]
    lines = [*table(HEADER, rows), "", machine_line(contest.facts)]
    return Answer(lines, figures, data)


if __name__ == "__main__":
    run_benchmark(ask, CONFIG, quick=QUICK, document=__doc__)
