import dataclasses
import types

import pytest

from kerasgpt.checkpoints import save_model
from kerasgpt.config import InputError
from kerasgpt.data.prepare import DataConfig
from kerasgpt.models import GPTCausalLM, GPTConfig, ModelConfig
from kerasgpt.tokenizers import ByteTokenizer
from kerasgpt.training.plan import measure_peak_flops, plan_run, plan_stage
from kerasgpt.training.pretrain import TokenizerConfig
from kerasgpt.training.stage import TrainConfig
from tests.descriptors import tiny_config

TRAIN = TrainConfig(steps=10, batch_tokens=4096)


def plan(model_config, train_config=TRAIN, peak_flops=1e10):
    return plan_stage(model_config, train_config, peak_flops=peak_flops)


def from_depth(depth):
    return GPTConfig.from_depth(depth, vocabulary_size=2048, context_length=256)


def test_parameters_are_those_of_the_model():
    model = GPTCausalLM(tiny_config(), name="gpt")
    model.build()
    assert plan(model.config)["parameters"] == model.count_params()


@pytest.mark.parametrize(
    ("batch_tokens", "tokens"),
    # Only whole rows are read, and at least one.
    [(4096, 40_960), (4096 + 255, 40_960), (256, 2560), (10, 2560)],
)
def test_tokens_are_steps_times_whole_rows(batch_tokens, tokens):
    train_config = dataclasses.replace(TRAIN, batch_tokens=batch_tokens)
    assert plan(from_depth(4), train_config)["tokens"] == tokens


def test_a_deeper_model_costs_more_of_everything():
    plans = [plan(from_depth(depth)) for depth in (2, 4, 6, 8, 12)]
    for name in ("parameters", "minutes", "memory_bytes"):
        costs = [one[name] for one in plans]
        assert costs == sorted(set(costs))
        assert costs[0] > 0


def test_minutes_grow_with_steps_and_shrink_with_speed():
    minutes = plan(from_depth(4))["minutes"]
    longer = dataclasses.replace(TRAIN, steps=20)
    assert plan(from_depth(4), longer)["minutes"] == pytest.approx(2 * minutes)
    faster = plan(from_depth(4), peak_flops=4e10)["minutes"]
    assert faster == pytest.approx(minutes / 4)


def test_memory_grows_with_the_batch_but_not_with_the_steps():
    memory = plan(from_depth(4))["memory_bytes"]
    longer = dataclasses.replace(TRAIN, steps=20)
    larger = dataclasses.replace(TRAIN, batch_tokens=8192)
    assert plan(from_depth(4), longer)["memory_bytes"] == memory
    assert plan(from_depth(4), larger)["memory_bytes"] > memory


def run_config(**changes):
    sections = {
        "model": ModelConfig(),
        "tokenizer": TokenizerConfig(),
        "data": DataConfig(),
    }
    return types.SimpleNamespace(**{**sections, **changes})


def test_a_run_is_told_stage_by_stage():
    lines = plan_run(run_config(), {"pretrain": TRAIN, "train": TRAIN})
    header, first, second, total = lines
    for word in ("parameters", "tokens", "minutes", "memory"):
        assert word in header
    assert first.startswith("pretrain ") and second.startswith("train ")
    assert "40,960" in first
    assert "minutes of training on this machine" in total


def test_a_context_that_depends_on_the_data_is_told():
    own = DataConfig(path="chats.jsonl")
    lines = plan_run(run_config(data=own), {"train": TRAIN})
    assert "set by model.context_length" in lines[-1]
    fixed = run_config(data=own, model=ModelConfig(context_length=512))
    lines = plan_run(fixed, {"train": TRAIN})
    assert not any("context" in line for line in lines)


def parameters(lines):
    """Returns the number in the parameters column of the first stage."""
    return int(lines[1].split()[1].replace(",", ""))


def test_bytes_have_the_vocabulary_of_bytes():
    config = run_config(tokenizer=TokenizerConfig(kind="byte"))
    size = ByteTokenizer().vocabulary_size
    expected = GPTConfig.from_depth(
        4, vocabulary_size=size, context_length=256
    ).num_parameters
    assert parameters(plan_run(config, {"train": TRAIN})) == expected
    large = plan_run(run_config(), {"train": TRAIN})
    assert parameters(large) > expected


def test_a_start_brings_its_own_shape(tmp_path):
    model = GPTCausalLM(
        tiny_config(vocabulary_size=265, context_length=32), name="gpt"
    )
    model.build()
    save_model(tmp_path / "model", model, ByteTokenizer())
    for init in (tmp_path, tmp_path / "model"):
        config = run_config(init=str(init), data=DataConfig(path="chats.jsonl"))
        lines = plan_run(config, {"train": TRAIN})
        assert parameters(lines) == model.count_params()
        assert not any("context" in line for line in lines)
    with pytest.raises(InputError, match="holds no trained model"):
        plan_run(run_config(init=str(tmp_path / "none")), {"train": TRAIN})


def test_the_speed_of_this_machine_is_measured():
    assert measure_peak_flops(size=64, repeats=2) > 0
