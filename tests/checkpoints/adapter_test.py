import json

import numpy as np
import pytest
import safetensors.numpy

from kerasgpt.checkpoints.adapter import (
    Adapter,
    load_adapter,
    merge_adapters,
    save_adapter,
)
from kerasgpt.checkpoints.model_folder import copy_to_host
from kerasgpt.config import InputError
from kerasgpt.files import read_manifest, write_manifest
from kerasgpt.models import GPTCausalLM
from kerasgpt.models.lora import LoRAConfig, add_lora
from tests.descriptors import tiny_config

INPUTS = {"token_ids": np.array([[2, 5, 3, 9, 1, 0]])}
FILE = "adapter.safetensors"


def build_model():
    model = GPTCausalLM(tiny_config(), name="gpt")
    model.build()
    return model


def fill(model, weights):
    model.set_weights(weights)
    return model


def adapted(base, config, seed):
    """Returns a model with the weights of a base and random adapters."""
    model = fill(build_model(), base.get_weights())
    add_lora(model, config)
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    return model


def adapter_of(model, config):
    return Adapter(config, copy_to_host(model.variables))


@pytest.fixture
def folder(tmp_path):
    config = LoRAConfig(rank=2)
    model = adapted(build_model(), config, seed=0)
    save_adapter(tmp_path / "adapter", adapter_of(model, config))
    return tmp_path / "adapter"


def refusal(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_several_adapters_share_one_base(tmp_path):
    base = build_model()
    configs = LoRAConfig(rank=2), LoRAConfig(rank=1, alpha=2.0, targets="up")
    for number, config in enumerate(configs):
        model = adapted(base, config, number)
        run = tmp_path / str(number)
        save_adapter(run / "adapter", adapter_of(model, config), step=7)
        assert read_manifest(run / "adapter")["step"] == 7
        # Found in a run folder, too.
        loaded = load_adapter(run)
        assert loaded.config == config
        merged = fill(build_model(), base.get_weights())
        merge_adapters(merged, [loaded])
        np.testing.assert_allclose(merged(INPUTS), model(INPUTS), atol=1e-4)
    both = fill(build_model(), base.get_weights())
    merge_adapters(both, [load_adapter(tmp_path / name) for name in "01"])
    one_by_one = fill(build_model(), base.get_weights())
    for name in "10":
        merge_adapters(one_by_one, [load_adapter(tmp_path / name)])
    np.testing.assert_allclose(both(INPUTS), one_by_one(INPUTS), atol=1e-5)


def test_only_thin_matrices_are_kept(folder):
    tensors = safetensors.numpy.load_file(folder / FILE)
    assert set(tensors) == set(load_adapter(folder).weights)
    assert all("lora_kernel" in name for name in tensors)
    assert (folder / FILE).stat().st_size < 2000


def test_one_flipped_bit_is_found(folder):
    content = bytearray((folder / FILE).read_bytes())
    content[-5] ^= 1
    (folder / FILE).write_bytes(content)
    assert f"{folder / FILE}: damaged" in refusal(load_adapter, folder)


def test_a_place_without_an_adapter_is_told(tmp_path):
    told = refusal(load_adapter, tmp_path)
    assert told == f"{tmp_path}: holds no adapter (no {FILE})."


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda tensors: tensors.popitem(), "has no counterpart"),
        (
            lambda tensors: tensors.update(
                {name: array[:1, :1] for name, array in tensors.items()}
            ),
            "which is none of rank 2",
        ),
    ],
)
def test_matrices_that_do_not_fit_are_refused(folder, change, told):
    tensors = dict(sorted(safetensors.numpy.load_file(folder / FILE).items()))
    change(tensors)
    safetensors.numpy.save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / FILE
    )
    write_manifest(folder)
    assert told in refusal(load_adapter, folder)


@pytest.mark.parametrize("content", ['{"rank": "two"}', "[]", "{"])
def test_settings_that_cannot_be_are_refused(folder, content):
    (folder / "adapter.json").write_text(content)
    write_manifest(folder)
    assert "adapter.json" in refusal(load_adapter, folder)


def test_settings_of_another_rank_are_refused(folder):
    values = json.loads((folder / "adapter.json").read_text())
    path = folder / "adapter.json"
    path.write_text(json.dumps({**values, "rank": 3}))
    write_manifest(folder)
    assert "which is none of rank 3" in refusal(load_adapter, folder)


def test_an_adapter_of_another_model_is_refused(folder):
    other = GPTCausalLM(tiny_config(model_dim=16), name="gpt")
    other.build()
    before = other.get_weights()
    told = refusal(merge_adapters, other, [load_adapter(folder)])
    assert "is of another model" in told
    for one, two in zip(other.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, two)
