import json

import pytest

from kerasgpt.data.questions import Question
from kerasgpt.evaluation.report import (
    SHOWN_FAILURES,
    metrics_table,
    score_table,
    write_report,
)
from kerasgpt.evaluation.scoring import Answer
from kerasgpt.files import write_text

PNG = b"\x89PNG\r\n\x1a\n"
METRICS = {"step": 20, "loss": 1.5, "accuracy": 0.5, "perplexity": 4.4817}


def answer(is_right, *, task="fact", language="en", wording="new"):
    messages = (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "多少钱？"},
    )
    question = Question(task, language, messages, "三元。", wording=wording)
    return Answer(question, "三元。" if is_right else "四元。", is_right)


ANSWERS = {
    "base": [answer(False), answer(False, task="email", language="zh")],
    "chat": [
        answer(True),
        answer(False),
        answer(True, task="email", language="zh", wording="seen"),
    ],
}


def write(folder, answers=ANSWERS, **changes):
    write_text(
        folder / "metrics.jsonl",
        "".join(
            json.dumps({"step": step, "split": split, "loss": 5.0 - step})
            + "\n"
            for step in (1, 2)
            for split in ("train", "validation")
        ),
    )
    options = {
        "metrics": {"base": {}, "chat": METRICS},
        "curves": {
            "base": folder / "none.jsonl",
            "chat": folder / "metrics.jsonl",
        },
        "facts": {
            "export": "models/7",
            "skipped rows": [{"location": "a.jsonl, line 3", "reason": "x"}],
            "config": {"seed": 0},
        },
    }
    return write_report(folder, answers=answers, **{**options, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write(folder)
    return folder


@pytest.fixture(scope="module")
def lines(folder):
    return (folder / "report.md").read_text().splitlines()


def test_report_json_is_what_was_returned(tmp_path):
    report = write(tmp_path)
    read = json.loads((tmp_path / "report.json").read_text())
    assert read == json.loads(json.dumps(report))
    assert read["scores"]["chat"]["all"] == [2 / 3, 3]
    assert read["scores"]["chat"]["tasks"] == {
        "fact.en": [0.5, 2],
        "email.zh": [1.0, 1],
    }
    assert read["scores"]["base"]["wordings"] == {"new": [0.0, 2]}
    assert read["metrics"]["chat"] == METRICS
    assert read["config"] == {"seed": 0}


def test_report_md_shows_base_beside_chat(lines):
    assert "| held-out exact match | base | chat | questions |" in lines
    assert "| all | 0.0% | 66.7% | 3 |" in lines
    assert "| fact.en | 0.0% | 50.0% | 2 |" in lines
    assert "| email.zh | 0.0% | 100.0% | 1 |" in lines
    assert "| wording seen | 0.0% | 100.0% | 1 |" in lines


def test_report_md_shows_validation_and_leaves_unknown_numbers_open(lines):
    header = "| validation | loss | accuracy | perplexity | bits_per_byte |"
    assert header in lines
    assert "| chat | 1.5 | 0.5 | 4.482 | – |" in lines
    assert "| base | – | – | – | – |" in lines


def test_the_table_has_a_row_a_model_and_split():
    metrics = {"a on b": {**METRICS, "bits_per_byte": 0.25, "before": {}}}
    assert metrics_table({**metrics, "c": {"loss": 123456.0}}) == (
        "| validation | loss | accuracy | perplexity | bits_per_byte |\n"
        "|---|---|---|---|---|\n"
        "| a on b | 1.5 | 0.5 | 4.482 | 0.25 |\n"
        "| c | 1.235e+05 | – | – | – |"
    )


def test_report_md_lists_facts_and_skipped_rows(lines):
    assert "- export: models/7" in lines
    assert "- skipped rows: 1" in lines
    assert '  - {"location": "a.jsonl, line 3", "reason": "x"}' in lines


def test_wrong_answers_of_the_last_model_are_shown(folder, lines):
    assert "## Wrong answers (1)" in lines
    assert "- fact: '多少钱？' → '四元。', right: '三元。'" in lines
    failures = json.loads((folder / "report.json").read_text())["failures"]
    assert failures == [
        {
            "task": "fact",
            "prompt": ["Hi", "Hello.", "多少钱？"],
            "answer": "三元。",
            "reply": "四元。",
        }
    ]


def test_a_long_list_of_failures_is_cut_in_the_text_only(tmp_path):
    wrong = [answer(False)] * (SHOWN_FAILURES + 5)
    report = write(tmp_path, {"chat": wrong})
    text = (tmp_path / "report.md").read_text()
    assert f"## Wrong answers ({len(wrong)})" in text
    assert text.count("right: ") == SHOWN_FAILURES
    assert len(report["failures"]) == len(wrong)


def test_plots_are_pictures_that_the_text_shows(folder, lines):
    for name in ("tasks.png", "curves.png"):
        content = (folder / name).read_bytes()
        assert content.startswith(PNG)
        assert content.rstrip().endswith(b"IEND\xaeB`\x82")
        assert f"![{name}]({name})" in lines


def test_a_run_whose_questions_did_not_fit_still_gets_a_report(tmp_path):
    write(tmp_path, {"base": [], "chat": []})
    assert "| all | 0.0% | 0.0% | 0 |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "tasks.png").read_bytes().startswith(PNG)


def test_a_task_that_one_model_was_not_asked_counts_as_zero():
    scores = {
        "base": {"all": (0.0, 0), "tasks": {}, "wordings": {}},
        "chat": {
            "all": (1.0, 2),
            "tasks": {"fact.en": (1.0, 2)},
            "wordings": {},
        },
    }
    assert "| fact.en | 0.0% | 100.0% | 2 |" in score_table(scores)
