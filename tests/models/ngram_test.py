import json
import math
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasgpt.models import ngram
from kerasgpt.models.ngram import SMOOTHINGS, NGramModel

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens" / "ngram.json"


def counted(text, order, *, vocabulary="abc", **settings):
    model = NGramModel(order, vocabulary_size=len(vocabulary), **settings)
    model.count([[vocabulary.index(letter) for letter in text]])
    return model


def test_without_context_and_counts_all_tokens_are_alike():
    model = NGramModel(0, vocabulary_size=4)
    model.count([[1, 1, 1]])
    np.testing.assert_allclose(model.probabilities([1, 1]), [0.25] * 4)
    assert model.num_parameters == 0


def test_shares_worked_by_hand():
    model = counted("ababac", 2, smoothing="mle")
    np.testing.assert_allclose(model.probabilities([0]), [0, 2 / 3, 1 / 3])
    # Nothing ever followed c, and without a context letters are counted.
    np.testing.assert_allclose(model.probabilities([2]), [0, 0, 0])
    np.testing.assert_allclose(model.probabilities([]), [3 / 6, 2 / 6, 1 / 6])


def test_add_k_worked_by_hand():
    model = counted("ababac", 2, smoothing="add_k", k=0.5)
    np.testing.assert_allclose(
        model.probabilities([0]), np.array([0.5, 2.5, 1.5]) / 4.5
    )
    np.testing.assert_allclose(model.probabilities([2]), [1 / 3] * 3)


def test_kneser_ney_worked_by_hand():
    # Bigrams ab 2, ba 2, ac 1. Different letters before: a 1, b 1, c 1.
    model = counted("ababac", 2, discounts=[0.3, 0.5])
    shorter = (1 - 0.3) / 3 + (3 * 0.3 / 3) / 3
    # Two letters follow a, which give 0.5 each of 3 counts.
    expected = np.array([0, 1.5, 0.5]) / 3 + (2 * 0.5 / 3) * shorter
    np.testing.assert_allclose(model.probabilities([0]), expected)
    np.testing.assert_allclose(model.probabilities([2]), [shorter] * 3)


def test_discounts_are_those_of_chen_and_goodman():
    # 10 counts of 1, 5 of 2, 3 of 3 and 2 of 4: Y = 10 / 20.
    counts = np.repeat([1, 2, 3, 4, 9], [10, 5, 3, 2, 1])
    assert ngram._estimate_discounts(counts) == pytest.approx(
        [0, 1 - 2 * 0.5 * 5 / 10, 2 - 3 * 0.5 * 3 / 5, 3 - 4 * 0.5 * 2 / 3]
    )
    assert ngram._estimate_discounts(np.array([1, 1, 7])) == [0, 0.5, 1, 1.5]


def _slow_kneser_ney(texts, order, vocabulary_size):
    """Modified Kneser-Ney as the paper writes it, by dictionaries."""
    grams = {}
    for text in texts:
        for length in range(1, order + 1):
            for start in range(len(text) - length + 1):
                gram = tuple(text[start : start + length])
                grams[gram] = grams.get(gram, 0) + 1
    counts = {}
    for gram, count in grams.items():
        before = len({g[0] for g in grams if g[1:] == gram})
        is_longest = len(gram) == order
        counts[gram] = count if is_longest or not before else before
    discounts = {
        length: ngram._estimate_discounts(
            np.array([c for g, c in counts.items() if len(g) == length])
        )
        for length in range(1, order + 1)
    }

    def probability(context, token):
        length = len(context) + 1
        lower = (
            probability(context[1:], token) if context else 1 / vocabulary_size
        )
        following = [
            c
            for gram, c in counts.items()
            if len(gram) == length and gram[:-1] == context
        ]
        if not following:
            return lower
        taken = sum(discounts[length][min(c, 3)] for c in following)
        count = counts.get((*context, token), 0)
        kept = count - discounts[length][min(count, 3)]
        return (kept + taken * lower) / sum(following)

    return probability


def test_modified_kneser_ney_is_that_of_the_paper():
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 4, size) for size in (40, 1, 25, 3)]
    for order in range(1, 6):
        model = NGramModel(order, vocabulary_size=5)
        model.count(texts)
        slow = _slow_kneser_ney([text.tolist() for text in texts], order, 5)
        for context in ([], [1], [0, 3], [2, 2, 1], [1, 0, 0, 4], [4] * 6):
            used = tuple(context[max(0, len(context) - order + 1) :])
            expected = [
                slow(used if order > 1 else (), token) for token in range(5)
            ]
            np.testing.assert_allclose(model.probabilities(context), expected)


