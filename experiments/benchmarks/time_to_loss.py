"""Question  How long does a small model train until it reaches a loss?
Command   python experiments/benchmarks/time_to_loss.py \\
              data.path=tinyshakespeare.txt

A small model whose schedule ends at the target, found as LOG.md tells, against
PyTorch with nanoGPT's settings for a CPU. The last tenth of the text is the
validation split, all of it in rows of the context, nats a byte (a character, in
plain English). Seconds are those of training: evaluation is left out,
compilation told apart.
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
from experiments.run_shakespeare import TextConfig
from kerasgpt.config import InputError, setting
from kerasgpt.models import ModelConfig
from kerasgpt.training.stage import TrainConfig

OURS, EAGER, COMPILED = "kerasgpt", "torch eager", "torch.compile"
HEADER = [
    "contestant",
    "parameters",
    "reached",
    "seconds",
    "steps",
    "compile s",
    "ms/step",
    f"speed / {EAGER}",
    "last loss",
]


@dataclasses.dataclass(frozen=True)
class TimeToLossConfig(ContestConfig):
    """A race to a validation loss."""

    num_seeds: int = setting(3, "runs of each contestant", minimum=1)
    target_loss: float | None = setting(
        1.886, "nats a byte; none = what torch eager ends with"
    )
    stretch_steps: int = setting(
        25, "steps between validations, and turns", unit="steps", minimum=1
    )
    peer_steps: int = setting(
        2000, "of the peers, and of their cosine", unit="steps", minimum=1
    )
    data: TextConfig = setting(TextConfig(), "what is learned from")
    model: ModelConfig = setting(
        ModelConfig(
            depth=2,
            context_length=64,
            model_dim=96,
            num_heads=3,
            num_kv_heads=1,
            inner_dim=192,
            activation="swiglu",
            rotary_base=10.0,
        ),
        "our network",
    )
    train: TrainConfig = setting(
        TrainConfig(
            steps=325,
            batch_tokens=1024,
            learning_rate=0.015,
            muon_learning_rate_ratio=1.0,
            warmup_fraction=0.03,
            decay_fraction=0.8,
            final_fraction=0.0,
            log_steps=25,
        ),
        "our training",
    )


CONFIG = TimeToLossConfig()
QUICK = [
    "num_seeds=1",
    "target_loss=2.6",
    "train.steps=200",
    "peer_steps=200",
]


@dataclasses.dataclass(frozen=True)
class Race:
    """One seed of one contestant: rows of (step, training seconds, loss)."""

    curve: list

    def reached(self, target):
        """Returns (step, seconds) of the first loss not above it, or None."""
        for step, seconds, loss in self.curve:
            if loss <= target:
                return step, seconds
        return None


def contestants(config):
    path = str(pathlib.Path(config.data.path).resolve())
    shared = {
        "job": "race",
        "path": path,
        "stretch_steps": config.stretch_steps,
    }
    recipe = {"model": config.model.to_dict(), "train": config.train.to_dict()}
    mine = ours(OURS, "kerasgpt_worker.py", {**shared, **recipe})
    peers = [
        peer(
            name,
            "torch_worker.py",
            {**shared, "steps": config.peer_steps, "compile": name == COMPILED},
            config,
        )
        for name in (EAGER, COMPILED)
    ]
    return [mine, *peers]


def run_seed(contest, config, seed):
    """Returns dict of contestant to Race; all run in turn, in stretches."""
    running = {o.name: 0 for o in contest.outcomes if not o.missing}
    curves = {name: [] for name in running}
    while running:
        contest.play(
            lambda name: (
                {"seed": seed, "step": running[name]}
                if name in running
                else None
            ),
            rounds=1,
        )
        for name in list(running):
            outcome = contest[name]
            if outcome.missing:
                del running[name], curves[name]
                continue
            answer = outcome.answers[-1]
            before = curves[name][-1][1] if curves[name] else 0.0
            seconds = before + answer["seconds"][0]
            curves[name].append((answer["step"], seconds, answer["loss"]))
            running[name] = answer["step"]
            is_there = config.target_loss is not None and (
                answer["loss"] <= config.target_loss
            )
            if is_there or answer["step"] >= outcome.facts["steps"]:
                del running[name]
    told = ", ".join(
        f"{name} {curve[-1][2]:.3f} after {curve[-1][1]:.0f} s"
        for name, curve in curves.items()
    )
    print(f"seed {seed}: {told}", flush=True)
    return {name: Race(curve) for name, curve in curves.items()}


def row(contest, name, races, target):
    outcome = contest[name]
    mine = [race[name] for race in races if name in race]
    if outcome.missing or not mine:
        return [name, f"not measured: {outcome.missing}"]
    reached = [race.reached(target) for race in mine]
    there = [one for one in reached if one]
    steps = [step for step, _ in there]
    seconds = [time for _, time in there]
    speed = speed_over(races, name, EAGER, target)
    per_step = [race.curve[-1][1] / race.curve[-1][0] for race in mine]
    return [
        name,
        f"{outcome.facts['parameters']:,}",
        f"{len(there)} of {len(mine)}",
        Spread.of(seconds).show() if there else "never",
        Spread.of(steps).show(digits=0) if there else "",
        f"{outcome.facts['compile_seconds']:.1f}",
        Spread.of(per_step).show(1e3),
        speed.show(digits=2) if speed else "",
        Spread.of([race.curve[-1][2] for race in mine]).show(digits=3),
    ]


def speed_over(races, name, other, target):
    """Returns the Spread of other's seconds over ours by seed, or None."""
    speeds = []
    for race in races:
        mine = name in race and race[name].reached(target)
        theirs = other in race and race[other].reached(target)
        if not mine or not theirs:
            return None
        speeds.append(theirs[1] / mine[1])
    return Spread.of(speeds)


