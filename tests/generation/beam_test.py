import itertools

import keras
import numpy as np
import pytest
from keras import ops

from kerasgpt.config import InputError
from kerasgpt.generation.beam import Translator, beam_search
from kerasgpt.models.encoder_decoder import Seq2SeqLM
from kerasgpt.tokenizers import ByteTokenizer
from tests.descriptors import tiny_encoder_decoder

STOP, START = 0, 1


def build(seed=2, **changes):
    keras.utils.set_random_seed(4)
    fields = {"vocabulary_size": 5, "context_length": 8}
    model = Seq2SeqLM(tiny_encoder_decoder(**{**fields, **changes}))
    model.build()
    rng = np.random.default_rng(seed)
    model.set_weights(
        [w + rng.normal(size=w.shape) * 0.5 for w in model.get_weights()]
    )
    return model


def search(model, source, **settings):
    source = np.array(source)
    start = np.full((len(source), 1), START)
    hidden_states, cache = model.backbone(
        {"token_ids": start, "source_ids": source}, return_cache=True
    )
    settings = {
        "num_beams": 4,
        "max_new_tokens": 3,
        "stop_id": STOP,
        "is_banned": np.arange(5) == START,
        **settings,
    }
    token_ids, scores = beam_search(
        model,
        model.project(hidden_states)[:, 0],
        cache.resized(1 + settings["max_new_tokens"]),
        ops.ones((len(source),), "int32"),
        **settings,
    )
    return ops.convert_to_numpy(token_ids), ops.convert_to_numpy(scores)


def every_text(model, source, length, length_penalty):
    """Returns {text: score} of all that may be written, without a cache."""
    texts = list(itertools.product([STOP, 2, 3, 4], repeat=length))
    scores = next_scores(model, [source] * len(texts), texts)
    found = {}
    for text, row in zip(texts, scores, strict=True):
        if STOP in text:
            text = text[: text.index(STOP) + 1]
        total = sum(row[place, token] for place, token in enumerate(text))
        found[text] = total / len(text) ** length_penalty
    return found


def next_scores(model, sources, texts):
    """Returns log-probabilities (texts, length, tokens), without a cache."""
    texts = np.array(texts)
    starts = np.full((len(texts), 1), START)
    logits = model(
        {
            "source_ids": np.array(sources),
            "token_ids": np.concatenate([starts, texts[:, :-1]], axis=1),
        }
    )
    logits = ops.convert_to_numpy(logits).copy()
    logits[..., START] = -1e30
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_with_room_for_all_texts_the_best_is_found(length_penalty):
    sources = [[2, 3, 4], [4, 4, 2]]
    model = build()
    token_ids, scores = search(
        model, sources, num_beams=64, length_penalty=length_penalty
    )
    for source, row, score in zip(sources, token_ids, scores, strict=True):
        texts = every_text(model, source, 3, length_penalty)
        best = max(texts, key=texts.get)
        assert tuple(row[: len(best)].tolist()) == best
        assert set(row[len(best) :].tolist()) <= {STOP}
        assert score == pytest.approx(texts[best], abs=1e-4)


def test_one_beam_is_greedy_and_more_are_no_worse():
    sources = np.random.default_rng(0).integers(2, 5, (6, 4))
    model = build(seed=5)
    greedy, greedy_scores = search(
        model, sources, num_beams=1, max_new_tokens=6, length_penalty=0.0
    )
    likeliest = next_scores(model, sources, greedy).argmax(axis=-1)
    for row, expected in zip(greedy, likeliest, strict=True):
        (ends,) = np.nonzero(row == STOP)
        length = ends[0] + 1 if len(ends) else len(row)
        np.testing.assert_array_equal(row[:length], expected[:length])
    _, scores = search(
        model, sources, num_beams=8, max_new_tokens=6, length_penalty=0.0
    )
    assert scores.sum() >= greedy_scores.sum()


def translator(jit_compile):
    model = build(vocabulary_size=265, context_length=12)
    return Translator(model, ByteTokenizer(), jit_compile=jit_compile)


def test_texts_are_translated_alike_in_any_company_compiled_or_not():
    texts = ["a", "abcdef", "", "中文"]
    plain = translator(False)
    together = plain.translate(texts, num_beams=2)
    assert len(set(together)) > 1
    alone = [plain.translate([text], num_beams=2)[0] for text in texts]
    assert together == alone
    assert translator(True).translate(texts, num_beams=2) == together
    assert plain.translate([]) == []


def test_what_cannot_be_translated_is_refused():
    plain = translator(False)
    with pytest.raises(InputError, match="has 13 tokens; the model reads 12"):
        plain.translate(["a" * 13])
    with pytest.raises(InputError, match="num_beams=0: must be at least 1"):
        plain.translate(["a"], num_beams=0)
