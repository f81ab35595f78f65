import numpy as np
import pytest

from kerasgpt.checkpoints import load_model
from kerasgpt.checkpoints.adapter import load_adapter, merge_adapters
from kerasgpt.checkpoints.model_folder import changing_variables, copy_to_host
from kerasgpt.models.gpt import GPTCausalLM
from kerasgpt.models.lora import LoRAConfig, add_lora
from kerasgpt.tokenizers import ByteTokenizer
from kerasgpt.training.distribution import build_strategy
from kerasgpt.training.outcome import Outcome
from tests.descriptors import tiny_config

INPUTS = {"token_ids": np.array([[2, 5, 3, 9, 1, 0]])}
LORA = LoRAConfig(rank=2)


def build_model(**settings):
    config = tiny_config(vocabulary_size=265)
    model = GPTCausalLM(config, name="gpt", **settings)
    model.build()
    return model


def change(model):
    """Gives new values to all that training changes."""
    draw = np.random.default_rng(0).normal
    for variable in model.trainable_variables:
        variable.assign(draw(size=variable.shape))


def build_outcome(folder, model, lora=None):
    return Outcome(
        folder,
        model,
        ByteTokenizer(),
        strategy=build_strategy("none"),
        lora=lora,
    )


def outputs(model):
    return np.asarray(model(INPUTS), "float32")


def test_a_model_without_adapters_is_left_as_it_is(tmp_path):
    model = build_model()
    outcome = build_outcome(tmp_path, model)
    weights = copy_to_host(changing_variables(model))
    before = outputs(model)
    # Training has gone on meanwhile.
    change(model)
    outcome.save(weights, step=3)
    loaded, tokenizer = load_model(tmp_path)
    assert tokenizer.kind == "byte"
    np.testing.assert_array_equal(outputs(loaded), before)
    assert not (tmp_path / "adapter").exists()
    assert outcome.usable_model() is model


def test_adapters_are_left_and_merged(tmp_path):
    model = build_model()
    base = build_model()
    base.set_weights(model.get_weights())
    add_lora(model, LORA)
    change(model)
    outcome = build_outcome(tmp_path, model, LORA)
    outcome.save(copy_to_host(changing_variables(model)), step=3)
    loaded, _ = load_model(tmp_path)
    np.testing.assert_allclose(outputs(loaded), outputs(model), atol=1e-4)
    assert np.abs(outputs(loaded) - outputs(base)).max() > 0.01
    merge_adapters(base, [load_adapter(tmp_path)])
    np.testing.assert_allclose(outputs(loaded), outputs(base), atol=1e-4)


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "adapters"])
def test_of_weights_in_half_precision_a_float32_copy_is_used(tmp_path, lora):
    model = build_model(dtype="bfloat16")
    if lora:
        add_lora(model, lora)
    outcome = build_outcome(tmp_path, model, lora)
    for _ in range(2):
        change(model)
        usable = outcome.usable_model()
        assert usable.dtype == "float32"
        assert len(usable.weights) == len(build_model().weights)
        error = np.abs(outputs(usable) - outputs(model))
        assert error.max() < 0.1 * np.abs(outputs(usable)).max()
