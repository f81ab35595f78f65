"""Owns what a run will cost, told before it starts. Not: running it."""

import time

import tensorflow as tf

from kerasgpt.checkpoints.model_folder import find_model_folder, load_config
from kerasgpt.tokenizers.byte import ByteTokenizer
from kerasgpt.training.pretrain import DEFAULT_CONTEXT

# Of a measured large matrix product; the default run reached 0.4 to 0.5
# (experiments/LOG.md). Small kernels, softmax and the optimizer take the rest.
USED_PEAK_FRACTION = 0.4
# Bytes that Python, TensorFlow and compiled programs take beside the model: the
# default run peaked at 2.6 GB (experiments/records/2026-11-23_sft).
RUNTIME_BYTES = 2.2e9


def plan_stage(model_config, train_config, *, peak_flops):
    """Returns the cost of one stage as a dict of plain numbers.

    Args:
        model_config: GPTConfig.
        train_config: TrainConfig.
        peak_flops: float, FLOP/s of a large matrix product on this machine.

    Returns:
        dict: parameters, tokens, minutes, memory_bytes.
    """
    context = model_config.context_length
    rows = max(1, train_config.batch_tokens // context)
    tokens = train_config.steps * rows * context
    flops = model_config.training_flops_per_token * tokens
    positions = rows * context
    # Weights, gradients, two optimizer slots, and the copy that is kept to
    # undo a step whose gradient is not finite.
    weights = 4 * model_config.num_parameters * 7
    # float32 values a position and block: what the backward pass needs.
    widths = 10 * model_config.model_dim + 3 * model_config.inner_dim
    scores = 3 * model_config.num_heads * context
    activations = 4 * positions * model_config.num_layers * (widths + scores)
    logits = 3 * 4 * positions * model_config.vocabulary_size
    return {
        "parameters": model_config.num_parameters,
        "tokens": tokens,
        "minutes": flops / (USED_PEAK_FRACTION * peak_flops) / 60,
        "memory_bytes": RUNTIME_BYTES + weights + activations + logits,
    }


def plan_run(config, stages):
    """Returns lines that tell what a run will cost on this machine.

    Args:
        config: config of the run, with `model` and `tokenizer` sections.
        stages: dict of stage name to TrainConfig.
    """
    init = getattr(config, "init", "")
    if init:
        model_config = load_config(find_model_folder(init))
    else:
        is_byte = config.tokenizer.kind == ByteTokenizer.kind
        model_config = config.model.build_config(
            vocabulary_size=ByteTokenizer().vocabulary_size
            if is_byte
            else config.tokenizer.vocabulary_size,
            context_length=DEFAULT_CONTEXT,
        )
    peak_flops = measure_peak_flops()
    lines = [
        f"{'stage':10} {'parameters':>12} {'tokens':>12} {'minutes':>8} "
        f"{'memory':>9}"
    ]
    minutes = 0.0
    for name, train_config in stages.items():
        plan = plan_stage(model_config, train_config, peak_flops=peak_flops)
        minutes += plan["minutes"]
        lines.append(
            f"{name:10} {plan['parameters']:12,} {plan['tokens']:12,} "
            f"{plan['minutes']:8.1f} {plan['memory_bytes'] / 1e9:7.1f} GB"
        )
    lines.append(
        f"about {minutes:.1f} minutes of training on this machine "
        f"({peak_flops / 1e9:.0f} GFLOP/s measured), and 2 for the rest."
    )
    if not init and not config.model.context_length and config.data.path:
        lines.append(
            f"estimated for a context of {DEFAULT_CONTEXT}; your conversations "
            f"may need a longer one, set by model.context_length."
        )
    return lines


def measure_peak_flops(size=1024, repeats=8):
    """Returns FLOP/s of a float32 matrix product, the best of `repeats`."""
    matrix = tf.ones((size, size))
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        tf.matmul(matrix, matrix).numpy()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)