def ask(config):
    if not config.data.path:
        raise InputError("data.path=: name the text file to learn.")
    if not pathlib.Path(config.data.path).is_file():
        raise InputError(f"data.path={config.data.path}: no such file.")
    # Yardsticks at every turn would take longer than the race.
    with Contest(contestants(config), config, with_yardsticks=False) as contest:
        counts = {
            outcome.facts["validation_tokens"]
            for outcome in contest.outcomes
            if not outcome.missing
        }
        if len(counts) > 1:
            raise InputError(f"the validation splits differ: {counts} bytes.")
        races = [
            run_seed(contest, config, seed) for seed in range(config.num_seeds)
        ]
    target = config.target_loss
    if target is None:
        if not contest.measured(EAGER):
            raise InputError(f"target_loss=none: {EAGER} was not measured.")
        target = statistics.mean(race[EAGER].curve[-1][2] for race in races)
    names = [outcome.name for outcome in contest.outcomes]
    rows = [row(contest, name, races, target) for name in names]
    speed = speed_over(races, OURS, EAGER, target)
    figure = Figure(
        f"seconds to validation loss {target:.3f}, of torch eager's",
        "≤ 0.5 ×",
        f"{1 / speed.median:.2f} × [{1 / speed.high:.2f}–{1 / speed.low:.2f}]"
        if speed
        else "not reached by all",
        speed and speed.median >= 2,
    )
    title = (
        f"validation loss {target:.3f} on {pathlib.Path(config.data.path).name}"
    )
    data = {
        "target_loss": target,
        "curves": [
            {name: race.curve for name, race in by_name.items()}
            for by_name in races
        ],
        **contest.record,
    }
    lines = [title, "", *table(HEADER, rows), "", machine_line(contest.facts)]
    return Answer(lines, [figure], data)


if __name__ == "__main__":
    run_benchmark(ask, CONFIG, quick=QUICK, document=__doc__)
