import sys

import pytest

from kerasgpt.config import InputError
from kerasgpt.evaluation.translation import score_translations


def test_scores_are_those_of_sacrebleu():
    pytest.importorskip("sacrebleu")
    reference = "the red lamp costs 10 yuan today"
    whole = score_translations([reference], [reference], language="en")
    assert whole["bleu"] == pytest.approx(100)
    assert whole["chrf"] == pytest.approx(100)
    assert whole["exact"] == 1.0
    # Precisions 6/7, 4/6, 2/5 and 1/4 of the n-grams, no brevity penalty.
    made = "the red lamp costs 20 yuan today"
    score = score_translations(
        [made, reference], [reference] * 2, language="en"
    )
    expected = 100 * (13 / 14 * 10 / 12 * 7 / 10 * 5 / 8) ** 0.25
    assert score["bleu"] == pytest.approx(expected, abs=0.01)
    assert score["exact"] == 0.5
    assert "nrefs:1" in score["signature"]


def test_chinese_is_scored_by_characters():
    pytest.importorskip("sacrebleu")
    score = score_translations(
        ["商品的价格是十元"], ["商品的价格是六元"], language="zh"
    )
    assert 30 < score["bleu"] < 80
    assert "tok:zh" in score["signature"]


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(InputError, match=r"kerasgpt\[bleu\]"):
        score_translations(["a"], ["a"], language="en")
