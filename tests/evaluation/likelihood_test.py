import math

import keras
import numpy as np
import pytest

from kerasgpt.data.packing import pack
from kerasgpt.data.pipelines import build_evaluation_dataset
from kerasgpt.evaluation import likelihood
from kerasgpt.evaluation.likelihood import NetworkScorer, score_rows
from kerasgpt.models.gpt import GPTCausalLM
from kerasgpt.models.ngram import NGramModel
from kerasgpt.training.step import TrainStep
from tests.descriptors import tiny_config


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    token_ids = rng.integers(0, 10, 90)
    loss_mask = (rng.random(90) < 0.8).astype(np.uint8)
    return pack(token_ids, loss_mask, np.array([0, 30, 37, 90]), row_length=8)


@pytest.fixture
def network():
    keras.utils.set_random_seed(3)
    model = GPTCausalLM(tiny_config(), name="gpt")
    model.build()
    model.set_weights([weight * 20 for weight in model.get_weights()])
    return model


TOKEN_BYTES = [0, 1, 2, 3, 1, 1, 1, 1, 1, 4]


def test_a_network_costs_what_the_train_step_says(rows, network):
    step = TrainStep(network, token_bytes=TOKEN_BYTES)
    step.compile("sgd")
    expected = step.evaluate(
        build_evaluation_dataset(rows, batch_size=4),
        verbose=0,
        return_dict=True,
    )
    score = score_rows(NetworkScorer(network), rows, TOKEN_BYTES)
    assert score["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert score["bits_per_byte"] == pytest.approx(
        expected["bits_per_byte"], rel=1e-5
    )
    assert score["perplexity"] == pytest.approx(math.exp(score["loss"]))


def test_batches_do_not_change_the_score(rows, network, monkeypatch):
    whole = score_rows(NetworkScorer(network), rows, TOKEN_BYTES)
    # Three rows at a time, then what is left.
    monkeypatch.setattr(likelihood, "BATCH_LOGITS", 3 * 8 * 10)
    parts = score_rows(NetworkScorer(network), rows, TOKEN_BYTES)
    assert parts == pytest.approx(whole, rel=1e-5)


def test_even_guesses_cost_log2_of_the_vocabulary(rows):
    score = score_rows(NGramModel(0, vocabulary_size=10), rows, [1] * 10)
    assert score["bits_per_byte"] == pytest.approx(math.log2(10))
    assert score["perplexity"] == pytest.approx(10)
    assert score["tokens"] == int(
        sum(rows.assemble([row])[4].sum() for row in range(len(rows)))
    )


def test_what_was_impossible_costs_everything(rows):
    model = NGramModel(1, vocabulary_size=10, smoothing="mle")
    model.count([[0, 1]])
    score = score_rows(model, rows, TOKEN_BYTES)
    assert math.isinf(score["loss"])
    assert math.isinf(score["bits_per_byte"])
    assert math.isinf(score["perplexity"])
