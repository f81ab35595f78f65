import json

import pytest

from kerasgpt.data import shop
from kerasgpt.data.questions import Question
from kerasgpt.evaluation.tasks import (
    SHOP_TASKS,
    TASK_SCORES,
    TaskResult,
    baseline_replies,
    first_sentence,
    task_scores,
    task_table,
    write_task_report,
)


def question(text, answer, **changes):
    fields = {
        "task": "qa",
        "language": "en",
        "messages": ({"role": "user", "content": text},),
        "answer": answer,
    }
    return Question(**{**fields, **changes})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two.", "One."),
        ("价格是 1.5 元。好。", "价格是 1.5 元。"),
        ("It is 1.5 m! Yes", "It is 1.5 m!"),
        ("no end", "no end"),
        ("", ""),
    ],
)
def test_first_sentence(text, expected):
    assert first_sentence(text) == expected


@pytest.mark.parametrize("task", TASK_SCORES)
def test_right_replies_score_one_and_wrong_ones_less(task):
    if task == "translation":
        pytest.importorskip("sacrebleu", reason="needs the extra bleu")
    answers = ["Buyer: Anna the first. Seller: Ben.", "Buyer: Carl of it."]
    assert set(task_scores(task, answers, answers).values()) == {1.0}
    wrong = task_scores(task, answers, ["nothing of that", "?"])
    assert list(wrong) == list(TASK_SCORES[task])
    assert max(wrong.values()) < 0.4


def test_baselines_reply_what_their_names_say():
    trained = [
        question("how much is the red hat", "10"),
        question("how much is the blue pan", "20"),
        question("who are you", "10"),
    ]
    asked = [
        question("and the blue pan", "20"),
        question("Sum up: A. B.", "B", source="A is. B is."),
    ]
    replies = baseline_replies(asked, trained)
    assert replies["majority"] == ["10", "10"]
    assert replies["copy"] == ["and the blue pan", "A is. B is."]
    assert replies["lead"] == ["and the blue pan", "A is."]
    assert replies["nearest"][0] == "20"


def test_the_shop_has_questions_for_every_task():
    assert set(SHOP_TASKS.values()) == set(TASK_SCORES)
    assert set(SHOP_TASKS) <= set(shop.TASKS)


def test_training_questions_for_baselines_share_no_key_with_held_out_ones():
    world = shop.build_world()
    held_out, trained = (
        shop.generate_questions(world, count_per_task=40, held_out=is_held_out)
        for is_held_out in (True, False)
    )
    for task in set(SHOP_TASKS) - {"policy"}:
        keys = [
            {one.key for one in part if one.task == task}
            for part in (held_out, trained)
        ]
        assert keys[0] and keys[1] and not keys[0] & keys[1]
    assert {one.wording for one in trained} == {"seen"}


def test_the_report_shows_all_predictors_and_what_went_wrong(tmp_path):
    questions = [question("right?", "yes"), question("wrong?", "no")]
    results = [
        TaskResult(
            "qa",
            "en",
            questions,
            {"majority": ["yes", "yes"], "model": ["yes", "perhaps"]},
        )
    ]
    assert task_table(results).splitlines()[2] == (
        "| qa.en token_f1 | 50.0% | 50.0% | 2 |"
    )
    report = write_task_report(
        tmp_path, results=results, facts={"model": "runs/x"}
    )
    assert report["scores"]["qa.en"]["model"]["exact"] == 0.5
    assert json.loads((tmp_path / "report.json").read_text()) == report
    text = (tmp_path / "report.md").read_text()
    assert text.index("'perhaps', right: 'no'") < text.index("'yes', right")
    assert (tmp_path / "tasks.png").is_file()


def test_chinese_translations_are_scored_by_character():
    pytest.importorskip("sacrebleu", reason="needs the extra bleu")
    chinese = ["安娜昨天买了一盏红色的台灯。"]
    found = task_scores(
        "translation", chinese, ["安娜今天买了一盏红色的台灯。"]
    )
    # By words it would be 0: a sentence is a single one.
    assert 0.7 < found["bleu"] < 1 and found["exact"] == 0
