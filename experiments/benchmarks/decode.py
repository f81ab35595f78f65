"""Question  How fast are new tokens written, and by whom?
Command   python experiments/benchmarks/decode.py

Against Hugging Face, KerasHub and CTranslate2.
One GPT-2 without biases, the same weights and prompts, always the likeliest
token. Equal ids are shown first; time is a whole call, the prompt too. The
bound is the time that reading every weight once takes.
"""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments.benchmarks.contest import (
    Contest,
    Contestant,
    ContestConfig,
    ours,
    peer,
)
from experiments.benchmarks.report import (
    Answer,
    Figure,
    machine_line,
    run_benchmark,
    table,
)
from kerasgpt.config import InputError, setting

SHAPE_NAMES = (
    "vocabulary_size",
    "context_length",
    "num_layers",
    "model_dim",
    "num_heads",
    "batch_size",
    "prompt_length",
    "new_tokens",
)
SIZES = {
    "12M, 1 row": (4096, 256, 6, 384, 6, 1, 32, 128),
    "12M, 16 rows": (4096, 256, 6, 384, 6, 16, 32, 128),
    "124M, 1 row": (50257, 256, 12, 768, 12, 1, 32, 64),
}
OURS, PEER = "kerasgpt", "transformers"
PLAIN_HUB, XLA_HUB = "keras-hub", "keras-hub, XLA"
# By the numbers that weights are kept in; 8-bit ones may write other tokens.
CTRANSLATE2 = {
    "ctranslate2": "float32",
    "ctranslate2, int8": "int8",
}
NO_LLAMA_CPP = (
    "llama-cpp-python has no wheel; its build had not ended after 15 minutes"
)
# Who is to be beaten by what factor.
GOALS = {
    "12M, 1 row": {PEER: 3.0, PLAIN_HUB: 7.0, XLA_HUB: 1.5},
    "12M, 16 rows": {PEER: 2.0, PLAIN_HUB: 7.0, XLA_HUB: 1.5},
    "124M, 1 row": {},
}
BOUND_GOALS = {"124M, 1 row": 0.6}
HEADER = [
    "size",
    "contestant",
    "tokens/s",
    "ms/token",
    "of bound",
    "peak GB",
    "compile s",
    f"speed of {OURS}",
    "equal ids",
]


@dataclasses.dataclass(frozen=True)
class DecodeConfig(ContestConfig):
    """Writing new tokens, us and the peers."""

    sizes: str = setting(
        ";".join(SIZES), f"of {'; '.join(SIZES)}; semicolons between"
    )


CONFIG = DecodeConfig()
QUICK = ["sizes=12M, 1 row", "repeats=2"]


def task_of(size):
    """Returns the settings that all workers of a size share."""
    return dict(zip(SHAPE_NAMES, SIZES[size], strict=True))


def contestants(size, config):
    task = task_of(size)

    def hub(name):
        settings = {**task, "jit_compile": name == XLA_HUB}
        return ours(name, "decode_keras_hub_worker.py", settings)

    return [
        ours(OURS, "decode_kerasgpt_worker.py", task),
        peer(PEER, "decode_transformers_worker.py", task, config),
        hub(PLAIN_HUB),
        hub(XLA_HUB),
        *(
            peer(
                name,
                "decode_ctranslate2_worker.py",
                {**task, "compute_type": kind, "threads": config.threads},
                config,
            )
            for name, kind in CTRANSLATE2.items()
        ),
        Contestant("llama.cpp", [], missing=NO_LLAMA_CPP),
    ]


def share_of_bound(size, contest, outcome):
    """Returns the seconds of reading all weights over those of a step."""
    task = task_of(size)
    # Of the table of positions a row reads one line.
    positions = task["context_length"] * task["model_dim"]
    bytes_read = 4 * (contest[OURS].facts["parameters"] - positions)
    seconds = outcome.spread.median / task["new_tokens"]
    return bytes_read / contest.bandwidth / seconds


def equal_share(outcome, reference):
    """Returns the share of tokens that stand before the first unequal one of
    their row.
    """
    rows = [
        (mine, theirs)
        for mine, theirs in zip(
            outcome.facts["ids"], reference.facts["ids"], strict=True
        )
    ]
    same = sum(
        next(
            (i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b),
            len(pair[0]),
        )
        for pair in rows
    )
    return same / sum(len(mine) for mine, _ in rows)


def row(size, contest, outcome):
    """Returns one line of the table."""
    if outcome.missing:
        return [size, outcome.name, f"not measured: {outcome.missing}"]
    task, mine = task_of(size), contest.measured(OURS)
    steps = task["new_tokens"]
    speed, equal = "", ""
    if mine:
        speed = f"{mine.speed_against(outcome).show(digits=2)} ×"
        equal = f"{equal_share(outcome, mine):.0%}"
    return [
        size,
        outcome.name,
        f"{task['batch_size'] * steps / outcome.spread.median:,.0f}",
        outcome.spread.show(1e3 / steps, digits=2),
        f"{share_of_bound(size, contest, outcome):.0%}" if mine else "",
        f"{outcome.peak_bytes / 1e9:.2f}",
        f"{outcome.facts['compile_seconds']:.1f}",
        speed,
        equal,
    ]


def figures_of(size, contest):
    mine = contest.measured(OURS)
    if not mine:
        return []
    figures = []
    for name, goal in GOALS[size].items():
        other = contest.measured(name)
        if other:
            speed = mine.speed_against(other)
            figures.append(
                Figure(
                    f"decode {size}: speed over {name}",
                    f"≥ {goal} ×",
                    f"{speed.show(digits=2)} ×",
                    speed.median >= goal,
                )
            )
    if size in BOUND_GOALS:
        share, goal = share_of_bound(size, contest, mine), BOUND_GOALS[size]
        figures.append(
            Figure(
                f"decode {size}: share of the bandwidth bound",
                f"≥ {goal:.0%}",
                f"{share:.0%}",
                share >= goal,
            )
        )
    return figures


def ask(config):
    sizes = [part.strip() for part in config.sizes.split(";")]
    if not set(sizes) <= set(SIZES):
        raise InputError(
            f"sizes={config.sizes}: must be of {'; '.join(SIZES)}."
        )
    rows, figures, data = [], [], {}
    for size in sizes:
        print(f"\n{size}: ", end="")
        with Contest(contestants(size, config), config) as contest:
            contest.play({"run": 1})
        rows += [row(size, contest, outcome) for outcome in contest.outcomes]
        figures += figures_of(size, contest)
        # Compared by now, and longer than all else.
        for outcome in contest.outcomes:
            outcome.facts.pop("ids", None)
        data[size] = contest.record
    lines = [*table(HEADER, rows), ""]
    lines += [f"{f.name}: {f.seen}, goal {f.goal}" for f in figures]
    return Answer([*lines, "", machine_line(contest.facts)], figures, data)


if __name__ == "__main__":
    run_benchmark(ask, CONFIG, quick=QUICK, document=__doc__)
