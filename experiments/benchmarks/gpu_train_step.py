"""Question  How fast is a training step on a GPU, through Keras on JAX, against
          torch.compile?
Command   python experiments/benchmarks/gpu_train_step.py

GPT-2 124M without biases, bfloat16, AdamW, the same first weights and batches.
This python needs keras, jax with its CUDA plugin and torch, but no TensorFlow;
without a GPU, `--quick` checks on the CPU that the script works.
"""

import dataclasses
import math
import os
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments.benchmarks.contest import Contest, ContestConfig, ours
from experiments.benchmarks.report import (
    Answer,
    Figure,
    machine_line,
    run_benchmark,
    table,
)
from kerasgpt.config import InputError, setting

OURS, CHUNKED, COMPILED = (
    "kerasgpt on JAX",
    "kerasgpt on JAX, chunked loss",
    "torch.compile",
)
OPTIMIZER = {"learning_rate": 1e-3, "weight_decay": 0.1, "beta_2": 0.95}
# Bfloat16 in another order, through two repetitions of AdamW.
LOSS_TOLERANCE = 1e-2
# TFLOP/s of dense bfloat16 products, from NVIDIA's data sheets; the first
# whose name the device's name has.
PEAKS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
HEADER = [
    "contestant",
    "ms/step",
    "tokens/s",
    "TFLOP/s",
    "MFU",
    "device GB",
    "compile s",
    f"speed / {COMPILED}",
    "first losses",
]


@dataclasses.dataclass(frozen=True)
class GpuTrainStepConfig(ContestConfig):
    """The training step on a GPU: shape of the model and of a batch."""

    # 50,257 rounded up, as GPUs like it.
    vocabulary_size: int = setting(50304, "of the model", unit="tokens")
    context_length: int = setting(1024, "of a row", unit="tokens")
    num_layers: int = setting(12, "of the model")
    model_dim: int = setting(768, "of the model")
    num_heads: int = setting(12, "of the model")
    batch_size: int = setting(16, "of a step", unit="rows", minimum=1)
    num_batches: int = setting(20, "of one repetition", unit="steps", minimum=1)


CONFIG = GpuTrainStepConfig(threads=4)
QUICK = [
    "threads=2",
    "repeats=2",
    "vocabulary_size=512",
    "context_length=64",
    "num_layers=2",
    "model_dim=64",
    "num_heads=2",
    "batch_size=4",
    "num_batches=5",
]


def contestants(config):
    shape = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(GpuTrainStepConfig)
        if field.name not in ContestConfig.__dataclass_fields__
    }
    task = {**shape, **OPTIMIZER}
    # Contests hide GPUs; here all share one, so none may take all its memory.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    shared = {
        "KERAS_BACKEND": "jax",
        "CUDA_VISIBLE_DEVICES": visible,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    mine = [
        ours(
            name,
            "gpu_jax_worker.py",
            {**task, "chunked_loss": name == CHUNKED},
            **shared,
        )
        for name in (OURS, CHUNKED)
    ]
    return [*mine, ours(COMPILED, "gpu_torch_worker.py", task, **shared)]


def peak_flops(device):
    """Returns the FLOP/s that a device's data sheet promises, or None."""
    for name, peak in PEAKS.items():
        if re.search(rf"\b{name}\b", device):
            return peak * 1e12
    return None


def row(config, contest, outcome):
    if outcome.missing:
        return [outcome.name, f"not measured: {outcome.missing}"]
    step_seconds = outcome.spread.median / config.num_batches
    tokens_per_second = config.batch_size * config.context_length / step_seconds
    flops = tokens_per_second * contest[OURS].facts.get(
        "flops_per_token", math.nan
    )
    peak = peak_flops(outcome.facts["device"])
    other = contest.measured(COMPILED)
    losses = ", ".join(f"{loss:.4f}" for loss in outcome.facts["losses"])
    return [
        outcome.name,
        outcome.spread.show(1e3 / config.num_batches),
        f"{tokens_per_second:,.0f}",
        f"{flops / 1e12:.2f}",
        f"{flops / peak:.1%}" if peak else "–",
        f"{outcome.facts['device_bytes'] / 1e9:.2f}",
        f"{outcome.facts['compile_seconds']:.1f}",
        outcome.speed_against(other).show(digits=2) if other else "",
        losses,
    ]


def check_losses(measured):
    """Raises unless all that were measured got the same losses."""
    for outcome in measured[1:]:
        pairs = zip(
            outcome.facts["losses"], measured[0].facts["losses"], strict=True
        )
        if not all(math.isclose(*p, rel_tol=LOSS_TOLERANCE) for p in pairs):
            raise InputError(
                f"the losses of {outcome.name} are {outcome.facts['losses']}, "
                f"those of {measured[0].name} {measured[0].facts['losses']}: "
                f"they do not train the same model."
            )


def speed_figure(contest):
    mine, other = contest.measured(OURS), contest.measured(COMPILED)
    name = f"GPU train step, speed over {COMPILED}"
    if not mine or not other:
        return Figure(name, "told", "not measured")
    device = other.facts["device"]
    if device == "cpu":
        return Figure(name, "told", "not measured: no GPU")
    speed = mine.speed_against(other).show(digits=2)
    return Figure(name, "told", f"{speed} × on {device}")


def ask(config):
    with Contest(contestants(config), config, with_yardsticks=False) as contest:
        contest.play({"run": 1})
    measured = [o for o in contest.outcomes if contest.measured(o.name)]
    check_losses(measured)
    devices = sorted({outcome.facts["device"] for outcome in measured})
    title = (
        f"{config.num_layers} layers, {config.model_dim} wide, rows of "
        f"{config.context_length}, {config.batch_size} a step, bfloat16, on "
        f"{' and '.join(devices) or 'nothing'}"
    )
    rows = [row(config, contest, outcome) for outcome in contest.outcomes]
    lines = [title, "", *table(HEADER, rows), "", machine_line(contest.facts)]
    return Answer(lines, [speed_figure(contest)], contest.record)


if __name__ == "__main__":
    run_benchmark(ask, CONFIG, quick=QUICK, document=__doc__)
