"""Question  For how many steps does saving a run's state stop the training?
Command   python experiments/benchmarks/checkpoint.py

Weights and both moments of AdamW, on the disk of real runs. "Blocked" is the
copy in memory that training waits for; "later" also counts what the writing in
the background slows down in the steps after it.
"""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments.benchmarks.contest import (
    Contest,
    ContestConfig,
    ours,
)
from experiments.benchmarks.peers import (
    FOLDER,
)
from experiments.benchmarks.report import (
    Answer,
    Figure,
    Spread,
    machine_line,
    run_benchmark,
    table,
)
from experiments.benchmarks.train_step import SIZES, sizes_of, task_of
from kerasgpt.config import setting
from kerasgpt.files import check_writable

NAME = "kerasgpt"
HEADER = [
    "size",
    "step ms",
    "blocked ms",
    "blocked steps",
    "later steps",
    "MB",
    "MB/s",
]


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(ContestConfig):
    """Saving the state of a run."""

    sizes: str = setting(
        ",".join(SIZES), f"of {', '.join(SIZES)}; commas between"
    )


CONFIG = CheckpointConfig()
QUICK = ["sizes=0.8M", "repeats=3"]


def measure(size, config):
    """Returns (contest, row, figure) of one size."""
    folder = FOLDER.parent / "runs"
    check_writable(folder)
    task = {
        **task_of(size),
        "job": "checkpoint",
        "with_defaults": False,
        "folder": str(folder),
    }
    contestants = [ours(NAME, "kerasgpt_worker.py", task)]
    with Contest(contestants, config, with_yardsticks=False) as contest:
        for _ in range(config.repeats):
            for save in (False, True):
                contest.play({"save": save}, rounds=1)
    outcome, name = contest[NAME], f"checkpoint {size}: training stands still"
    if outcome.missing:
        missing = f"not measured: {outcome.missing}"
        return contest, [size, missing], Figure(name, "< 1 step", missing)
    plain, saved = outcome.answers[::2], outcome.answers[1::2]
    steps = Spread.of(
        [answer["seconds"][0] / task["num_batches"] for answer in plain]
    )
    blocked = Spread.of([answer["blocked_seconds"] for answer in saved])
    later = Spread.of(
        [
            after["blocked_seconds"]
            + after["seconds"][0]
            - before["seconds"][0]
            for before, after in zip(plain, saved, strict=True)
        ]
    )
    size_bytes = saved[-1]["bytes"]
    row = [
        size,
        steps.show(1e3),
        blocked.show(1e3),
        blocked.show(1 / steps.median, digits=2),
        later.show(1 / steps.median, digits=2),
        f"{size_bytes / 1e6:.1f}",
        f"{size_bytes / blocked.median / 1e6:,.0f}",
    ]
    figure = Figure(
        name,
        "< 1 step",
        f"{row[3]} steps",
        blocked.median < steps.median,
    )
    return contest, row, figure


def ask(config):
    rows, figures, data = [], [], {}
    for size in sizes_of(config):
        print(f"\n{size}: ", end="")
        contest, row, figure = measure(size, config)
        rows.append(row)
        figures.append(figure)
        data[size] = contest.record
    lines = [*table(HEADER, rows), "", machine_line(contest.facts)]
    return Answer(lines, figures, data)


if __name__ == "__main__":
    run_benchmark(ask, CONFIG, quick=QUICK, document=__doc__)
