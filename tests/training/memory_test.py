import dataclasses
import os
import re
import subprocess
import sys

import keras
import pytest

from kerasgpt.models import GPTCausalLM, GPTConfig
from kerasgpt.training import memory
from kerasgpt.training.memory import (
    OTHER_PROGRAM_BYTES,
    available_bytes,
    cache_bytes,
    memory_parts,
    model_bytes,
    num_rows,
    run_bytes,
    stage_bytes,
)
from kerasgpt.training.optimizers import build_optimizer
from kerasgpt.training.stage import TrainConfig
from tests.descriptors import tiny_config

TRAIN = TrainConfig(batch_tokens=4096)
SMALL = GPTConfig.from_depth(2, vocabulary_size=2048, context_length=256)
SHAPES = [
    SMALL,
    dataclasses.replace(SMALL, position="learned"),
    dataclasses.replace(SMALL, tie_embeddings=False),
]


def built(config):
    model = GPTCausalLM(config, name="gpt")
    model.build()
    return model


@pytest.mark.parametrize("config", SHAPES)
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_weights_and_optimizer_are_those_of_the_model(config, kind):
    model = built(config)
    optimizer = build_optimizer(kind, 1e-3, weight_decay=0.1)
    optimizer.build(model.trainable_variables)
    train = dataclasses.replace(TRAIN, optimizer=kind)
    parts = memory_parts(config, train)
    assert parts["weights"] == parts["gradients"] == 4 * model.count_params()
    slots = sum(keras.ops.size(variable) for variable in optimizer.variables)
    # But for the second slot of the norms, and the step and the rate.
    assert parts["optimizer"] == pytest.approx(4 * int(slots), rel=0.01)
    assert parts["undo copy"] == parts["optimizer"]


def test_the_cache_is_as_large_as_one_that_is_allocated():
    config = tiny_config(context_length=32)
    cache = built(config).allocate_cache(1, 32)
    size = sum(keras.ops.size(keys) for keys in cache.keys + cache.values)
    assert cache_bytes(config) == 4 * int(size)


def test_rows_are_whole_and_at_least_one():
    for batch_tokens, rows in [(4096, 16), (4096 + 255, 16), (10, 1)]:
        train = dataclasses.replace(TRAIN, batch_tokens=batch_tokens)
        assert num_rows(SMALL, train) == rows


def test_a_deeper_model_takes_more_of_everything():
    parts = [
        memory_parts(GPTConfig.from_depth(depth), TRAIN)
        for depth in (2, 4, 6, 8, 12)
    ]
    for name in parts[0]:
        sizes = [one[name] for one in parts]
        assert sizes == sorted(sizes) and sizes[0] > 0
        assert sizes[0] < sizes[-1]


def test_activations_grow_with_the_batch_and_nothing_with_the_steps():
    parts = memory_parts(SMALL, TRAIN)
    longer = dataclasses.replace(TRAIN, steps=20)
    assert memory_parts(SMALL, longer) == parts
    larger = memory_parts(SMALL, dataclasses.replace(TRAIN, batch_tokens=8192))
    assert larger["activations"] == 2 * parts["activations"]
    assert larger["weights"] == parts["weights"]


def test_logits_are_those_of_a_chunk():
    config = dataclasses.replace(SMALL, vocabulary_size=32768)
    logits = memory_parts(config, TRAIN)["logits"]
    whole = 4 * 4096 * config.vocabulary_size
    assert 0 < logits < whole / 4


def test_undoing_is_paid_once_activations_are_gone():
    parts = dict.fromkeys(memory_parts(SMALL, TRAIN), 0)
    assert model_bytes({**parts, "undo copy": 5, "activations": 2}) == 5
    assert model_bytes({**parts, "activations": 4, "logits": 3}) == 7
    assert model_bytes({**parts, "program": 9}) == 0


def test_a_run_keeps_the_programs_of_all_stages_and_one_stage_s_model():
    small = memory_parts(SMALL, TRAIN)
    large = memory_parts(SMALL, dataclasses.replace(TRAIN, batch_tokens=65536))
    assert run_bytes([small, large]) == pytest.approx(
        stage_bytes(large) + small["program"] + OTHER_PROGRAM_BYTES
    )


def test_the_memory_of_this_machine_is_found():
    assert 1e8 < available_bytes() <= 1e14


@pytest.mark.parametrize(
    ("limit", "available"), [("1000", 1000), ("max", 5120), ("9999", 5120)]
)
def test_a_container_may_have_less(monkeypatch, tmp_path, limit, available):
    for name, text in [
        ("MEMORY_INFO", "MemTotal:  9 kB\nMemAvailable:  5 kB\n"),
        ("CONTAINER_LIMIT", f"{limit}\n"),
    ]:
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(memory, name, tmp_path / name)
    assert available_bytes() == available


# What the numbers in memory.py were read off: XLA says what it will allocate.
STEP = """
import sys
from kerasgpt.models import GPTConfig
from kerasgpt.training.speed import train_call
from kerasgpt.training.stage import TrainConfig
from tests.training.memory_test import XLA_SHAPES
shape, train = XLA_SHAPES[int(sys.argv[1])]
train_call(shape, train, train.batch_tokens // shape.context_length)()
"""
XLA_SHAPES = [
    (SMALL, TRAIN),
    (
        GPTConfig.from_depth(
            2, context_length=384, model_dim=192, activation="swiglu"
        ),
        TrainConfig(batch_tokens=3072, optimizer="adamw"),
    ),
    # So few tokens that the optimizer's update takes most.
    (
        GPTConfig.from_depth(1, vocabulary_size=8192, model_dim=512),
        TrainConfig(batch_tokens=256),
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(XLA_SHAPES)))
def test_the_compiler_takes_what_is_predicted(index, tmp_path):
    flags = f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text"
    subprocess.run(
        [sys.executable, "-c", STEP, str(index)],
        env={**os.environ, "XLA_FLAGS": flags},
        check=True,
        capture_output=True,
        timeout=300,
    )
    sizes = [
        int(size)
        for path in tmp_path.glob("*buffer-assignment.txt")
        for size in re.findall(
            r"size (\d+), preallocated-temp", path.read_text()
        )
    ]
    parts = memory_parts(*XLA_SHAPES[index])
    predicted = model_bytes(parts) - parts["weights"] - parts["optimizer"]
    assert max(sizes) == pytest.approx(predicted, rel=0.2)
