"""Question  What does a training step take on 8 to 1,024 GPUs, and where does
          data parallelism end?
Command   python experiments/scaling_table.py

Nothing is measured: these are the formulas of kerasgpt/training/scaling.py
with the figures of H100 nodes. What was checked: experiments/scaling_check.py.
"""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from kerasgpt.models import GPTConfig
from kerasgpt.training.scaling import (
    H100_CLUSTER,
    Layout,
    break_even_tokens,
    step_cost,
)

GPUS = (8, 64, 256, 1024)
# Shapes: Radford et al. 2019 (GPT-2, smallest and largest); Grattafiori et al.
# 2024, Llama 3 (arXiv 2407.21783), table 3. Tokens of a step: Brown et al. 2020
# (arXiv 2005.14165), table 2.1; Llama 3, section 3.4.1.
GPT2 = GPTConfig(
    vocabulary_size=50257,
    context_length=1024,
    num_layers=12,
    num_heads=12,
    num_kv_heads=12,
    head_dim=64,
    model_dim=768,
    inner_dim=3072,
    activation="gelu_tanh",
    norm="layer",
    position="learned",
    qk_norm=False,
    use_bias=True,
)
MODELS = {
    "124M": (GPT2, 2**19),
    "1.5B": (
        dataclasses.replace(
            GPT2,
            num_layers=48,
            num_heads=25,
            num_kv_heads=25,
            model_dim=1600,
            inner_dim=6400,
        ),
        2**20,
    ),
    "8B": (
        GPTConfig(
            vocabulary_size=128256,
            context_length=8192,
            num_layers=32,
            num_heads=32,
            num_kv_heads=8,
            head_dim=128,
            model_dim=4096,
            inner_dim=14336,
            activation="swiglu",
            qk_norm=False,
            tie_embeddings=False,
        ),
        2**22,
    ),
}
HEADER = (
    "GPUs",
    "layout",
    "tokens a GPU",
    "memory, GB",
    "computing, ms",
    "weights, ms",
    "activations, ms",
    "idle, ms",
    "step, ms",
    "MFU",
)


def layouts(config, gpus):
    """Returns the layouts to compare, by name."""
    node = H100_CLUSTER.node_gpus
    found = {
        "data": Layout(data=gpus),
        "FSDP": Layout(data=gpus, is_sharded=True),
    }
    # Neither 12 nor 25 heads can be cut into eight parts.
    tensor = node if config.num_kv_heads % node == 0 else 1
    name = f"tensor {tensor} × " if tensor > 1 else ""
    if tensor > 1:
        found[f"{name}data"] = Layout(data=gpus // tensor, tensor=tensor)
    if gpus >= 4 * node:
        found[f"{name}pipeline 4 × data"] = Layout(
            data=gpus // tensor // 4, tensor=tensor, pipeline=4
        )
    return found


def row(config, batch_tokens, gpus, name, layout):
    cost = step_cost(config, layout, H100_CLUSTER, batch_tokens=batch_tokens)
    start = [f"{gpus:,}", name, f"{batch_tokens // gpus:,}"]
    if cost is None:
        return [*start, "fewer rows than GPUs", *[""] * 6]
    memory = f"{cost.memory_bytes / 1e9:.1f}"
    room = H100_CLUSTER.memory_fraction * H100_CLUSTER.memory_bytes
    if cost.memory_bytes > room:
        return [*start, f"{memory}: too much", *[""] * 6]
    times = (
        cost.compute_seconds,
        cost.weights_seconds,
        cost.activations_seconds,
        cost.idle_seconds,
    )
    return [
        *start,
        memory,
        *(f"{1e3 * seconds:,.1f}" for seconds in times),
        f"{1e3 * cost.least_seconds:,.0f} to {1e3 * cost.seconds:,.0f}",
        f"{cost.model_flops_fraction:.0%}",
    ]


def table(rows):
    """Returns the lines of a Markdown table."""
    lines = [HEADER, ["---"] * len(HEADER), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def main():
    for name, (config, batch_tokens) in MODELS.items():
        rows = [
            row(config, batch_tokens, gpus, kind, layout)
            for gpus in GPUS
            for kind, layout in layouts(config, gpus).items()
        ]
        print(
            f"\n### {name}: {config.num_parameters:,} parameters, "
            f"{batch_tokens:,} tokens a step in rows of "
            f"{config.context_length:,}\n"
        )
        print("\n".join(table(rows)))
    print("\n### Tokens of a GPU below which summing takes longer\n")
    print("| GPUs | tokens of a step on each |\n| --- | --- |")
    for gpus in GPUS:
        tokens = break_even_tokens(H100_CLUSTER, gpus=gpus)
        print(f"| {gpus:,} | {tokens:,.0f} |")


if __name__ == "__main__":
    main()
