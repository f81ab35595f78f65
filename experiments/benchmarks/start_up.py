"""Question  How long is it from the command to the first training steps?
Command   python experiments/benchmarks/start_up.py

The default run of run_sft.py in fresh processes, until its first progress line.
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments.benchmarks.contest import (
    Contest,
    ContestConfig,
    ours,
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
GOAL_SECONDS = 30


def ask(config):
    starts, data = [], {}
    for number in range(1, config.repeats + 1):
        settings = {"started": time.time()}
        fresh = [ours(f"start {number}", "start_worker.py", settings)]
        with Contest(fresh, config, with_yardsticks=False) as contest:
            outcome = contest.outcomes[0]
        if outcome.missing:
            raise InputError(f"not measured: {outcome.missing}")
        starts.append(outcome.facts["phases"])
        data[outcome.name] = contest.record
    totals = Spread.of([sum(phases.values()) for phases in starts])
    rows = [
        [name, Spread.of([phases[name] for phases in starts]).show()]
        for name in starts[0]
    ]
    figure = Figure(
        "first training steps after the start of the default run",
        f"≤ {GOAL_SECONDS} s",
        f"{totals.show()} s",
        totals.median <= GOAL_SECONDS,
    )
    lines = table(["phase", "seconds"], [*rows, ["all", totals.show()]])
    return Answer([*lines, "", machine_line(contest.facts)], [figure], data)


if __name__ == "__main__":
    run_benchmark(ask, CONFIG, quick=QUICK, document=__doc__)
