import random

import numpy as np
import pytest
import tensorflow as tf

from kerasgpt.generation.generate import prefill
from kerasgpt.models.gpt import GPTCausalLM
from kerasgpt.serving.text_reader import (
    MIN_SHARED_TOKENS,
    READ_ROWS,
    TextReader,
    fit_cache,
    slots_of,
)
from tests.descriptors import tiny_config

CONTEXT = 64


@pytest.fixture(scope="module")
def model():
    config = tiny_config(context_length=CONTEXT, vocabulary_size=40)
    model = GPTCausalLM(config, name="gpt")
    model.build()
    return model


@pytest.fixture(scope="module")
def built(model):
    caches = {count: model.allocate_cache(1, count) for count in (32, CONTEXT)}
    return TextReader(model, caches, num_kept=2, jit_compile=False)


@pytest.fixture
def reader(built):
    """A reader that has read nothing; one takes seconds to build."""
    built._kept.clear()
    return built


def text(length, seed=0):
    draw = random.Random(1000 * length + seed)
    return tuple(draw.randrange(10) for _ in range(length))


def check(model, token_ids, read):
    """Checks what was read of a text against all of it read anew."""
    cache, logits = read
    expected = prefill(
        model,
        tf.constant([token_ids]),
        tf.constant([len(token_ids)]),
        max_new_tokens=0,
        with_counts=False,
    )
    np.testing.assert_allclose(logits, expected.logits, atol=1e-5)
    for mine, other in zip(
        tf.nest.flatten(cache), tf.nest.flatten(expected.cache), strict=True
    ):
        np.testing.assert_allclose(
            mine[:, :, : len(token_ids)],
            other[:, :, : len(token_ids)],
            atol=1e-5,
        )


@pytest.mark.parametrize("length", [1, 15, 16, 17, CONTEXT - 1])
def test_a_text_is_read_as_the_model_reads_it(model, reader, length):
    (read,) = reader.read([text(length)], num_slots=CONTEXT)
    check(model, text(length), read)


def test_texts_of_like_length_are_read_together(model, reader):
    texts = [text(12, seed) for seed in range(READ_ROWS)]
    read = reader.read(texts, num_slots=32)
    assert len(read) == READ_ROWS
    for token_ids, one in zip(texts, read, strict=True):
        check(model, token_ids, one)
    # Neither two, nor those after one of another length.
    assert len(reader.read(texts[:2], num_slots=32)) == 1
    assert (
        len(reader.read([texts[0], text(40), *texts[1:3]], num_slots=32)) == 1
    )


@pytest.mark.parametrize("num_slots", [32, CONTEXT])
def test_what_was_read_is_gone_on_from(model, reader, num_slots, monkeypatch):
    first = text(24)
    (read,) = reader.read([first], num_slots=32)
    reader.keep(first, read[0])
    longer = first + text(7, 1)
    counts = []
    sound = reader._read

    def spied(token_ids, shared, cache):
        counts.append(shared)
        return sound(token_ids, shared, cache)

    monkeypatch.setattr(reader, "_read", spied)
    (read,) = reader.read([longer], num_slots=num_slots)
    assert counts == [len(first)]
    assert slots_of(read[0]) == num_slots
    check(model, longer, read)
    # One that has too little in common is read anew.
    other = first[: MIN_SHARED_TOKENS - 1] + text(9, 2)
    check(model, other, reader.read([other], num_slots=num_slots)[0])
    assert counts == [len(first)]


def test_the_oldest_text_is_forgotten(reader):
    texts = [text(20, seed) for seed in range(3)]
    for one in texts:
        reader.keep(one, reader.read([one], num_slots=32)[0][0])
    shared = [reader._shared((*one, 1))[0] for one in texts]
    assert shared == [0, 20, 20]


def test_scores_are_the_models_own(model, reader):
    token_ids = text(20)
    scores = reader.score(token_ids)
    logits = model({"token_ids": np.array([token_ids])})[0]
    expected = tf.nn.log_softmax(logits).numpy()
    assert len(scores) == 20 and scores[0].log_probability is None
    for place, score in enumerate(scores[1:]):
        own = expected[place, token_ids[place + 1]]
        assert score.log_probability == pytest.approx(own, abs=1e-5)


def test_every_shape_runs(reader):
    for shape in reader.shapes():
        shape()
    assert not reader._kept


def test_a_cache_gets_the_slots_that_are_wanted(model):
    cache = model.allocate_cache(1, 32)
    assert fit_cache(cache, 32) is cache
    assert slots_of(fit_cache(cache, 64)) == 64
    assert slots_of(fit_cache(cache, 16)) == 16
