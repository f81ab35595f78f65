"""Owns what a run will cost, told before it starts. Not: running it."""

import dataclasses

from kerasgpt.checkpoints.exchange import load_pretrained_config
from kerasgpt.config import InputError
from kerasgpt.models.gpt import GPTConfig
from kerasgpt.tokenizers.byte import ByteTokenizer
from kerasgpt.training.memory import (
    LIBRARY_BYTES,
    available_bytes,
    cache_bytes,
    memory_parts,
    model_bytes,
    num_rows,
    run_bytes,
    stage_bytes,
)
from kerasgpt.training.pretrain import DEFAULT_CONTEXT
from kerasgpt.training.speed import measure_speed
from kerasgpt.training.stage import TrainConfig
from kerasgpt.training.tokenizer import open_tokenizer

# Assumed, not measured: share of a GPU's peak that training reaches, seconds
# to launch the kernels of a step however small, memory of its libraries.
GPU_PEAK_FRACTION, GPU_STEP_SECONDS = 0.3, 0.005
GPU_LIBRARY_BYTES = 1e9
# Of the prices below: middle of what clouds for GPUs listed, on demand.
PRICE_DATE = "May 2026"
# The least of what is tried to make a run fit.
SHORTEST_CONTEXT, SMALLEST_VOCABULARY = 64, 512


@dataclasses.dataclass(frozen=True)
class GPU:
    """One accelerator that can be rented.

    Attributes:
        name: str.
        peak_flops: float, FLOP/s of dense bfloat16 matrix products (T4:
            float16), from the vendor's data sheet.
        memory_bytes: float.
        dollars_an_hour: float. An assumption: on demand, `PRICE_DATE`.
    """

    name: str
    peak_flops: float
    memory_bytes: float
    dollars_an_hour: float


# Peaks and memory: NVIDIA's data sheets of T4, L4, A100 80GB SXM, H100 SXM and
# H200 SXM, without sparsity; "NVIDIA Ada GPU architecture" for the RTX 4090.
GPUS = (
    GPU("T4", 65e12, 16e9, 0.35),
    GPU("L4", 121e12, 24e9, 0.44),
    GPU("RTX 4090", 165.2e12, 24e9, 0.69),
    GPU("A100", 312e12, 80e9, 1.30),
    GPU("H100", 989.4e12, 80e9, 3.00),
    GPU("H200", 989.4e12, 141e9, 4.00),
)


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """What one stage takes, computed from its shape alone.

    Attributes:
        model: GPTConfig.
        train: TrainConfig.

    Example:
        >>> plan = StagePlan(GPTConfig.from_depth(2), TrainConfig(steps=10))
        >>> plan.tokens, f"{plan.flops:.2e}"
        (20480, '6.85e+10')
    """

    model: GPTConfig
    train: TrainConfig

    @property
    def tokens(self):
        """Int. Positions of all steps: whole rows, at least one a step."""
        rows = num_rows(self.model, self.train)
        return self.train.steps * rows * self.model.context_length

    @property
    def flops(self):
        """Float. Of all steps."""
        return self.model.training_flops_per_token * self.tokens

    @property
    def memory(self):
        """Dict of part to bytes, see `memory_parts`."""
        return memory_parts(self.model, self.train)


def plan_stages(config, stages):
    """Returns dict of stage name to StagePlan.

    Args:
        config: config of the run, with `model` and `tokenizer` sections.
        stages: function of the config, returns dict of name to TrainConfig.

    Raises:
        InputError: if the settings do not fit together, or the model to start
            from cannot be read.
    """
    if getattr(config, "init", ""):
        model = load_pretrained_config(config.init)
    else:
        size = config.tokenizer.vocabulary_size
        if config.tokenizer.path:
            size = open_tokenizer(config.tokenizer.path).vocabulary_size
        elif config.tokenizer.kind == ByteTokenizer.kind:
            size = ByteTokenizer().vocabulary_size
        model = config.model.build_config(
            vocabulary_size=size,
            context_length=DEFAULT_CONTEXT,
        )
    return {
        name: StagePlan(model, train) for name, train in stages(config).items()
    }


def needed_bytes(plans):
    """Returns the memory of a run at its peak.

    Args:
        plans: dict of StagePlan, see `plan_stages`.
    """
    return run_bytes([plan.memory for plan in plans.values()])


