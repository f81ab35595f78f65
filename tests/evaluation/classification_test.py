import json

import numpy as np
import pytest

from kerasgpt.data.labelled import LabelledText, text_rows
from kerasgpt.evaluation.classification import (
    class_probabilities,
    classification_scores,
    confusion_matrix,
    write_classification_report,
)
from kerasgpt.models import ClassifierConfig, TextClassifier
from kerasgpt.tokenizers import ByteTokenizer
from tests.descriptors import tiny_config


def test_scores_of_a_hand_worked_case():
    truth = ["a", "a", "a", "b", "b", "c"]
    predicted = ["a", "a", "b", "b", "c", "c"]
    scores = classification_scores(truth, predicted, ["a", "b", "c"])
    assert scores["accuracy"] == pytest.approx(4 / 6)
    rows = scores["classes"]
    assert rows["a"] == {
        "precision": 1.0,
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(0.8),
        "count": 3,
    }
    assert rows["b"]["f1"] == pytest.approx(0.5)
    assert rows["c"]["f1"] == pytest.approx(2 / 3)
    assert scores["macro_f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)


def test_one_class_for_all_has_a_low_macro_f1():
    scores = classification_scores("aaab", "aaaa", "ab")
    assert scores["accuracy"] == 0.75
    assert scores["macro_f1"] == pytest.approx(0.5 * 6 / 7)


def test_a_class_that_nobody_names_counts_for_nothing():
    assert classification_scores("ab", "ab", "abc")["macro_f1"] == 1.0


def test_confusions_stand_in_the_row_of_the_truth():
    matrix = confusion_matrix("aab", "abb", "ab")
    np.testing.assert_array_equal(matrix, [[1, 1], [0, 1]])


def test_probabilities_are_those_of_each_text_alone():
    tokenizer = ByteTokenizer()
    config = tiny_config(
        vocabulary_size=tokenizer.vocabulary_size, context_length=16
    )
    model = TextClassifier(ClassifierConfig.of(config, ["x", "y", "z"]))
    model.build()
    model.set_weights([weight + 0.3 for weight in model.get_weights()])
    rng = np.random.default_rng(0)
    texts = ["a" * int(size) for size in rng.integers(0, 30, 40)]
    texts += ["好", "b c", ""]
    found = class_probabilities(model, tokenizer, texts)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    rows, _ = text_rows(texts, tokenizer, 16)
    for row, probabilities in list(zip(rows, found, strict=True))[::6]:
        logits = np.array(model({"token_ids": row[None]}))[0, -1]
        expected = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def test_the_report_tells_each_language_and_the_mistakes(tmp_path):
    texts = [
        LabelledText("fine", "good", "en"),
        LabelledText("poor", "bad", "en"),
        LabelledText("好", "good", "zh"),
        LabelledText("odd", "never trained", "zh"),
    ]
    report = write_classification_report(
        tmp_path,
        texts=texts,
        predictions={
            "majority": ["good"] * 4,
            "gpt": ["good", "bad", "good", "bad"],
        },
        labels=("good", "bad"),
        metrics={"classifier": {"loss": 0.5, "accuracy": 0.75}},
        curves={"classifier": tmp_path / "metrics.jsonl"},
        facts={"training texts": 7},
    )
    assert report["scores"]["gpt"]["en"]["accuracy"] == 1.0
    assert report["scores"]["gpt"]["all"]["accuracy"] == 0.75
    assert report["scores"]["majority"]["zh"]["accuracy"] == 0.5
    assert report["confusion"][2] == [0, 1, 0]
    assert report["failures"] == [
        {"text": "odd", "label": "never trained", "predicted": "bad"}
    ]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    text = (tmp_path / "report.md").read_text()
    assert "| gpt | 75.0% | " in text and "training texts: 7" in text
    for name in ("confusion.png", "curves.png"):
        assert (tmp_path / name).is_file() and f"![{name}]({name})" in text
