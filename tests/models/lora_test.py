import dataclasses

import numpy as np
import pytest

from kerasgpt.checkpoints.model_folder import copy_to_host, name_variables
from kerasgpt.config import InputError
from kerasgpt.models import GPTCausalLM
from kerasgpt.models.lora import LoRAConfig, add_lora, merge_lora
from tests.descriptors import tiny_config

INPUTS = {"token_ids": np.array([[2, 5, 3, 9, 1, 0]])}
CONFIG = LoRAConfig(rank=2, alpha=6.0)


def build_model(**changes):
    model = GPTCausalLM(tiny_config(**changes), name="gpt")
    model.build()
    return model


def adapters_of(model):
    return {
        name: array
        for name, array in copy_to_host(model.variables).items()
        if "lora" in name
    }


def randomise(model):
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))


def test_adapters_change_nothing_at_first_and_alone_are_trained():
    model = build_model()
    before = np.asarray(model(INPUTS))
    add_lora(model, CONFIG)
    np.testing.assert_array_equal(model(INPUTS), before)
    names = set(name_variables(model.trainable_variables))
    assert names == set(adapters_of(model))
    assert "backbone/block_0/attention/query/lora_kernel_a" in names
    # Two kernels of two blocks, two matrices each.
    assert len(names) == 8


@pytest.mark.parametrize(
    "targets, activation",
    [
        ("query,value", "relu2"),
        ("query, key, value, output, up, down", "gelu"),
        ("gate", "swiglu"),
    ],
)
def test_a_merged_model_computes_what_the_adapted_one_does(targets, activation):
    config = dataclasses.replace(CONFIG, targets=targets)
    model = build_model(activation=activation)
    plain = copy_to_host(model.variables)
    add_lora(model, config)
    randomise(model)
    merged = build_model(activation=activation)
    weights = merge_lora(plain, adapters_of(model), config)
    for name, variable in name_variables(merged.variables).items():
        variable.assign(weights[name])
    expected = np.asarray(model(INPUTS))
    np.testing.assert_allclose(merged(INPUTS), expected, atol=1e-4)
    # And the adapters do something.
    for name, variable in name_variables(merged.variables).items():
        variable.assign(plain[name])
    assert np.abs(np.asarray(merged(INPUTS)) - expected).max() > 0.1


def test_what_no_adapter_changes_is_not_copied():
    model = build_model()
    plain = copy_to_host(model.variables)
    add_lora(model, CONFIG)
    merged = merge_lora(plain, adapters_of(model), CONFIG)
    assert set(merged) == set(plain)
    changed = {name for name in plain if merged[name] is not plain[name]}
    assert changed == {
        f"backbone/block_{index}/attention/{name}/kernel"
        for index in (0, 1)
        for name in ("query", "value")
    }
    # An adapted model's own weights serve as well.
    again = merge_lora(
        copy_to_host(model.variables), adapters_of(model), CONFIG
    )
    assert set(again) == set(plain)


def test_adapters_of_another_model_are_refused():
    adapters = {
        "a/lora_kernel_a": np.zeros((3, 2)),
        "a/lora_kernel_b": np.zeros((2, 3)),
    }
    for weights in ({}, {"a/kernel": np.zeros((3, 4))}):
        with pytest.raises(InputError, match="is of another model") as caught:
            merge_lora(weights, adapters, CONFIG)
        assert "(3, 3)" in str(caught.value)


def test_a_target_that_the_model_lacks_is_told():
    with pytest.raises(InputError, match="no projection 'gate'"):
        add_lora(build_model(), dataclasses.replace(CONFIG, targets="gate"))
    with pytest.raises(InputError, match="'queries' is none of query, key"):
        dataclasses.replace(CONFIG, targets="queries")


def test_a_rank_that_saves_nothing_is_refused():
    model = build_model()
    with pytest.raises(InputError, match=r"lora.rank=8: must be below the 8"):
        add_lora(model, dataclasses.replace(CONFIG, rank=8))
    assert all(v.trainable for v in model.variables if "seed" not in v.path)
