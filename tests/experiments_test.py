import importlib
import json
import pathlib
import runpy
import sys

import pytest

from kerasgpt.config import Config, InputError

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "experiments").glob("run_*.py"))
NAMES = [path.stem for path in SCRIPTS]


@pytest.fixture
def run(monkeypatch, capsys):
    """Returns a function that runs a script here, and what it printed."""

    def run(name, *arguments):
        path = ROOT / "experiments" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        monkeypatch.setattr(sys, "path", list(sys.path))
        # A dry run would compile and time real steps.
        monkeypatch.setattr(
            "kerasgpt.training.speed.train_call", lambda *_: lambda: 0.0
        )
        monkeypatch.setattr("kerasgpt.training.speed.CALIBRATION_SECONDS", 0.0)
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as stop:
            assert stop.code == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return run


def load(name):
    return importlib.import_module(f"experiments.{name}")


def test_there_are_scripts():
    assert {"run_sft", "run_pretrain"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_script_can_be_imported_and_says_what_it_asks(name):
    module = load(name)
    assert isinstance(module.CONFIG, Config)
    assert callable(module.main)
    assert module.__doc__.startswith("Question  ")
    assert f"python experiments/{name}.py" in module.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_the_default_settings_are_the_recorded_ones(name, golden):
    golden(name, load(name).CONFIG.to_dict())


@pytest.mark.parametrize("name", NAMES)
def test_settings_survive_json(name):
    module = load(name)
    for config in (module.CONFIG, getattr(module, "TINY", module.CONFIG)):
        assert type(config).from_dict(config.to_dict()) == config


@pytest.mark.parametrize("name", NAMES)
def test_help_lists_every_setting(name, run):
    module = load(name)
    text = run(name, "--help")
    assert module.__doc__.strip() in text
    lines = iter(text.splitlines())
    for key, kind, unit, default, description in module.CONFIG.describe():
        assert description, f"{key} has no description"
        line = next(line for line in lines if line.split()[:1] == [key])
        shown = (
            "none" if default is None else default if default != "" else '""'
        )
        assert line.endswith(f" {kind}, default {shown}")
        meaning = next(lines).strip()
        assert meaning == (f"{description} [{unit}]" if unit else description)


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_tells_the_cost_and_does_nothing(
    name, run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    keys = {key for key, *_ in load(name).CONFIG.describe()}
    if "train.steps" not in keys:
        text = run(name, "--dry-run", f"run_dir={tmp_path}/run")
        assert f"run_dir={tmp_path}/run\n" in text
        assert text.endswith("nothing is trained.\n")
        assert list(tmp_path.iterdir()) == []
        return
    text = run(name, "--dry-run", "train.steps=7", f"run_dir={tmp_path}/run")
    settings, _, plan = text.partition("\n\n")
    shown = dict(line.split("=", 1) for line in settings.splitlines())
    assert shown.pop("train.steps") == "7"
    assert shown.pop("run_dir") == f"{tmp_path}/run"
    for key, _, _, value, _ in load(name).CONFIG.describe():
        if key in shown:
            assert shown[key] == ("none" if value is None else str(value))
    header, *stages = (line for line in plan.splitlines() if line.strip())
    for word in ("parameters", "tokens", "minutes", "memory"):
        assert word in header
    assert any(line.startswith("train ") for line in stages)
    assert "minutes of training on this machine" in plan
    assert list(tmp_path.iterdir()) == []


def test_runs_are_compared_by_mean_and_spread(tmp_path, monkeypatch, capsys):
    script = load("compare_runs")
    for name, share in (("one", 1.0), ("two", 0.5)):
        scores = {
            "all": [share, 4],
            "tasks": {"fact.en": [share, 2], "email.en": [1.0, 2]},
            "wordings": {"new": [share, 4]},
        }
        report = {"scores": {"base": scores, "chat": scores}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report))
    script.main([str(tmp_path / "one"), str(tmp_path / "two")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| 2 runs | base | chat |"
    assert "| all | 75.0% ± 25.0% | 75.0% ± 25.0% |" in lines
    row = "| facts never asked about | 75.0% ± 25.0% | 75.0% ± 25.0% |"
    assert row in lines
    assert "| email.en | 100.0% ± 0.0% | 100.0% ± 0.0% |" in lines


def test_comparing_nothing_is_refused():
    with pytest.raises(InputError, match="name at least one run"):
        load("compare_runs").main([])
