import dataclasses
import types

import pytest

from kerasgpt.checkpoints import save_model
from kerasgpt.config import InputError
from kerasgpt.data.prepare import DataConfig
from kerasgpt.models import GPTCausalLM, GPTConfig, ModelConfig
from kerasgpt.tokenizers import ByteTokenizer
from kerasgpt.training.plan import (
    GPUS,
    StagePlan,
    fitting_settings,
    needed_bytes,
    plan_run,
    plan_stages,
)
from kerasgpt.training.pretrain import TokenizerConfig
from kerasgpt.training.sft import SFTConfig
from kerasgpt.training.speed import Speed
from kerasgpt.training.stage import TrainConfig
from tests.descriptors import tiny_config
from tests.tokenizers.families import put_family

TRAIN = TrainConfig(steps=600, batch_tokens=4096)
PLENTY = 1e15


def one_stage(train_config=TRAIN):
    return lambda config: {"train": train_config}


def two_stages(config):
    return {"pretrain": config.pretrain, "train": config.train}


def run_config(**changes):
    sections = {
        "model": ModelConfig(),
        "tokenizer": TokenizerConfig(),
        "data": DataConfig(),
    }
    return types.SimpleNamespace(**{**sections, **changes})


def lines_of(config, stages, *, speed=None, limit_bytes=PLENTY, **options):
    return plan_run(
        config,
        stages,
        limit_bytes=limit_bytes,
        measure=lambda *_: speed or Speed(0.5, 30.0),
        **options,
    )


def row_of(lines, name):
    return next(line.split() for line in lines if line.startswith(f"{name} "))


@pytest.mark.parametrize(
    ("batch_tokens", "tokens"),
    # Only whole rows are read, and at least one.
    [(4096, 40_960), (4096 + 255, 40_960), (256, 2560), (10, 2560)],
)
def test_tokens_are_steps_times_whole_rows(batch_tokens, tokens):
    train = TrainConfig(steps=10, batch_tokens=batch_tokens)
    plan = StagePlan(GPTConfig.from_depth(4), train)
    assert plan.tokens == tokens
    assert plan.flops == tokens * plan.model.training_flops_per_token


def test_a_run_is_told_stage_by_stage():
    header, first, second, *_ = lines_of(SFTConfig(), two_stages)
    for word in ("parameters", "tokens", "FLOPs", "minutes", "memory"):
        assert word in header
    assert first.startswith("pretrain ") and second.startswith("train ")
    assert "3,276,800" in first


def test_minutes_are_steps_times_seconds_and_compiling():
    lines = lines_of(run_config(), one_stage(), speed=Speed(0.5, 60.0))
    assert row_of(lines, "train")[4:6] == ["0.500", "6.0"]
    (total,) = (line for line in lines if "of training" in line)
    assert total.startswith("about 6.0 minutes of training on this machine")
    assert "60 seconds of them to compile" in total


@pytest.mark.parametrize(
    ("changes", "times"),
    [
        ({"steps": 9}, 1),
        ({"batch_tokens": 8192}, 2),
        ({"optimizer": "adamw"}, 2),
    ],
)
def test_stages_that_are_alike_are_measured_once(changes, times):
    other = dataclasses.replace(TRAIN, **changes)
    measured = []

    def measure(model_config, train_config):
        measured.append(train_config)
        return Speed(1.0, 1.0)

    plan_run(
        run_config(),
        lambda config: {"pretrain": TRAIN, "train": other},
        limit_bytes=PLENTY,
        measure=measure,
    )
    assert len(measured) == times


def test_a_gpu_takes_its_share_of_the_peak_and_its_price():
    config = run_config(model=ModelConfig(depth=12))
    options = {"gpu_peak_fraction": 0.5, "prices": {"H100": 60.0}}
    lines = lines_of(config, one_stage(), **options)
    (plan,) = plan_stages(config, one_stage()).values()
    peak = next(gpu.peak_flops for gpu in GPUS if gpu.name == "H100")
    minutes = plan.flops / (0.5 * peak) / 60
    *_, fits, shown, price, dollars = row_of(lines, "H100")
    assert (fits, price) == ("yes", "60.00")
    assert float(shown) == pytest.approx(minutes, abs=0.06)
    assert float(dollars) == pytest.approx(minutes, abs=0.01)


def test_small_steps_are_no_shorter_on_a_gpu_than_their_kernels():
    config = run_config(model=ModelConfig(depth=1))
    steps = one_stage(dataclasses.replace(TRAIN, steps=12_000))
    assert row_of(lines_of(config, steps), "H200")[4] == "1.0"


def test_a_gpu_without_the_memory_says_so():
    config = run_config(model=ModelConfig(depth=30))
    lines = lines_of(config, one_stage())
    assert row_of(lines, "T4")[3] == "no"
    assert row_of(lines, "T4")[4:] == ["–", "–", "–"]


def test_a_price_of_an_unknown_gpu_is_refused():
    with pytest.raises(InputError, match="H99: must be of T4, L4"):
        lines_of(run_config(), one_stage(), prices={"H99": 1.0})


LARGE = [
    "model.depth=16",
    "model.context_length=2048",
    "tokenizer.vocabulary_size=60000",
    "pretrain.batch_tokens=16384",
    "train.batch_tokens=65536",
]


