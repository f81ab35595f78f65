"""Question  What do logits that never exist whole save, and what do they cost?
Command   python experiments/benchmarks/loss_head.py

Hidden states times the output table, cross-entropy, both gradients.
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
    Spread,
    machine_line,
    run_benchmark,
    table,
)
from kerasgpt.config import InputError, setting

OURS, PLAIN = "kerasgpt, chunked", "keras, plain, XLA"
EAGER, COMPILED = "torch eager", "torch.compile"
# TensorFlow's pool for oneDNN never gives memory back, so that a call's own
# cannot be seen; workers without it are asked for memory only.
MEMORY, UNPOOLED = ", memory", {"TF_ENABLE_ONEDNN_OPTS": "0"}
# Float32 means over thousands of tokens, in another order.
LOSS_TOLERANCE = 1e-4
HEADER = ["width", "contestant", "ms", "peak MB", "of plain", "GFLOP/s", "loss"]


@dataclasses.dataclass(frozen=True)
class LossHeadConfig(ContestConfig):
    """The loss of hidden states, us and the peers."""

    vocabulary_size: int = setting(32768, "rows of the table", minimum=2)
    num_tokens: int = setting(4096, "of one step", unit="tokens", minimum=1)
    widths: str = setting("256,768", "of the model; commas between")


CONFIG = LossHeadConfig()
QUICK = ["widths=256", "repeats=2"]


def contestants(config, width):
    settings = {
        "job": "loss_head",
        "vocabulary_size": config.vocabulary_size,
        "num_tokens": config.num_tokens,
        "model_dim": width,
    }
    mine = [
        ours(
            name + suffix,
            "kerasgpt_worker.py",
            {**settings, "plain": name == PLAIN},
            **environment,
        )
        for name in (OURS, PLAIN)
        for suffix, environment in (("", {}), (MEMORY, UNPOOLED))
    ]
    return mine + [
        peer(
            name,
            "torch_worker.py",
            {**settings, "compile": name == COMPILED},
            config,
        )
        for name in (EAGER, COMPILED)
    ]


def memory(contest, name):
    """Returns the Spread of the bytes that a call takes at its peak."""
    outcome = contest.measured(name + MEMORY) or contest.measured(name)
    return Spread.of([answer["bytes"] for answer in outcome.answers])


def row(config, width, contest, outcome):
    if outcome.missing:
        return [str(width), outcome.name, f"not measured: {outcome.missing}"]
    mine = memory(contest, outcome.name)
    share = ""
    if contest.measured(PLAIN):
        share = f"{mine.median / memory(contest, PLAIN).median:.0%}"
    # Logits, and the two products of their gradient.
    flops = 6 * config.num_tokens * config.vocabulary_size * width
    return [
        str(width),
        outcome.name,
        outcome.spread.show(1e3),
        mine.show(1e-6, digits=0),
        share,
        f"{flops / outcome.spread.median / 1e9:.1f}",
        f"{outcome.facts['losses'][0]:.5f}",
    ]


def figures_of(width, contest):
    mine, plain = contest.measured(OURS), contest.measured(PLAIN)
    if not mine or not plain:
        return []
    share = memory(contest, OURS).median / memory(contest, PLAIN).median
    speed = mine.speed_against(plain)
    name = f"loss head, width {width}"
    return [
        Figure(
            f"{name}: peak memory of plain cross-entropy's",
            "≤ 25 %",
            f"{share:.0%}",
            share <= 0.25,
        ),
        Figure(
            f"{name}: speed over plain cross-entropy",
            "≥ 1.0 ×",
            f"{speed.show(digits=2)} ×",
            speed.median >= 1.0,
        ),
    ]


def check_losses(contest):
    """Raises unless all got the same loss."""
    losses = {
        outcome.name: outcome.facts["losses"][0]
        for outcome in contest.outcomes
        if not outcome.missing
    }
    first = next(iter(losses.values()), 0.0)
    if not all(
        math.isclose(loss, first, rel_tol=LOSS_TOLERANCE)
        for loss in losses.values()
    ):
        raise InputError(f"the losses differ: {losses}.")


def ask(config):
    rows, figures, data = [], [], {}
    for width in map(int, config.widths.split(",")):
        print(f"\nwidth {width}: ", end="")
        with Contest(contestants(config, width), config) as contest:
            contest.play({"run": 1})
        check_losses(contest)
        rows += [
            row(config, width, contest, outcome)
            for outcome in contest.outcomes
            if not outcome.name.endswith(MEMORY)
        ]
        figures += figures_of(width, contest)
        data[f"width {width}"] = contest.record
    lines = [*table(HEADER, rows), "", machine_line(contest.facts)]
    return Answer(lines, figures, data)


if __name__ == "__main__":
    run_benchmark(ask, CONFIG, quick=QUICK, document=__doc__)