@pytest.mark.parametrize("name", ["abracadabra", "sea", "zh"])
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_probabilities_are_those_of_nltk(name, smoothing):
    golden = json.loads(GOLDEN.read_text())["value"]
    text = golden["texts"][name]
    vocabulary, order = text["vocabulary"], golden["order"]
    # Theirs has <UNK> besides, and its first order no discount.
    model = NGramModel(
        order,
        vocabulary_size=len(vocabulary) + 1,
        smoothing=smoothing,
        k=golden["k"],
        discounts=[0.0] + [golden["discount"]] * (order - 1),
    )
    token_ids = [vocabulary.index(letter) for letter in text["text"]]
    model.count([token_ids])
    nats = 0.0
    for place, expected in enumerate(text["scores"][smoothing]):
        found = model.probabilities(token_ids[place : place + 2])
        np.testing.assert_allclose(found[:-1], expected, rtol=1e-9)
        nats -= math.log(expected[token_ids[place + 2]])
    # The perplexity of the text, given its first two letters.
    scores = model.log_probabilities(
        {
            "token_ids": np.array([token_ids[:-1]]),
            "segment_ids": np.ones((1, len(token_ids) - 1)),
        },
        np.array([token_ids[1:]]),
    )[0, 1:]
    assert math.exp(-scores.mean()) == pytest.approx(
        math.exp(nats / len(scores))
    )


@given(
    texts=st.lists(st.lists(st.integers(0, 5), max_size=30), max_size=4),
    order=st.integers(1, 5),
    context=st.lists(st.integers(0, 5), max_size=6),
    smoothing=st.sampled_from(["add_k", "kneser_ney"]),
)
def test_probabilities_add_up_to_one(texts, order, context, smoothing):
    model = NGramModel(order, vocabulary_size=6, smoothing=smoothing)
    model.count(texts)
    found = model.probabilities(context)
    assert found.sum() == pytest.approx(1.0)
    assert (found > 0).all() or smoothing == "kneser_ney"
    assert (found >= 0).all()


@given(st.lists(st.lists(st.integers(0, 3), max_size=9), max_size=12))
def test_counts_do_not_depend_on_the_chunks(texts):
    whole = NGramModel(4, vocabulary_size=4)
    whole.count(texts)
    parts = NGramModel(4, vocabulary_size=4)
    for text in texts:
        parts.count(iter([text]))
    for one, other in zip(whole._levels, parts._levels, strict=True):
        np.testing.assert_array_equal(one.keys, other.keys)
        np.testing.assert_array_equal(one.counts, other.counts)


def test_chunks_are_counted_as_they_come(monkeypatch):
    monkeypatch.setattr(ngram, "CHUNK_TOKENS", 4)
    model = counted("abab", 2)
    model.count([[0, 1]] * 5)
    assert model.num_parameters == 4
    np.testing.assert_array_equal(model._levels[1].counts, [7, 1])


def test_rows_are_scored_as_lists_are():
    rng = np.random.default_rng(1)
    text = rng.integers(0, 7, 300)
    model = NGramModel(4, vocabulary_size=7)
    model.count([text])
    token_ids, targets = text[None, :12], text[None, 1:13]
    # Two texts side by side, then padding: none sees the one before.
    segment_ids = np.array([[1] * 5 + [2] * 6 + [0]])
    scores = model.log_probabilities(
        {"token_ids": token_ids, "segment_ids": segment_ids}, targets
    )
    for place in range(11):
        begin = 0 if place < 5 else 5
        found = model.probabilities(text[begin : place + 1])
        expected = math.log(found[targets[0, place]])
        assert scores[0, place] == pytest.approx(expected)


def test_samples_are_repeatable_stop_and_follow_the_counts():
    model = counted("abcabcabc", 3, smoothing="mle")
    assert model.sample([0], max_new_tokens=5) == [1, 2, 0, 1, 2]
    assert model.sample([0], max_new_tokens=5, stop=2) == [1]
    assert model.sample([0], max_new_tokens=2, temperature=0) == [1, 2]
    smooth = counted("abcacbbca", 2)
    drawn = [smooth.sample([], max_new_tokens=20, seed=s) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    shares = np.bincount(smooth.sample([], max_new_tokens=900), minlength=3)
    assert (shares > 200).all()
    with pytest.raises(ValueError, match="nothing was ever read after"):
        counted("ab", 2, smoothing="mle").sample([1], max_new_tokens=1)


@pytest.mark.parametrize(
    ("order", "settings", "message"),
    [
        (6, {}, "order must be from 0 to 5"),
        (-1, {}, "order must be from 0 to 5"),
        (2, {"smoothing": "good"}, "smoothing must be one of"),
        (2, {"k": 0.0}, "k must be above 0"),
        (2, {"discounts": [0.5]}, "discounts must be 2 numbers"),
        (1, {"discounts": [1.5]}, "from 0 to 1"),
    ],
)
def test_wrong_settings_are_refused(order, settings, message):
    with pytest.raises(ValueError, match=message):
        NGramModel(order, vocabulary_size=3, **settings)