@pytest.mark.parametrize("gigabytes", [4, 8, 16, 30, 60, 90])
def test_what_is_advised_makes_the_run_fit(gigabytes):
    config = SFTConfig().override(LARGE)
    limit = 1e9 * gigabytes
    assert needed_bytes(plan_stages(config, two_stages)) > limit
    cures = fitting_settings(config, two_stages, limit)
    assert cures
    for overrides in cures:
        changed = config.override(overrides)
        assert needed_bytes(plan_stages(changed, two_stages)) <= limit


def test_all_that_can_be_lowered_is_advised():
    config = SFTConfig().override(LARGE)
    needed = needed_bytes(plan_stages(config, two_stages))
    cures = fitting_settings(config, two_stages, needed - 1)
    keys = [[text.split("=")[0] for text in overrides] for overrides in cures]
    assert keys == [
        ["train.batch_tokens"],
        ["model.context_length"],
        ["tokenizer.vocabulary_size"],
        ["model.depth"],
    ]


def test_the_largest_depth_that_fits_is_advised():
    config = SFTConfig().override(["model.depth=16"])

    def need(depth):
        changed = config.override([f"model.depth={depth}"])
        return needed_bytes(plan_stages(changed, two_stages))

    cures = fitting_settings(config, two_stages, need(11))
    assert ["model.depth=11"] in cures


def test_where_no_change_alone_is_enough_two_are_advised():
    config = SFTConfig().override([*LARGE, "train.batch_tokens=4194304"])
    (overrides,) = fitting_settings(config, two_stages, 3.5e9)
    assert [text.split("=")[0] for text in overrides] == [
        "pretrain.batch_tokens",
        "train.batch_tokens",
        "model.depth",
    ]


def test_a_run_that_does_not_fit_is_not_measured_but_cured():
    def measure(*_):
        raise AssertionError("the model would not fit")

    config = SFTConfig().override(LARGE)
    lines = plan_run(config, two_stages, limit_bytes=9e9, measure=measure)
    text = "\n".join(lines)
    assert "does not fit: " in text and "9.0 GB free" in text
    assert "minutes of training" not in text
    (cure,) = (line for line in lines if line.startswith("  model.depth="))
    changed = config.override([cure.strip()])
    text = "\n".join(lines_of(changed, two_stages, limit_bytes=9e9))
    assert "fits: " in text and "does not fit" not in text


def test_a_run_that_nothing_can_make_fit_is_told_so():
    lines = lines_of(SFTConfig(), two_stages, limit_bytes=1e6)
    assert "neither a smaller batch nor a smaller model would fit." in lines


def test_a_context_that_depends_on_the_data_is_told():
    own = DataConfig(path="chats.jsonl")
    lines = lines_of(run_config(data=own), one_stage())
    assert "set by model.context_length" in lines[-1]
    fixed = run_config(data=own, model=ModelConfig(context_length=512))
    lines = lines_of(fixed, one_stage())
    assert not any("model.context_length" in line for line in lines)


def parameters(config):
    lines = lines_of(config, one_stage())
    return int(row_of(lines, "train")[1].replace(",", ""))


def test_bytes_have_the_vocabulary_of_bytes():
    config = run_config(tokenizer=TokenizerConfig(kind="byte"))
    size = ByteTokenizer().vocabulary_size
    expected = GPTConfig.from_depth(
        4, vocabulary_size=size, context_length=256
    ).num_parameters
    assert parameters(config) == expected
    assert parameters(run_config()) > expected


def test_a_start_brings_its_own_shape(tmp_path):
    model = GPTCausalLM(
        tiny_config(vocabulary_size=265, context_length=32), name="gpt"
    )
    model.build()
    save_model(tmp_path / "model", model, ByteTokenizer())
    for init in (tmp_path, tmp_path / "model"):
        config = run_config(init=str(init), data=DataConfig(path="chats.jsonl"))
        assert parameters(config) == model.count_params()
        lines = lines_of(config, one_stage())
        assert not any("model.context_length" in line for line in lines)
    # Its shape cannot be changed, only what it is fed.
    config = SFTConfig(init=str(tmp_path)).override(
        ["train.batch_tokens=1048576"]
    )
    stages = one_stage(config.train)
    needed = needed_bytes(plan_stages(config, stages))
    cures = fitting_settings(config, lambda c: {"train": c.train}, needed - 1)
    assert cures == [["train.batch_tokens=524288"]]
    with pytest.raises(InputError, match="holds no trained model"):
        lines_of(run_config(init=str(tmp_path / "none")), one_stage())


def test_a_tokenizer_that_is_given_tells_the_vocabulary(tmp_path):
    put_family(tmp_path, "gpt2")
    config = run_config(tokenizer=TokenizerConfig(path=str(tmp_path)))
    plans = plan_stages(config, one_stage())
    assert {one.model.vocabulary_size for one in plans.values()} == {421}


def test_epochs_of_unread_data_are_told():
    config = SFTConfig().override(["train.epochs=2"])
    lines = plan_run(config, two_stages, measure=lambda *_: Speed(0.1, 1.0))
    (line,) = [line for line in lines if "epochs" in line]
    assert line.startswith("train: how many steps 2 epochs are")