def fitting_settings(config, stages, limit_bytes):
    """Returns what could be set so that a run fits into memory.

    Args:
        config: config of the run.
        stages: function of the config, returns dict of name to TrainConfig.
        limit_bytes: float, memory that there is.

    Returns:
        list of lists of "key=value". Each list alone makes the run fit, and
        has the largest value that does, of powers of two or of all depths.
        Empty if nothing does.
    """

    def fits(overrides):
        try:
            plans = plan_stages(config.override(overrides), stages)
        except InputError:
            # Such as another depth, of a run that starts from a given model.
            return False
        return needed_bytes(plans) <= limit_bytes

    plans = plan_stages(config, stages)
    model = next(iter(plans.values())).model
    rows = {name: num_rows(model, plan.train) for name, plan in plans.items()}

    def batches(limit):
        return [
            f"{name}.batch_tokens={limit * model.context_length}"
            for name, count in rows.items()
            if count > limit
        ]

    def halves(key, value, least):
        return [[f"{key}={size}"] for size in _powers_below(value, least)]

    depths = [
        [f"model.depth={depth}"] for depth in range(model.num_layers - 1, 0, -1)
    ]
    choices = (
        [batches(limit) for limit in _powers_below(max(rows.values()), 1)],
        halves("model.context_length", model.context_length, SHORTEST_CONTEXT),
        halves(
            "tokenizer.vocabulary_size",
            model.vocabulary_size,
            SMALLEST_VOCABULARY,
        ),
        depths,
    )
    found = [next(filter(fits, choice), None) for choice in choices]
    found = [overrides for overrides in found if overrides]
    # Not one alone: then the deepest model that is fed row by row.
    return (
        found
        or [
            overrides
            for overrides in ([*batches(1), *depth] for depth in depths)
            if fits(overrides)
        ][:1]
    )


def _powers_below(value, least):
    """Returns the powers of two from below `value` down to `least`.

    Example:
        >>> _powers_below(8, 1), _powers_below(9, 4)
        ([4, 2, 1], [8, 4])
    """
    exponents = range((value - 1).bit_length() - 1, -1, -1)
    return [2**exponent for exponent in exponents if 2**exponent >= least]


def plan_run(
    config,
    stages,
    *,
    prices=None,
    gpu_peak_fraction=GPU_PEAK_FRACTION,
    limit_bytes=None,
    measure=measure_speed,
):
    """Returns lines that tell what a run will cost, here and on GPUs.

    Args:
        config: config of the run, with `model` and `tokenizer` sections.
        stages: function of the config, returns dict of name to TrainConfig.
        prices: dict of a GPU's name to dollars an hour, where known better.
        gpu_peak_fraction: float. Share of a GPU's peak that is reached.
        limit_bytes: float. `None` = what this machine has left.
        measure: function of (GPTConfig, TrainConfig), returns a Speed; only
            called if the run fits.

    Raises:
        InputError: for a price of an unknown GPU, or settings that do not fit
            together.
    """
    gpus = _priced(prices or {})
    plans = plan_stages(config, stages)
    needed = needed_bytes(plans)
    limit_bytes = limit_bytes or available_bytes()
    is_fitting = needed <= limit_bytes
    speeds = _speeds(plans, measure) if is_fitting else {}
    lines = [*_stage_lines(plans, speeds), "", *_memory_lines(plans), ""]
    if is_fitting:
        lines.append(f"fits: {_size(needed)} of {_size(limit_bytes)} free.")
        lines.append(_time_line(plans, speeds))
    else:
        cures = fitting_settings(config, stages, limit_bytes)
        lines += [
            f"does not fit: {_size(needed)} needed, {_size(limit_bytes)} free.",
            "each of these lines makes it fit:"
            if cures
            else "neither a smaller batch nor a smaller model would fit.",
            *(f"  {' '.join(overrides)}" for overrides in cures),
        ]
    lines += ["", *_gpu_lines(plans, gpus, gpu_peak_fraction)]
    for name, plan in plans.items():
        if plan.train.epochs is not None:
            lines.append(
                f"{name}: how many steps {plan.train.epochs:g} epochs are is "
                f"known once the data are read; told for {name}.steps="
                f"{plan.train.steps:,}."
            )
    # Of a distillation there are neither: its data are the teacher's.
    path = getattr(getattr(config, "data", None), "path", "")
    is_own = not getattr(config, "init", "") and path
    if is_own and not config.model.context_length:
        lines.append(
            f"estimated for a context of {DEFAULT_CONTEXT}; your conversations "
            f"may need a longer one, set by model.context_length."
        )
    return lines


