"""Owns what a train step takes of memory. Not: how long it takes (speed.py)."""

import math
import os
import pathlib

from kerasgpt.layers.attention import BLOCK_LENGTH
from kerasgpt.layers.feed_forward import ACTIVATIONS
from kerasgpt.training.losses import CHUNK_BYTES, LEAST_KERNELS

FLOAT_BYTES = 4
# Float32 values that XLA keeps of a position and block for the backward pass:
# so many times the width of the model, of its queries, of its keys (and of
# them again for each attention block that reads them), of the inner width
# (gated or not) and of the scores. And of a position's logits and hidden
# state. Read off XLA's buffer assignments (--xla_dump_to) of 26 shapes, which
# they give to -4 to +6 %, or +15 % where the optimizer's update takes most.
MODEL_KEPT, QUERIES_KEPT, KEYS_KEPT, KEYS_READ = 4, 3, 2, 2
INNER_KEPT, GATED_KEPT, SCORES_KEPT = 2, 5, 2
LOGITS_KEPT = 4
# Resident bytes of imported libraries; of a compiled train step, for each of
# its blocks, and for each of their attention's query blocks; of all else that a
# run compiles: validation, replies, export. Measured on Linux by
# experiments/benchmarks/plan.py, the last by experiments/run_sft.py.
LIBRARY_BYTES, STEP_BYTES, BLOCK_BYTES = 0.6e9, 0.43e9, 50e6
QUERY_BLOCK_BYTES = 15e6
OTHER_PROGRAM_BYTES = 0.3e9
# Of Linux: what is free, and what a container may take.
MEMORY_INFO = pathlib.Path("/proc/meminfo")
CONTAINER_LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")


def memory_parts(model_config, train_config):
    """Returns dict of part to bytes, of a stage's train step under XLA.

    Args:
        model_config: GPTConfig.
        train_config: TrainConfig.

    Returns:
        dict: weights, optimizer, gradients, "undo copy" (what a step that is
        not finite goes back to), activations, logits, program (what compiling
        leaves behind).
    """
    # Of the rows that are computed at once.
    positions = num_rows(model_config, train_config)
    positions *= model_config.context_length / train_config.accumulate_steps
    weights = FLOAT_BYTES * model_config.num_parameters
    slots = FLOAT_BYTES * _num_slots(model_config, train_config.optimizer)
    values = model_config.num_layers * _values_kept(model_config)
    if train_config.rematerialize:
        # What enters each block, and one block at a time.
        values = model_config.num_layers * model_config.model_dim
        values += _values_kept(model_config)
    query_blocks = math.ceil(model_config.context_length / BLOCK_LENGTH)
    return {
        "weights": weights,
        "optimizer": slots,
        # Of a part of the rows, and their sum.
        "gradients": weights * (2 if train_config.accumulate_steps > 1 else 1),
        "undo copy": slots,
        "activations": FLOAT_BYTES * positions * values,
        "logits": _logits_bytes(model_config, positions),
        "program": STEP_BYTES
        + model_config.num_layers
        * (BLOCK_BYTES + QUERY_BLOCK_BYTES * query_blocks),
    }


def model_bytes(parts):
    """Returns the largest sum of the parts that exist at once, no program.

    When the optimizer writes, activations and logits are gone.
    """
    return (
        parts["weights"]
        + parts["optimizer"]
        + parts["gradients"]
        + max(parts["activations"] + parts["logits"], parts["undo copy"])
    )


def stage_bytes(parts):
    """Returns the resident memory of a process that only runs train steps."""
    return LIBRARY_BYTES + parts["program"] + model_bytes(parts)


def run_bytes(stages):
    """Returns the resident memory of a whole run at its peak.

    Compiled programs stay, one after the other; what a stage computes with
    is given back to the next.

    Args:
        stages: list of dicts, `memory_parts` of each stage.
    """
    return (
        LIBRARY_BYTES
        + OTHER_PROGRAM_BYTES
        + sum(parts["program"] for parts in stages)
        + max(map(model_bytes, stages))
    )


def cache_bytes(model_config):
    """Returns bytes of the key/value cache of one full-length conversation."""
    heads = model_config.num_kv_heads * model_config.head_dim
    values = 2 * model_config.num_layers * heads
    return FLOAT_BYTES * values * model_config.context_length


def available_bytes():
    """Returns the memory that a new process may take on this machine."""
    try:
        lines = MEMORY_INFO.read_text().splitlines()
        found = dict(line.split(":") for line in lines)["MemAvailable"]
        free = 1024 * int(found.split()[0])
    except (OSError, KeyError):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(free, int(CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):
        # No container, or one without a limit, whose file says "max".
        return free


def num_rows(model_config, train_config):
    """Returns the rows of a batch."""
    return max(1, train_config.batch_tokens // model_config.context_length)


def _num_slots(config, optimizer):
    """Returns how many numbers the optimizer keeps, but for a few vectors'."""
    if optimizer == "adamw":
        return 2 * config.num_parameters
    # Muon keeps one of each; only the tables are left to AdamW.
    rows = config.vocabulary_size * (1 if config.tie_embeddings else 2)
    if config.position == "learned":
        rows += config.context_length
    return config.num_parameters + rows * config.model_dim


def _values_kept(config):
    """Returns float32 values a position and block, for the backward pass."""
    block = min(config.context_length, BLOCK_LENGTH)
    # Queries of a block see the keys up to the last of them.
    keys = (config.context_length + block) / 2
    is_gated = ACTIVATIONS[config.activation][1]
    key_dim = config.num_kv_heads * config.head_dim
    return (
        MODEL_KEPT * config.model_dim
        + QUERIES_KEPT * config.num_heads * config.head_dim
        + (KEYS_KEPT + KEYS_READ * keys / block) * key_dim
        + (GATED_KEPT if is_gated else INNER_KEPT) * config.inner_dim
        + SCORES_KEPT * config.num_heads * keys
    )


def _logits_bytes(config, positions):
    """Returns bytes of a chunk of logits, and of what it is computed from."""
    table = FLOAT_BYTES * config.vocabulary_size * config.model_dim
    whole = FLOAT_BYTES * config.vocabulary_size * positions
    chunk = whole / math.ceil(whole / max(CHUNK_BYTES, LEAST_KERNELS * table))
    hidden_states = FLOAT_BYTES * config.model_dim * positions
    return LOGITS_KEPT * (chunk + hidden_states)
