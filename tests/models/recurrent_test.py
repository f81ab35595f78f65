import keras
import numpy as np
import pytest

from kerasgpt.checkpoints.model_folder import load_model, save_model
from kerasgpt.config import InputError
from kerasgpt.generation.generate import Generator
from kerasgpt.layers.recurrent import KINDS
from kerasgpt.models.recurrent import RecurrentCausalLM
from kerasgpt.tokenizers import ByteTokenizer
from tests.descriptors import tiny_recurrent


def build(kind="lstm", **changes):
    keras.utils.set_random_seed(4)
    model = RecurrentCausalLM(tiny_recurrent(kind, **changes), name="recurrent")
    model.build()
    rng = np.random.default_rng(2)
    model.set_weights(
        [w + rng.normal(size=w.shape) * 0.3 for w in model.get_weights()]
    )
    return model


def tokens(*rows):
    return {"token_ids": np.array(rows, "int32")}


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_counted_without_building(kind):
    for changes in ({}, {"num_layers": 3, "model_dim": 6}):
        model = build(kind, **changes)
        assert model.config.num_parameters == model.count_params()


@pytest.mark.parametrize("kind", KINDS)
def test_packed_texts_do_not_see_each_other(kind):
    model = build(kind)
    packed = model(
        {
            **tokens([1, 2, 3, 4, 5, 0]),
            "positions": np.array([[0, 1, 2, 0, 1, 0]]),
            "segment_ids": np.array([[1, 1, 1, 2, 2, 0]]),
        }
    )
    np.testing.assert_allclose(
        packed[:, :3], model(tokens([1, 2, 3])), atol=1e-6
    )
    np.testing.assert_allclose(packed[:, 3:5], model(tokens([4, 5])), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_cached_calls_equal_one_call(kind):
    model = build(kind)
    row = [3, 1, 4, 1, 5, 9]
    whole = model(tokens(row))
    hidden_states, cache = model.backbone(tokens(row[:2]), return_cache=True)
    logits = [model.project(hidden_states)]
    for place, token in enumerate(row[2:], start=2):
        one, cache = model(
            {**tokens([token]), "positions": np.array([[place]])},
            cache=cache.resized(99),
        )
        logits.append(one)
    np.testing.assert_allclose(np.concatenate(logits, 1), whole, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_decode_loop_of_the_gpt_generates(kind):
    tokenizer = ByteTokenizer()
    model = build(
        kind, vocabulary_size=tokenizer.vocabulary_size, context_length=32
    )
    prompts = [[9, 70, 71], [80]]
    made = {
        jit: Generator(model, tokenizer, jit_compile=jit).generate_ids(
            prompts, 8
        )
        # Compiling takes longest; of one kind is enough.
        for jit in ((True, False) if kind == "lstm" else (False,))
    }
    assert all(rows == made[False] for rows in made.values())
    # What the model says without a cache, control ids left out.
    for prompt, row in zip(prompts, made[False], strict=True):
        text = list(prompt)
        for _ in range(8):
            logits = np.asarray(model(tokens(text)))[0, -1]
            allowed = [*range(9, 265), tokenizer.control_id("<|end_of_turn|>")]
            chosen = max(allowed, key=lambda token: logits[token])
            if chosen == tokenizer.control_id("<|end_of_turn|>"):
                break
            text.append(chosen)
        assert row == text[len(prompt) :]


def test_dropout_is_drawn_in_training_alone():
    model = build(dropout_rate=0.5)
    row = tokens([1, 2, 3])
    assert np.array_equal(model(row), model(row))
    assert not np.array_equal(model(row, training=True), model(row))


def test_a_folder_keeps_the_kind_of_model(tmp_path):
    model = build("gru", vocabulary_size=265)
    save_model(tmp_path / "model", model, ByteTokenizer())
    loaded, _ = load_model(tmp_path)
    assert type(loaded) is RecurrentCausalLM
    assert loaded.config == model.config
    np.testing.assert_array_equal(loaded(tokens([1, 2])), model(tokens([1, 2])))
    with pytest.raises(InputError, match="kind 'recurrent'; this needs one of"):
        load_model(tmp_path, kinds=("gpt",))
