"""Question  Does the preflight tell beforehand what training will take?
Command   python experiments/benchmarks/plan.py

What `kerasgpt plan` predicts, in a process that never builds the whole model,
beside a fresh process that trains it; times are measured in turn. Peak memory
is the largest resident memory of the latter, libraries and compiling included.
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
from experiments.benchmarks.report import (
    Answer,
    Figure,
    machine_line,
    run_benchmark,
    table,
)
from kerasgpt.config import InputError, setting

WORKER = "plan_worker.py"
# Depth (which sets the width), vocabulary, context, rows a step, optimizer,
# and steps of one repetition, so that it takes a second or so.
SIZES = {
    "0.8M": (4, 65, 64, 12, "adamw", 40),
    "default": (4, 2048, 256, 8, "muon", 8),
    "large vocabulary": (4, 32768, 256, 8, "adamw", 3),
    "6M": (6, 4096, 256, 16, "adamw", 2),
    "long context": (6, 4096, 1024, 4, "muon", 2),
    "29M": (8, 8192, 256, 8, "muon", 2),
    "124M": (12, 50257, 256, 2, "adamw", 1),
}
MEMORY_GOAL, TIME_GOAL = 0.2, 0.3
HEADER = [
    "size",
    "parameters",
    "shape",
    "predicted GB",
    "measured GB",
    "ratio",
    "predicted ms/step",
    "measured ms/step",
    "ratio",
    "predicted compile s",
    "measured",
    "plan took s",
]


@dataclasses.dataclass(frozen=True)
class PlanConfig(ContestConfig):
    """The preflight's predictions and what came."""

    sizes: str = setting(
        ",".join(SIZES), f"of {', '.join(SIZES)}; commas between"
    )


CONFIG = PlanConfig()
QUICK = ["sizes=0.8M,default", "repeats=2"]


def sizes_of(config):
    """Returns the sizes that are asked for.

    Raises:
        InputError: for one there is not.
    """
    sizes = config.sizes.split(",")
    if not set(sizes) <= set(SIZES):
        raise InputError(
            f"sizes={config.sizes}: must be of {', '.join(SIZES)}."
        )
    return sizes


def settings_of(size):
    """Returns the settings that both workers of a size share."""
    depth, vocabulary_size, context, rows, optimizer, steps = SIZES[size]
    return {
        "vocabulary_size": vocabulary_size,
        "model": {"depth": depth, "context_length": context},
        "train": {"batch_tokens": rows * context, "optimizer": optimizer},
        "steps": steps,
    }


def memory_ratio(predicted, measured):
    """Returns predicted peak memory over the measured one."""
    return predicted.facts["memory_bytes"] / measured.peak_bytes


def row(size, predicted, measured):
    for outcome in (predicted, measured):
        if outcome.missing:
            return [size, f"{outcome.name}: not measured: {outcome.missing}"]
    depth, vocabulary_size, context, rows, optimizer, steps = SIZES[size]
    answer = predicted.answers[0]
    plan_seconds = predicted.facts["build_seconds"] + answer["measure_seconds"]
    return [
        size,
        f"{predicted.facts['parameters']:,}",
        f"{depth} blocks, vocabulary {vocabulary_size:,}, {rows} × {context}, "
        f"{optimizer}",
        f"{predicted.facts['memory_bytes'] / 1e9:.2f}",
        f"{measured.peak_bytes / 1e9:.2f}",
        f"{memory_ratio(predicted, measured):.2f}",
        predicted.spread.show(1e3 / steps),
        measured.spread.show(1e3 / steps),
        measured.speed_against(predicted).show(digits=2),
        f"{answer['compile_seconds']:.0f}",
        f"{measured.facts['compile_seconds']:.0f}",
        f"{plan_seconds:.0f}",
    ]


def figure(name, values, tolerance):
    """Returns how far predictions are off, the goal beside it."""
    return Figure(
        f"plan: predicted over measured {name}",
        f"within ± {tolerance:.0%}",
        f"{min(values):.2f}–{max(values):.2f} over {len(values)} sizes"
        if values
        else "not measured",
        all(abs(value - 1) <= tolerance for value in values)
        if values
        else None,
    )


def ask(config):
    rows, memory, time, data = [], [], [], {}
    for size in sizes_of(config):
        print(f"\n{size}: ", end="")
        workers = [
            ours(job, WORKER, {"job": job, **settings_of(size)})
            for job in ("predict", "measure")
        ]
        with Contest(workers, config, with_yardsticks=False) as contest:
            contest.play({"run": 1})
        predicted, measured = contest.outcomes
        rows.append(row(size, predicted, measured))
        if not predicted.missing and not measured.missing:
            memory.append(memory_ratio(predicted, measured))
            time.append(measured.speed_against(predicted).median)
        data[size] = contest.record
    lines = [*table(HEADER, rows), "", machine_line(contest.facts)]
    figures = [
        figure("peak memory", memory, MEMORY_GOAL),
        figure("time of a step", time, TIME_GOAL),
    ]
    return Answer(lines, figures, data)


if __name__ == "__main__":
    run_benchmark(ask, CONFIG, quick=QUICK, document=__doc__)
