"""Question  How fast is a training step, against PyTorch and stock Keras?
Command   python experiments/benchmarks/train_step.py

One GPT-2 without biases, three sizes, the same first weights and batches. Equal
losses are shown first; time is what `fit` takes a step, data and metrics too.
"""

import dataclasses
import math
import pathlib
import sys

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
    machine_line,
    run_benchmark,
    table,
)
from experiments.benchmarks.workers.kerasgpt_model import GPT2, model_config
from kerasgpt.config import InputError, setting

SHAPE_NAMES = (
    "vocabulary_size",
    "context_length",
    "num_layers",
    "model_dim",
    "num_heads",
    "batch_size",
    "num_batches",
)
# The last number is steps of one repetition, so that it takes a second or so.
SIZES = {
    "0.8M": (65, 64, 4, 128, 4, 12, 40),
    "6M": (4096, 256, 6, 256, 4, 16, 3),
    "124M": (50257, 256, 12, 768, 12, 2, 2),
}
OPTIMIZER = {"learning_rate": 1e-3, "weight_decay": 0.1, "beta_2": 0.95}
OURS, DEFAULTS = "kerasgpt", "kerasgpt, own defaults"
EAGER, COMPILED, STOCK = "torch eager", "torch.compile", "keras-hub fit, XLA"
# The same function of the same weights and batches.
EQUAL = (OURS, EAGER, COMPILED)
# Float32 in another order, through one repetition of AdamW and through two:
# its first steps are as large for a gradient near zero as for any other.
LOSS_TOLERANCES = (1e-4, 5e-3)
HEADER = [
    "size",
    "contestant",
    "ms/step",
    "tokens/s",
    "GFLOP/s",
    "of peak",
    "peak GB",
    "compile s",
    f"speed / {EAGER}",
    f"speed / {COMPILED}",
    "first losses",
]


@dataclasses.dataclass(frozen=True)
class TrainStepConfig(ContestConfig):
    """The training step, us and the peers."""

    sizes: str = setting(
        ",".join(SIZES), f"of {', '.join(SIZES)}; commas between"
    )


CONFIG = TrainStepConfig()
QUICK = ["sizes=0.8M", "repeats=2"]


def task_of(size):
    """Returns the settings that all workers of a size share."""
    shape = dict(zip(SHAPE_NAMES, SIZES[size], strict=True))
    return {"job": "train_step", **shape, **OPTIMIZER}


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


def contestants(task, config):
    """Returns who takes part in a comparison of training steps."""

    def mine(name, with_defaults):
        settings = {**task, "with_defaults": with_defaults}
        return ours(name, "kerasgpt_worker.py", settings)

    def torch(name, is_compiled):
        settings = {**task, "compile": is_compiled}
        return peer(name, "torch_worker.py", settings, config)

    return [
        mine(OURS, False),
        torch(EAGER, False),
        torch(COMPILED, True),
        ours(STOCK, "keras_hub_worker.py", task),
        mine(DEFAULTS, True),
    ]


def row(size, contest, outcome):
    """Returns one line of the table."""
    if outcome.missing:
        return [size, outcome.name, f"not measured: {outcome.missing}"]
    steps = task_of(size)["num_batches"]
    peak = flops(size, outcome) / contest.peak_flops
    speeds = [
        outcome.speed_against(other).show(digits=2)
        for name in (EAGER, COMPILED)
        if (other := contest.measured(name))
    ]
    losses = ", ".join(f"{loss:.4f}" for loss in outcome.facts["losses"])
    is_equal = losses_agree(outcome, contest.measured(OURS))
    return [
        size,
        outcome.name,
        outcome.spread.show(1e3 / steps),
        f"{tokens(size) / outcome.spread.median:,.0f}",
        f"{flops(size, outcome) / 1e9:.1f}",
        f"{peak:.0%}",
        f"{outcome.peak_bytes / 1e9:.2f}",
        f"{outcome.facts['compile_seconds']:.1f}",
        *(speeds + ["", ""])[:2],
        f"{losses} {'=' if is_equal else '≠'}",
    ]


def tokens(size):
    """Returns the tokens of one repetition."""
    task = task_of(size)
    return task["num_batches"] * task["batch_size"] * task["context_length"]


def flops(size, outcome):
    """Returns FLOP/s, by one count for all that have the same shape."""
    settings = {} if outcome.name == DEFAULTS else GPT2
    config = model_config(task_of(size), **settings)
    per_token = config.training_flops_per_token
    return per_token * tokens(size) / outcome.spread.median


def losses_agree(outcome, reference):
    """Returns whether the first losses are those of the reference."""
    return reference is not None and all(
        math.isclose(mine, theirs, rel_tol=tolerance)
        for mine, theirs, tolerance in zip(
            outcome.facts["losses"],
            reference.facts["losses"],
            LOSS_TOLERANCES,
            strict=True,
        )
    )


def check_losses(size, contest):
    """Raises unless those who compute the same got the same losses."""
    reference = contest.ready(OURS)
    for name in EQUAL:
        outcome = contest.ready(name)
        if reference and outcome and not losses_agree(outcome, reference):
            raise InputError(
                f"{size}: the losses of {name} are {outcome.facts['losses']}, "
                f"those of {OURS} {reference.facts['losses']}: they do not "
                f"train the same model, so their times say nothing."
            )


def speed_figures(size, contest):
    """Returns how much faster we are, beside the goals."""
    figures = []
    for name, goal in ((EAGER, 1.2), (COMPILED, 1.0)):
        mine, other = contest.measured(OURS), contest.measured(name)
        speed = mine.speed_against(other) if mine and other else None
        figures.append(
            Figure(
                f"train step {size}, speed over {name}",
                f"≥ {goal} ×",
                f"{speed.show(digits=2)} ×" if speed else "not measured",
                speed and speed.median >= goal,
            )
        )
    return figures


def share_figures(shares):
    """Returns how near the machine's limit we are, beside the goals."""
    figures = []
    largest = shares.get("124M")
    if largest is not None:
        figures.append(
            Figure(
                "train step 124M, share of the matrix product's peak",
                "≥ 70 %",
                f"{largest:.0%}",
                largest >= 0.7,
            )
        )
    if len(shares) > 1:
        middle = sum(shares.values()) / len(shares)
        off = max(abs(share / middle - 1) for share in shares.values())
        seen = ", ".join(f"{size} {s:.0%}" for size, s in shares.items())
        figures.append(
            Figure(
                "share of peak over the sizes, from their mean",
                "± 20 %",
                f"± {off:.0%} ({seen})",
                off <= 0.2,
            )
        )
    return figures


def ask(config):
    rows, figures, data, shares = [], [], {}, {}
    for size in sizes_of(config):
        print(f"\n{size}: ", end="")
        with Contest(contestants(task_of(size), config), config) as contest:
            # Before the time is spent.
            check_losses(size, contest)
            contest.play({"run": 1})
        rows += [row(size, contest, outcome) for outcome in contest.outcomes]
        figures += speed_figures(size, contest)
        mine = contest.measured(OURS)
        if mine:
            shares[size] = flops(size, mine) / contest.peak_flops
        data[size] = contest.record
    lines = [*table(HEADER, rows), "", machine_line(contest.facts)]
    return Answer(lines, figures + share_figures(shares), data)


if __name__ == "__main__":
    run_benchmark(ask, CONFIG, quick=QUICK, document=__doc__)
