import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasgpt.checkpoints.model_folder import load_model, save_model
from kerasgpt.config import InputError
from kerasgpt.models.encoder_decoder import EncoderDecoderConfig, Seq2SeqLM
from kerasgpt.tokenizers import ByteTokenizer
from tests.descriptors import tiny_encoder_decoder


def build(**changes):
    keras.utils.set_random_seed(4)
    model = Seq2SeqLM(tiny_encoder_decoder(vocabulary_size=20, **changes))
    model.build()
    rng = np.random.default_rng(2)
    model.set_weights(
        [w + rng.normal(size=w.shape) * 0.3 for w in model.get_weights()]
    )
    return model


def inputs(source, target, **further):
    values = {"source_ids": [source], "token_ids": [target], **further}
    return {name: np.array(value, "int32") for name, value in values.items()}


SOURCE, TARGET = [3, 1, 4, 1], [5, 9, 2, 6, 5]


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_layers": 1, "norm": "layer"}, {"activation": "swiglu"}],
)
def test_parameters_are_counted_without_building(changes):
    model = build(**changes)
    assert model.config.num_parameters == model.count_params()


def test_the_whole_source_is_seen_and_no_later_target():
    model = build()
    logits = model(inputs(SOURCE, TARGET))
    for place in range(len(SOURCE)):
        source = list(SOURCE)
        source[place] = 9
        changed = np.abs(model(inputs(source, TARGET)) - logits).max(axis=-1)
        assert (changed > 1e-4).all(), place
    target = list(TARGET)
    target[2] = 8
    changed = np.abs(model(inputs(SOURCE, target)) - logits).max(axis=-1)[0]
    assert (changed[:2] < 1e-6).all()
    assert (changed[2:] > 1e-4).all()


def test_packed_pairs_do_not_see_each_other():
    model = build()
    packed = model(
        inputs(
            [3, 1, 4, 7, 8, 0],
            [5, 9, 6, 2, 6, 0],
            positions=[[0, 1, 0, 1, 2, 0]],
            segment_ids=[[1, 1, 2, 2, 2, 0]],
            source_positions=[[0, 1, 2, 0, 1, 0]],
            source_segment_ids=[[1, 1, 1, 2, 2, 0]],
        )
    )
    first = model(inputs([3, 1, 4], [5, 9]))
    second = model(inputs([7, 8], [6, 2, 6]))
    np.testing.assert_allclose(packed[:, :2], first, atol=1e-5)
    np.testing.assert_allclose(packed[:, 2:5], second, atol=1e-5)


def test_cached_calls_equal_one_call():
    model = build()
    padded = inputs(
        [*SOURCE, 0, 0], TARGET, source_segment_ids=[[1, 1, 1, 1, 0, 0]]
    )
    whole = model(padded)
    first = {**padded, "token_ids": padded["token_ids"][:, :2]}
    hidden_states, cache = model.backbone(first, return_cache=True)
    cache = cache.resized(8)
    logits = [model.project(hidden_states)]
    for place in range(2, len(TARGET)):
        one, cache = model(
            {
                "token_ids": padded["token_ids"][:, place : place + 1],
                "positions": np.array([[place]]),
            },
            cache=cache,
        )
        logits.append(one)
    np.testing.assert_allclose(np.concatenate(logits, 1), whole, atol=1e-5)
    np.testing.assert_allclose(whole, model(inputs(SOURCE, TARGET)), atol=1e-5)


def test_it_learns_to_copy_what_it_reads():
    keras.utils.set_random_seed(1)
    model = Seq2SeqLM(
        tiny_encoder_decoder(
            vocabulary_size=12, num_layers=1, head_dim=16, model_dim=32
        )
    )
    rng = np.random.default_rng(0)
    source = rng.integers(2, 12, (64, 4)).astype("int32")
    start = np.ones((64, 1), "int32")
    batch = {
        "source_ids": source,
        "token_ids": np.concatenate([start, source[:, :-1]], axis=1),
    }
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    dataset = tf.data.Dataset.from_tensors((batch, source)).repeat(60)
    history = model.fit(dataset, verbose=0)
    assert history.history["loss"][-1] < 1.5
    assert model.evaluate(batch, source, verbose=0) < 0.3


def test_a_folder_keeps_the_kind_of_model(tmp_path):
    model = build()
    save_model(tmp_path / "model", model, ByteTokenizer())
    loaded, _ = load_model(tmp_path, kinds=("encoder_decoder",))
    pair = inputs(SOURCE, TARGET)
    np.testing.assert_array_equal(loaded(pair), model(pair))


def test_an_odd_head_is_refused():
    with pytest.raises(InputError, match="head_dim=3: must be even"):
        EncoderDecoderConfig(head_dim=3)
