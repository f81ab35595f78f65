import collections
import itertools
import math

import numpy as np
import pytest

from kerasgpt.evaluation import baselines
from kerasgpt.evaluation.baselines import (
    NaiveBayes,
    NearestAnswers,
    most_frequent,
)


def test_the_first_of_the_most_frequent():
    assert most_frequent(["b", "a", "b", "a"]) == "b"


def test_naive_bayes_agrees_with_the_formula():
    # Manning et al. 2008, example 13.1: China or not.
    texts = [
        "Chinese Beijing Chinese",
        "Chinese Chinese Shanghai",
        "Chinese Macao",
        "Tokyo Japan Chinese",
    ]
    model = NaiveBayes(texts, ["yes", "yes", "yes", "no"], orders=(1,))
    scores = dict(zip(model.labels, model.log_prior, strict=True))
    for word, count in (("chinese", 3), ("tokyo", 1), ("japan", 1)):
        column = model.columns[(word,)]
        for number, label in enumerate(model.labels):
            scores[label] += count * model.log_likelihood[number, column]
    # Theirs: 3/4 (3/7)^3 (1/14)^2 and 1/4 (2/9)^3 (2/9)^2.
    assert scores["yes"] == pytest.approx(
        math.log(3 / 4 * (3 / 7) ** 3 * (1 / 14) ** 2)
    )
    assert scores["no"] == pytest.approx(math.log(1 / 4 * (2 / 9) ** 5))
    assert model.predict(["Chinese Chinese Chinese Tokyo Japan"]) == ["yes"]


def test_pairs_of_words_tell_what_words_cannot():
    texts = ["not good", "good not", "not fine", "fine not"] * 3
    labels = ["bad", "good", "bad", "good"] * 3
    assert NaiveBayes(texts, labels).predict(texts) == labels
    bag = NaiveBayes(texts, labels, orders=(1,)).predict(texts)
    assert len(set(bag)) == 1


def test_naive_bayes_reads_chinese():
    model = NaiveBayes(["很好用", "很难用"], ["good", "bad"])
    assert model.predict(["真好", "太难了"]) == ["good", "bad"]


def test_an_unknown_text_gets_the_most_frequent_class():
    model = NaiveBayes(["a", "b", "c"], ["x", "y", "y"])
    assert model.predict(["never seen", ""]) == ["y", "y"]


def test_nearest_agrees_with_the_cosine():
    rng = np.random.default_rng(0)
    prompts = [" ".join(rng.choice(list("abcdef"), 5)) for _ in range(30)]
    asked = [" ".join(rng.choice(list("abcdefgh"), 5)) for _ in range(10)]
    nearest = NearestAnswers(prompts, range(30))

    def vector(text):
        found = text.split()
        grams = collections.Counter(found)
        grams.update(itertools.pairwise(found))
        return {
            gram: count * (math.log(31 / (1 + holding(gram))) + 1)
            for gram, count in grams.items()
            if holding(gram)
        }

    def holding(gram):
        return sum(
            gram in prompt.split()
            if isinstance(gram, str)
            else gram in [*itertools.pairwise(prompt.split())]
            for prompt in prompts
        )

    def cosine(one, other):
        dot = sum(value * other.get(gram, 0) for gram, value in one.items())
        norms = [math.hypot(*vector.values()) or 1 for vector in (one, other)]
        return dot / norms[0] / norms[1]

    for text, found in zip(asked, nearest.predict(asked), strict=True):
        scores = [cosine(vector(text), vector(prompt)) for prompt in prompts]
        assert scores[found] == pytest.approx(max(scores))


def test_rare_n_grams_are_left_out_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(baselines, "MOST_GRAMS", 2)
    model = NaiveBayes(["a a b", "c c a"], ["x", "y"], orders=(1,))
    assert set(model.columns) == {("a",), ("c",)}
    assert model.predict(["c", "b b b b c"]) == ["y", "y"]
