"""Owns the proof that documents which repeat an evaluation are found."""

import json

import pytest

from kerasgpt.config import InputError
from kerasgpt.data.contamination import ContaminationConfig, Evaluation

ENGLISH = " ".join(f"word{number}" for number in range(40))
CHINESE = "".join(chr(0x4E00 + 7 * number) for number in range(60))


@pytest.fixture
def evaluation(tmp_path):
    path = tmp_path / "evaluation.jsonl"
    rows = [{"text": text} for text in (ENGLISH, CHINESE, "Yes, it is.")]
    path.write_text("\n".join(map(json.dumps, rows)))
    return Evaluation(ContaminationConfig(paths=str(path)))


def check(evaluation, *texts):
    locations = [f"document {number}" for number in range(len(texts))]
    return evaluation.check(list(texts), locations).tolist()


def test_a_run_of_thirteen_words_is_overlap_and_twelve_are_none(evaluation):
    words = ENGLISH.split()
    assert check(
        evaluation,
        "Before it, " + " ".join(words[5:18]) + " and behind.",
        "Before it, " + " ".join(words[5:17]) + " and behind.",
        " ".join(words[5:18]).upper().replace(" ", ", "),
    ) == [True, False, True]


def test_a_run_of_twenty_characters_is_overlap(evaluation):
    assert check(
        evaluation, "前面" + CHINESE[9:29] + "后面", CHINESE[9:28] + "后面"
    ) == [True, False]


def test_an_item_without_a_run_is_found_as_a_whole_document(evaluation):
    assert check(evaluation, "yes it is", "Yes, it is. And more.") == [
        True,
        False,
    ]


def test_items_are_reported_with_their_share_and_documents(evaluation):
    words = ENGLISH.split()
    check(evaluation, " ".join(words[:20]), CHINESE, " ".join(words[2:18]))
    chinese, english = evaluation.report()
    assert chinese["share"] == 1.0
    assert chinese["documents"] == ["document 1"]
    # 8 of 28 runs; the second document's are among them.
    assert english["share"] == pytest.approx(8 / 28)
    assert english["num_documents"] == 2
    assert english["item"].endswith("evaluation.jsonl, line 1")
    assert english["text"].startswith("word0 word1")


def test_batches_do_not_matter(tmp_path, evaluation):
    texts = [ENGLISH, "nothing of it", CHINESE[:30]] * 3
    together = check(evaluation, *texts)
    path = tmp_path / "evaluation.jsonl"
    apart = Evaluation(ContaminationConfig(paths=str(path)))
    assert [check(apart, text)[0] for text in texts] == together
    assert [row["share"] for row in apart.report()] == [
        row["share"] for row in evaluation.report()
    ]


def test_without_evaluation_nothing_overlaps():
    evaluation = Evaluation(ContaminationConfig())
    assert check(evaluation, ENGLISH) == [False]
    assert evaluation.report() == []


def test_an_empty_evaluation_is_refused(tmp_path):
    path = tmp_path / "empty.txt"
    path.write_text("\n")
    with pytest.raises(InputError, match="holds no item"):
        Evaluation(ContaminationConfig(paths=str(path)))