def _speeds(plans, measure):
    """Returns dict of stage name to Speed; what is alike is measured once."""
    measured, speeds = {}, {}
    for name, plan in plans.items():
        train = plan.train
        key = (
            num_rows(plan.model, train),
            train.optimizer,
            train.precision,
            train.rematerialize,
            train.jit_compile,
        )
        if key not in measured:
            measured[key] = measure(plan.model, train)
        speeds[name] = measured[key]
    return speeds


def _stage_lines(plans, speeds):
    lines = [
        f"{'stage':10} {'parameters':>13} {'tokens':>14} {'FLOPs':>8} "
        f"{'s/step':>7} {'minutes':>8} {'memory':>8}"
    ]
    for name, plan in plans.items():
        shown = f"{'–':>7} {'–':>8}"
        if name in speeds:
            minutes = speeds[name].seconds(plan.train.steps) / 60
            shown = f"{speeds[name].step_seconds:7.3f} {minutes:8.1f}"
        lines.append(
            f"{name:10} {plan.model.num_parameters:13,} {plan.tokens:14,} "
            f"{plan.flops:8.1e} {shown} {_size(stage_bytes(plan.memory)):>8}"
        )
    return lines


def _memory_lines(plans):
    largest = max(plans.values(), key=lambda plan: stage_bytes(plan.memory))
    parts = {"libraries": LIBRARY_BYTES, **largest.memory}
    model = largest.model
    return [
        "memory by part (activations and logits are gone when the undo copy "
        "is made):",
        *(f"  {name:12} {_size(parts[name]):>8}" for name in parts),
        f"and {_size(cache_bytes(model))} of keys and values for each reply in "
        f"a conversation of {model.context_length} tokens.",
    ]


def _time_line(plans, speeds):
    seconds = sum(
        speeds[name].seconds(plan.train.steps) for name, plan in plans.items()
    )
    compiling = sum(speed.compile_seconds for speed in speeds.values())
    return (
        f"about {seconds / 60:.1f} minutes of training on this machine, "
        f"{compiling:.0f} seconds of them to compile, measured just now; "
        f"data, validation and report come on top."
    )


def _gpu_lines(plans, gpus, peak_fraction):
    needed = GPU_LIBRARY_BYTES + max(
        model_bytes(plan.memory) for plan in plans.values()
    )
    lines = [
        f"{'GPU':10} {'memory':>8} {'fits':>5} {'minutes':>8} {'$/hour':>7} "
        f"{'$':>7}"
    ]
    for gpu in gpus:
        seconds = sum(
            max(
                plan.flops / (peak_fraction * gpu.peak_flops),
                plan.train.steps * GPU_STEP_SECONDS,
            )
            for plan in plans.values()
        )
        dollars = seconds / 3600 * gpu.dollars_an_hour
        is_fitting = needed <= gpu.memory_bytes
        lines.append(
            f"{gpu.name:10} {_size(gpu.memory_bytes):>8} "
            + (
                f"{'yes':>5} {seconds / 60:8.1f} {gpu.dollars_an_hour:7.2f} "
                f"{dollars:7.2f}"
                if is_fitting
                else f"{'no':>5} {'–':>8} {'–':>7} {'–':>7}"
            )
        )
    return [
        *lines,
        f"assumed, not measured: {peak_fraction:.0%} of the data sheet's "
        f"bfloat16 peak (--mfu), at least {1e3 * GPU_STEP_SECONDS:.0f} ms a "
        f"step, float32 memory, prices on demand of {PRICE_DATE} (--price, "
        f"see kerasgpt plan --help).",
    ]


def _priced(prices):
    unknown = set(prices) - {gpu.name for gpu in GPUS}
    if unknown:
        raise InputError(
            f"price of {min(unknown)}: must be of "
            f"{', '.join(gpu.name for gpu in GPUS)}."
        )
    return [
        dataclasses.replace(
            gpu, dollars_an_hour=prices.get(gpu.name, gpu.dollars_an_hour)
        )
        for gpu in GPUS
    ]


def _size(count):
    """Returns a size for people, such as "1.4 GB"."""
    if count < 1e9:
        return f"{count / 1e6:.0f} MB"
    return f"{count / 1e9:.1f} GB"
