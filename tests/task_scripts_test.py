"""The scripts of tasks, distillation and search, run at their smallest."""

import json

import pytest

from experiments import (
    run_classify,
    run_distill,
    run_pretrain,
    run_search,
    run_tasks,
)
from kerasgpt.config import InputError
from kerasgpt.training import pretrain

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "run"
    config = run_pretrain.TINY.override(
        [f"run_dir={folder}", "model.context_length=128"]
    )
    return pretrain.run(config, tell=lambda _: None).folder


def test_classify_reports_beside_its_baselines(tmp_path, base, capsys):
    config = run_classify.CONFIG.override(
        [
            f"run_dir={tmp_path}/run",
            f"init={base}",
            "data.task=category",
            "data.num_products=20",
            "data.num_texts=60",
            "data.num_test_texts=20",
            "train.steps=2",
            "train.batch_tokens=512",
        ]
    )
    run_classify.main(config)
    printed = capsys.readouterr().out
    assert "| naive Bayes, words | " in printed and "| gpt | " in printed
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert list(report["scores"]["gpt"]) == ["all", "en", "zh"]
    assert report["scores"]["majority"]["all"]["count"] == 20


def test_tasks_are_reported_for_the_shop(tmp_path, base, capsys):
    pytest.importorskip("sacrebleu", reason="needs the extra bleu")
    config = run_tasks.TINY.override(
        [f"model={base}", f"run_dir={tmp_path}/tasks"]
    )
    run_tasks.main(config)
    table = capsys.readouterr().out
    for task in ("summary.en rougeL", "translation.zh bleu", "roles.en", "qa"):
        assert f"| {task}" in table
    assert (tmp_path / "tasks" / "report.md").is_file()


def test_tasks_are_reported_for_your_file(tmp_path, base, capsys):
    path = tmp_path / "my.csv"
    lines = [f"sum up: {i} is {i}.,{i}" for i in range(60)]
    path.write_text("prompt,completion\n" + "\n".join(lines) + "\n")
    config = run_tasks.TINY.override(
        [
            f"model={base}",
            f"run_dir={tmp_path}/tasks",
            f"data.path={path}",
            "data.validation_fraction=0.2",
        ]
    )
    with pytest.raises(InputError, match=r"task=all: say what .*my\.csv asks"):
        run_tasks.main(config)
    assert not (tmp_path / "tasks").exists()
    run_tasks.main(config.override(["task=summary"]))
    assert "| summary.any rouge1 | " in capsys.readouterr().out


def test_distillation_is_reported(tmp_path, base, capsys):
    config = run_distill.TINY.override(
        [f"teacher.run={base}", f"run_dir={tmp_path}/run"]
    )
    run_distill.main(config)
    printed = capsys.readouterr().out
    assert "| teacher | " in printed and "| distilled | " in printed
    assert "of 1 seeds." in printed


def test_a_search_is_reported_and_goes_on(tmp_path, capsys):
    pytest.importorskip("keras_tuner", reason="needs the extra tune")
    config = run_search.TINY.override([f"run_dir={tmp_path}/run"])
    run_search.main(config)
    printed = capsys.readouterr().out
    assert "| trial | train.learning_rate_factor | " in printed
    run_search.main(config.override(["num_trials=3"]))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert {trial["number"] for trial in report["trials"]} == {0, 1, 2}
