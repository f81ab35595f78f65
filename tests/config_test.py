import dataclasses
import json

import pytest

from kerasgpt.config import Config, InputError, setting


@dataclasses.dataclass(frozen=True)
class Optimizer(Config):
    rate: float = setting(0.1, "learning rate")
    kind: str = setting("adamw", "which one", choices=("adamw", "muon"))
    clip: float | None = setting(None, "largest norm", minimum=0.5)
    share: float = setting(0.5, "of the steps", minimum=0.0, maximum=1.0)
    table: str | None = setting("", "a file")


@dataclasses.dataclass(frozen=True)
class Train(Config):
    steps: int = setting(10, "updates", unit="steps")
    is_quick: bool = setting(False, "a short run")
    name: str = setting("run", "its folder")
    optimizer: Optimizer = setting(Optimizer(), "parameter groups")


@dataclasses.dataclass(frozen=True)
class Run(Config):
    train: Train = setting(Train(), "the training stage")
    seed: int = setting(0, "of everything")


def _error(*arguments):
    with pytest.raises(InputError) as error:
        Run().override(list(arguments))
    return str(error.value)


def test_overrides_reach_nested_sections_and_convert_types():
    config = Run().override(
        [
            "train.steps=20",
            "train.is_quick=True",
            "train.name=x=y",
            "train.optimizer.rate=1e-3",
            "train.optimizer.kind=muon",
            "train.optimizer.clip=2",
            "seed=-1",
        ]
    )
    assert config == Run(
        train=Train(
            steps=20,
            is_quick=True,
            name="x=y",
            optimizer=Optimizer(rate=1e-3, kind="muon", clip=2.0),
        ),
        seed=-1,
    )
    assert type(config.train.optimizer.clip) is float


def test_a_later_override_wins_and_the_original_stays():
    original = Run()
    assert original.override(["seed=1", "seed=2"]).seed == 2
    assert original == Run()


def test_none_is_written_as_a_word():
    config = Run().override(["train.optimizer.clip=1"])
    assert config.train.optimizer.clip == 1.0
    config = config.override(["train.optimizer.clip=none"])
    assert config.train.optimizer.clip is None
    config = config.override(["train.optimizer.table=none"])
    assert config.train.optimizer.table is None
    # Where none is no value, it is a word.
    assert config.override(["train.name=none"]).train.name == "none"


def test_an_unknown_key_is_answered_with_the_nearest_known_one():
    assert _error("train.step=20") == (
        "train.step=20: there is no setting train.step; did you mean "
        "train.steps?"
    )
    assert _error("zzz=1") == (
        "zzz=1: there is no setting zzz; --help lists all keys."
    )


def test_an_argument_without_equals_sign_is_refused():
    assert _error("train.steps") == (
        "train.steps: settings are written key=value, for example "
        "train.steps=200; --help lists all keys."
    )


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("train.steps=1.5", "train.steps must be int; received '1.5'."),
        ("train.steps=many", "train.steps must be int; received 'many'."),
        ("train.steps=true", "train.steps must be int; received 'true'."),
        ("train.is_quick=1", "train.is_quick must be bool; received '1'."),
        (
            "train.optimizer.rate=fast",
            "train.optimizer.rate must be float; received 'fast'.",
        ),
        (
            "train.optimizer.rate=nan",
            "train.optimizer.rate must be float; received 'nan'.",
        ),
        (
            "train.optimizer.clip=x",
            "train.optimizer.clip must be float or none; received 'x'.",
        ),
        (
            "train.optimizer.kind=sgd",
            "train.optimizer.kind must be one of adamw, muon; received 'sgd'.",
        ),
    ],
)
def test_a_value_that_does_not_fit_is_refused(argument, message):
    assert _error(argument) == f"{argument}: {message}"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("share=-0.1", "share=-0.1: must be at least 0.0."),
        ("share=1.01", "share=1.01: must be at most 1.0."),
        ("clip=0.4", "clip=0.4: must be at least 0.5."),
        ("share=inf", "share=inf: must be finite."),
        ("rate=-inf", "rate=-inf: must be finite."),
        ("clip=inf", "clip=inf: must be finite."),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_section(argument, message):
    assert _error(f"train.optimizer.{argument}") == f"train.optimizer.{message}"
    name, _, value = argument.partition("=")
    with pytest.raises(InputError) as error:
        Optimizer(**{name: float(value)})
    assert str(error.value) == message
    with pytest.raises(InputError) as error:
        Run.from_dict({"train": {"optimizer": {name: float(value)}}})
    assert str(error.value) == f"train.optimizer.{message}"


def test_the_ends_of_a_range_belong_to_it():
    for share in (0.0, 1.0):
        config = Run().override([f"train.optimizer.share={share}"])
        assert config.train.optimizer.share == share


def test_a_section_is_no_value_and_a_value_no_section():
    assert _error("train=5") == (
        "train=5: train is a section; set one of its keys, for example "
        "train.steps=…"
    )
    assert _error("seed.low=5") == (
        "seed.low=5: seed is a single value, not a section."
    )


def test_json_gives_back_an_equal_configuration():
    config = Run().override(["train.optimizer.clip=1", "train.is_quick=true"])
    text = json.dumps(config.to_dict())
    assert Run.from_dict(json.loads(text)) == config
    assert Run.from_dict({"seed": 3}) == Run(seed=3)


def test_a_wrong_file_is_refused():
    for values, message in [
        ({"sead": 1}, "config.json: there is no setting sead; did you mean"),
        ({"seed": "x"}, "config.json: seed must be int; received 'x'."),
        ({"seed": True}, "config.json: seed must be int; received True."),
        ({"seed": None}, "config.json: seed must be int; received None."),
        ({"train": 1}, "config.json: train is a section;"),
        ({"seed": {"a": 1}}, "config.json: seed is a single value"),
    ]:
        with pytest.raises(InputError) as error:
            Run.from_dict(values)
        assert message in str(error.value)


def test_a_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Run().seed = 1


def test_help_has_a_row_for_every_value():
    assert Run().describe() == [
        ("train.steps", "int", "steps", 10, "updates"),
        ("train.is_quick", "bool", "", False, "a short run"),
        ("train.name", "str", "", "run", "its folder"),
        ("train.optimizer.rate", "float", "", 0.1, "learning rate"),
        ("train.optimizer.kind", "adamw|muon", "", "adamw", "which one"),
        ("train.optimizer.clip", "float or none", "", None, "largest norm"),
        ("train.optimizer.share", "float", "", 0.5, "of the steps"),
        ("train.optimizer.table", "str or none", "", "", "a file"),
        ("seed", "int", "", 0, "of everything"),
    ]


def test_the_fingerprint_changes_with_every_value():
    arguments = [
        [],
        ["seed=1"],
        ["train.steps=11"],
        ["train.is_quick=true"],
        ["train.optimizer.kind=muon"],
        ["train.optimizer.clip=1"],
    ]
    prints = [Run().override(one).fingerprint() for one in arguments]
    assert len(set(prints)) == len(prints)
    assert Run().fingerprint() == Run().override(["seed=0"]).fingerprint()
    assert all(len(one) == 12 and int(one, 16) >= 0 for one in prints)
