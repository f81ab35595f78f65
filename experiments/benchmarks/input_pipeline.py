"""Question  How long does a training step wait for its input?
Command   python experiments/benchmarks/input_pipeline.py

The default model of run_sft.py: fit on packed documents against fit on one
batch that is already there, in turn in one process.
"""

import dataclasses
import pathlib
import statistics
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
    Spread,
    machine_line,
    run_benchmark,
    table,
)
from kerasgpt.config import InputError, setting

TASK = {
    "job": "input_pipeline",
    "vocabulary_size": 2048,
    "context_length": 256,
    "num_layers": 4,
    "model_dim": 128,
    "num_heads": 4,
    "batch_size": 8,
    # Steps of one execution, as run_sft.py has them.
    "num_batches": 20,
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "beta_2": 0.95,
    "with_defaults": True,
    # As many as the shop's, and as long.
    "num_documents": 40_000,
}
SOURCES = {
    "pipeline": "fit on packed documents",
    "batch": "fit on one batch",
    "alone": "input alone",
}
NAME = "kerasgpt"


@dataclasses.dataclass(frozen=True)
class InputPipelineConfig(ContestConfig):
    """The input of a training step."""

    repeats: int = setting(9, "rounds", minimum=2)
    steps: int = setting(
        200, "of one repetition, a multiple of 20", unit="steps", minimum=20
    )


CONFIG = InputPipelineConfig()
QUICK = ["repeats=3", "steps=60"]


def ask(config):
    if config.steps % TASK["num_batches"]:
        raise InputError(
            f"steps={config.steps}: must be a multiple of "
            f"{TASK['num_batches']}."
        )
    task = {**TASK, "steps": config.steps}
    contestants = [ours(NAME, "kerasgpt_worker.py", task)]
    with Contest(contestants, config, with_yardsticks=False) as contest:
        for index in range(config.repeats):
            shift = index % len(SOURCES)
            for source in [*SOURCES][shift:] + [*SOURCES][:shift]:
                contest.play({"source": source}, rounds=1)
    outcome = contest[NAME]
    if outcome.missing:
        raise InputError(f"not measured: {outcome.missing}")
    seconds = {
        source: [
            answer["seconds"][0]
            for answer in outcome.answers
            if answer["source"] == source
        ]
        for source in SOURCES
    }
    waiting = Spread.of(
        [
            1 - batch / pipeline
            for batch, pipeline in zip(
                seconds["batch"], seconds["pipeline"], strict=True
            )
        ]
    )
    rows = [
        [
            label,
            Spread.of(seconds[source]).show(1e3 / config.steps, digits=2),
            f"{config.steps / statistics.median(seconds[source]):,.1f}",
        ]
        for source, label in SOURCES.items()
    ]
    figure = Figure(
        "share of a training step that is waiting for input",
        "< 2 %",
        f"{waiting.show(100, digits=2)} %",
        waiting.median < 0.02,
    )
    lines = table(["what", "ms/batch", "batches/s"], rows)
    lines += ["", f"{figure.name}: {figure.seen}", ""]
    return Answer(
        [*lines, machine_line(contest.facts)],
        [figure],
        contest.record,
    )


if __name__ == "__main__":
    run_benchmark(ask, CONFIG, quick=QUICK, document=__doc__)
