import keras
import numpy as np
import pytest

from kerasgpt.checkpoints.model_folder import load_model, save_model
from kerasgpt.config import InputError
from kerasgpt.models.encoder import MARKS, EncoderConfig, MaskedLM
from kerasgpt.tokenizers import ByteTokenizer
from tests.descriptors import tiny_bert, tiny_encoder

# As [SEP] is by default.
BERT = tiny_bert(vocabulary_size=20, mark_ids=(4, 3, 17)).to_dict()


def build(**changes):
    keras.utils.set_random_seed(4)
    fields = {"vocabulary_size": 20, **changes}
    model = MaskedLM(tiny_encoder(**fields))
    model.build()
    rng = np.random.default_rng(2)
    model.set_weights(
        [w + rng.normal(size=w.shape) * 0.3 for w in model.get_weights()]
    )
    return model


def tokens(*rows, **further):
    return {
        name: np.array(value, "int32")
        for name, value in {"token_ids": rows, **further}.items()
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_layers": 1, "norm": "rms"},
        {"activation": "swiglu"},
        {"activation": "swiglu", "use_bias": True, "norm_order": "post"},
        {"embedding_norm": True, "output_transform": True},
        {"norm": "rms", "embedding_norm": True, "output_transform": True},
        BERT,
    ],
)
def test_parameters_are_counted_without_building(changes):
    model = build(**changes)
    assert model.config.num_parameters == model.count_params()


def test_every_token_is_seen_from_both_sides():
    model = build()
    logits = model(tokens([1, 2, 3, 4]))
    for place in range(4):
        row = [1, 2, 3, 4]
        row[place] = 9
        changed = np.abs(model(tokens(row)) - logits).max(axis=-1)
        assert (changed > 1e-4).all(), place


@pytest.mark.parametrize("changes", [{}, BERT])
def test_packed_texts_and_padding_do_not_see_each_other(changes):
    model = build(**changes)
    packed = model(
        tokens(
            [1, 2, 17, 5, 0],
            positions=[[0, 1, 2, 0, 0]],
            segment_ids=[[1, 1, 1, 2, 0]],
        )
    )
    alone = model(tokens([1, 2, 17]))
    np.testing.assert_allclose(packed[:, :3], alone, atol=1e-5)
    # The [SEP] of the text before it does not begin a second sentence here.
    np.testing.assert_allclose(packed[:, 3:4], model(tokens([5])), atol=1e-5)


def test_what_follows_a_separator_is_the_second_sentence():
    model = build()
    separator = model.config.mark_id("[SEP]")
    row = tokens([1, separator, 2, separator, 3])
    visible = np.ones((1, 5, 5), bool)
    sentences = model.backbone._sentences(row["token_ids"], visible)
    np.testing.assert_array_equal(sentences, [[0, 0, 1, 1, 1]])


def test_marks_are_the_last_rows():
    config = EncoderConfig(vocabulary_size=20)
    ids = [config.mark_id(mark) for mark in MARKS]
    assert ids == [15, 16, 17, 18, 19]
    with pytest.raises(InputError, match="vocabulary_size=5: must be at"):
        EncoderConfig(vocabulary_size=5)


def test_marks_may_have_ids_of_their_own():
    config = EncoderConfig(vocabulary_size=20, mark_ids=[4, 2, 3])
    ids = [config.mark_id(mark) for mark in ("[MASK]", "[CLS]", "[SEP]")]
    assert ids == [4, 2, 3]
    assert EncoderConfig.from_dict(config.to_dict()) == config
    with pytest.raises(InputError, match=r"the model has no \[NEXT\]"):
        config.mark_id("[NEXT]")
    every = EncoderConfig(vocabulary_size=20, mark_ids=(9, 8, 7, 6, 5))
    assert every.mark_id("[OTHER]") == 5


@pytest.mark.parametrize(
    "ids",
    [
        (1, 2),
        (1, 2, 2),
        (1, 2, 20),
        (1, 2, -1),
        (1, 2, "3"),
        (1, 2, [3]),
        (0, 1, True),
    ],
)
def test_marks_that_cannot_be_are_refused(ids):
    with pytest.raises(InputError, match="must be 3 or 5 different ids below"):
        EncoderConfig(vocabulary_size=20, mark_ids=ids)


def test_a_gate_before_the_table_is_refused():
    with pytest.raises(InputError, match="without a gate; received geglu"):
        tiny_bert(activation="geglu")


def test_a_folder_keeps_the_kind_of_model(tmp_path):
    model = build()
    save_model(tmp_path / "model", model, ByteTokenizer())
    loaded, _ = load_model(tmp_path, kinds=("encoder",))
    row = tokens([1, 15, 2])
    np.testing.assert_array_equal(loaded(row), model(row))
    # Where a text is to be continued it is of no use.
    with pytest.raises(InputError, match="kind 'encoder'; this needs one of"):
        load_model(tmp_path)
