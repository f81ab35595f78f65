"""Owns the proof that duplicates are found, and no more than these."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.benchmarks.workers.deduplication_task import (
    build_texts,
    shingles,
)
from kerasgpt.data import deduplication
from kerasgpt.data.deduplication import (
    ExactDuplicates,
    NearDuplicateConfig,
    NearDuplicates,
    estimate_jaccard,
    hash_texts,
    sign_texts,
)

CONFIG = NearDuplicateConfig()
TASK = {
    "num_texts": 900,
    "threshold": 0.8,
    "num_permutations": 128,
    "shingle_length": 5,
    "seed": 7,
}


def near(texts, config=CONFIG, batch=10_000):
    duplicates = NearDuplicates(config)
    for start in range(0, len(texts), batch):
        duplicates.add(texts[start : start + batch])
    return duplicates.firsts().tolist()


def exact(texts):
    duplicates = ExactDuplicates()
    duplicates.add(texts)
    return duplicates.firsts().tolist()


# Exact.


@pytest.mark.parametrize(
    ("left", "right", "is_same"),
    [
        ("The end.", "the end", True),
        ("价格：５元。", "价格 5元", True),
        ("3+4", "3-4", False),
        ("!!!", "!!!", True),
        ("!!!", "???", False),
        ("", "!!!", False),
    ],
)
def test_exact_is_what_a_reader_calls_the_same(left, right, is_same):
    assert exact([left, right]) == [0, 0 if is_same else 1]


@given(st.lists(st.sampled_from("abcde"), max_size=40))
def test_the_first_of_the_same_is_kept(texts):
    assert exact(texts) == [texts.index(text) for text in texts]


def test_a_hash_does_not_depend_on_the_company(monkeypatch):
    texts = ["a b c", "你好" * 600, "", "word " * 900, "x"]
    together = hash_texts(texts)
    monkeypatch.setattr("kerasgpt.data.shingles.PIECE_CHARACTERS", 1000)
    alone = np.concatenate([hash_texts([text]) for text in texts])
    np.testing.assert_array_equal(together, alone)


# Near.


@pytest.mark.parametrize("language", ["en", "zh"])
def test_planted_near_duplicates_are_found(language):
    task = {**TASK, "language": language}
    texts, pairs = build_texts(task)
    firsts = near(texts)
    found = {
        (original, copy)
        for original, copy, _ in pairs
        if firsts[original] == firsts[copy]
    }
    true = {(a, b) for a, b, jaccard in pairs if jaccard >= 0.8}
    hits = len(found & true)
    f1 = 2 * hits / (len(found) + len(true))
    assert 100 < len(true) < 250
    assert f1 > 0.9
    # Nothing is joined that is not planted.
    copies = {copy for _, copy, _ in pairs}
    assert all(
        first == number
        for number, first in enumerate(firsts)
        if number not in copies
    )


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_estimate_is_near_the_truth(language):
    texts, pairs = build_texts({**TASK, "language": language})
    signatures = sign_texts(texts, CONFIG)
    left, right, jaccard = map(np.array, zip(*pairs, strict=True))
    errors = estimate_jaccard(signatures[left], signatures[right]) - jaccard
    # sqrt(J (1 - J) / 128) is 0.044 at most.
    assert abs(errors.mean()) < 0.01
    assert errors.std() < 0.05


def test_a_signature_does_not_depend_on_the_company():
    texts = ["one", "", "!!!", "a b c d e f g", "你好世界" * 50]
    alone = np.concatenate([sign_texts([text], CONFIG) for text in texts])
    np.testing.assert_array_equal(sign_texts(texts, CONFIG), alone)


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_batches_do_not_matter(batch):
    texts, _ = build_texts({**TASK, "language": "en", "num_texts": 120})
    assert near(texts, batch=batch) == near(texts)


def test_clusters_do_not_depend_on_the_order():
    texts, _ = build_texts({**TASK, "language": "zh", "num_texts": 300})
    order = random.Random(0).sample(range(300), 300)
    firsts = near(texts)
    shuffled = near([texts[number] for number in order])
    clusters = {}
    for place, first in enumerate(shuffled):
        clusters.setdefault(first, set()).add(order[place])
    expected = {}
    for number, first in enumerate(firsts):
        expected.setdefault(first, set()).add(number)
    assert sorted(map(sorted, clusters.values())) == sorted(
        map(sorted, expected.values())
    )


def test_what_is_linked_in_a_chain_is_one_cluster():
    words = [f"w{number}" for number in range(300)]
    chain = [" ".join(words[start : start + 250]) for start in (0, 12, 24)]
    assert near(chain) == [0, 0, 0]
    assert near([chain[0], chain[2]]) == [0, 1] or (
        len(shingles(chain[0], 5) & shingles(chain[2], 5))
        >= 0.8 * len(shingles(chain[0], 5) | shingles(chain[2], 5))
    )


def test_short_texts_are_joined_only_if_they_are_the_same():
    texts = ["yes", "no", "Yes!", "好的", "谢谢", "好的。", "", "...", "?"]
    assert near(texts) == [0, 1, 0, 3, 4, 3, 6, 7, 8]


def test_a_bucket_of_boilerplate_stays_linear(monkeypatch):
    compared = []
    are_near = deduplication._are_near

    def count(signatures, left, right, threshold):
        compared.append(len(left))
        return are_near(signatures, left, right, threshold)

    monkeypatch.setattr(deduplication, "_are_near", count)
    count_texts = 3000
    assert near(["the same text for all of them"] * count_texts) == (
        [0] * count_texts
    )
    assert sum(compared) <= 128 * deduplication.NUM_NEIGHBOURS * count_texts


def test_bands_leave_the_recall_that_is_promised():
    for threshold in (0.3, 0.5, 0.8, 0.95, 1.0):
        config = NearDuplicateConfig(threshold=threshold)
        bands = config.num_permutations // config.band_rows
        chance = 1 - (1 - threshold**config.band_rows) ** bands
        assert chance >= deduplication.MIN_RECALL


def test_nothing_has_no_duplicates():
    assert exact([]) == near([]) == []
