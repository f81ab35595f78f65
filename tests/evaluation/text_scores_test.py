import json
import pathlib

import pytest

from kerasgpt.evaluation.text_scores import (
    normalised_match,
    role_f1,
    rouge,
    token_f1,
)

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "rouge.json"
ROWS = json.loads(GOLDENS.read_text(encoding="utf-8"))["rows"]


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_rouge_is_that_of_googles_package(row):
    found = rouge(row["answer"], row["reply"])
    for name, expected in row["scores"].items():
        assert found[name] == pytest.approx(expected, abs=1e-6)


def test_rouge_reads_chinese_by_character():
    # 红帽 and 红的帽: 2 of 2 and 2 of 3 characters; no pair is shared.
    found = rouge("红帽。", "红的帽")
    assert found["rouge1"] == pytest.approx(0.8)
    assert found["rougeL"] == pytest.approx(0.8)
    assert found["rouge2"] == 0.0


def test_the_order_counts_for_the_longest_sequence_only():
    found = rouge("a b c d", "d c b a")
    assert found["rouge1"] == 1.0
    assert found["rougeL"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("answer", "reply", "f1", "match"),
    [
        ("The price is 10 yuan.", "price is 10 yuan", 1.0, 1.0),
        ("10 yuan", "20 yuan", 0.5, 0.0),
        ("红色的", "红的", 0.8, 0.0),
        ("红色。", "红色", 1.0, 1.0),
        ("red", "", 0.0, 0.0),
        ("red red", "red", 2 / 3, 0.0),
        ("", "", 1.0, 1.0),
    ],
)
def test_answers_are_compared_as_squad_does(answer, reply, f1, match):
    assert token_f1(answer, reply) == pytest.approx(f1)
    assert normalised_match(answer, reply) == match


@pytest.mark.parametrize(
    ("answer", "reply", "expected"),
    [
        ("Buyer: Anna. Seller: Ben.", "buyer: anna. seller: ben.", 1.0),
        ("Buyer: Anna. Seller: Ben.", "Seller: Ben. Buyer: Anna.", 1.0),
        ("Buyer: Anna. Seller: Ben.", "Buyer: Ben. Seller: Anna.", 0.0),
        ("Buyer: Anna. Seller: Ben.", "Buyer: Anna.", 2 / 3),
        ("买家：安娜。商品：红色的灯。", "买家：安娜。商品：灯。", 0.5),
        ("A0: he\nV: ran", "A0: he\nV: runs\nA1: x", 0.4),
        ("Buyer: Anna.", "no roles at all", 0.0),
    ],
)
def test_roles_count_with_their_values(answer, reply, expected):
    assert role_f1(answer, reply) == pytest.approx(expected)
