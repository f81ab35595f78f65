import keras
import numpy as np
import pytest

from kerasgpt.config import InputError
from kerasgpt.evaluation.mask_filling import MaskFiller
from kerasgpt.models.encoder import MARKS, MaskedLM
from kerasgpt.tokenizers import ByteTokenizer
from tests.descriptors import tiny_encoder

VOCABULARY = 265 + len(MARKS)


class Told(keras.Model):
    """Stands for a MaskedLM: says, with confidence, what `text` has there."""

    def __init__(self, text, confidence=9.0):
        super().__init__()
        self.config = tiny_encoder(
            vocabulary_size=VOCABULARY, context_length=32
        )
        token_ids = [0, *ByteTokenizer().encode(text)]
        table = np.zeros((32, VOCABULARY), "float32")
        # The earlier, the surer; marks and control tokens are surer still.
        for place, token in enumerate(token_ids):
            table[place, token] = confidence * (1 - place / 100)
        table[:, [1, 267]] = 50
        self.table = table

    def call(self, inputs):
        shape = keras.ops.shape(inputs["token_ids"])
        return keras.ops.broadcast_to(
            self.table[None, : shape[1]], (shape[0], shape[1], VOCABULARY)
        )


def test_masks_are_filled_by_as_many_tokens_as_fit_best():
    filler = MaskFiller(Told("a red lamp"), ByteTokenizer())
    best = filler.fill("a [MASK] lamp", most_tokens=3)
    assert best[0].text in ("a r lamp", "a re lamp", "a red lamp")
    assert "a red lamp" in [filling.text for filling in best]
    two = filler.fill("[MASK] red lam[MASK]", most_tokens=1)
    assert two[0].text == "a red lamp"
    assert two[0].score > two[1].score
    assert len(filler.fill("a [MASK]", count=2)) == 2


def test_several_tokens_of_a_mask_make_one_word():
    filler = MaskFiller(Told("a red. lamp"), ByteTokenizer())
    fillings = filler.fill("a [MASK] lamp", count=9, most_tokens=6)
    texts = {one.text for one in fillings}
    assert {"a re lamp", "a red lamp"} <= texts
    assert not [text for text in texts if "." in text]


def test_a_text_without_a_mask_or_too_long_is_refused():
    filler = MaskFiller(Told("x"), ByteTokenizer())
    with pytest.raises(InputError, match=r"holds no \[MASK\]"):
        filler.fill("no mask")
    with pytest.raises(InputError, match="fills the context of 32"):
        filler.fill("x" * 30 + "[MASK]")


def test_units_are_measured_one_at_a_time():
    text = "red 灯"
    filler = MaskFiller(Told(text, confidence=20.0), ByteTokenizer())
    found = filler.measure([text])
    assert found["units"] == 2
    assert found["fill_in_accuracy"] == 1.0
    assert found["pseudo_perplexity"] == pytest.approx(1.0, abs=1e-4)
    # One letter of the first word is another: one of two units is right.
    wrong = MaskFiller(Told("rod 灯", 20.0), ByteTokenizer()).measure([text])
    assert wrong["fill_in_accuracy"] == 0.5
    assert wrong["pseudo_perplexity"] > 10


def test_pseudo_perplexity_worked_out_without_the_filler():
    keras.utils.set_random_seed(0)
    config = tiny_encoder(vocabulary_size=VOCABULARY, context_length=32)
    model = MaskedLM(config)
    model.build()
    model.set_weights([weight * 20 for weight in model.get_weights()])
    text = "ab 灯"
    token_ids = ByteTokenizer().encode(text)
    cls, sep, mask = map(config.mark_id, ("[CLS]", "[SEP]", "[MASK]"))
    nats = 0.0
    for unit in (slice(0, 2), slice(2, 6)):
        row = np.array(token_ids)
        row[unit] = mask
        logits = model({"token_ids": np.array([[cls, *row, sep]])})
        logits = np.asarray(logits)[0, 1:-1, 9:265]
        scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        answers = np.array(token_ids)[unit] - 9
        nats -= scores[unit][np.arange(len(answers)), answers].sum()
    found = MaskFiller(model, ByteTokenizer()).measure([text])
    assert found["pseudo_perplexity"] == pytest.approx(
        np.exp(nats / 6), rel=1e-4
    )
