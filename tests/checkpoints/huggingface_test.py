import json
import pathlib
import pickle
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from kerasgpt.checkpoints import huggingface
from kerasgpt.checkpoints.huggingface import (
    is_huggingface,
    load_huggingface,
    save_huggingface,
)
from kerasgpt.checkpoints.model_folder import name_variables, save_model
from kerasgpt.models.gpt import GPTCausalLM
from kerasgpt.tokenizers import ByteTokenizer
from tests.checkpoints.folders import (
    WEIGHTS,
    copier,
    golden_folders,
    refusal,
    rewrite_json,
    rewrite_tensors,
    tensors_of,
)
from tests.descriptors import tiny_config

FOLDERS = golden_folders("huggingface")
INDEX = "model.safetensors.index.json"
# Sums of float32 in another order; the logits are of a size of 1 to 10.
LOGITS_TOLERANCE = 1e-4


def expected(name):
    return safetensors.numpy.load_file(FOLDERS[name] / "expected.safetensors")


def logits_of(model, token_ids):
    return np.asarray(model({"token_ids": token_ids.astype("int32")}))


copy = copier(FOLDERS)


def test_there_are_a_dozen_configurations():
    assert len(FOLDERS) >= 12


@pytest.mark.parametrize("name", FOLDERS)
def test_their_folder_gives_their_logits_here_and_comes_out_again(
    name, tmp_path
):
    model = load_huggingface(FOLDERS[name])
    golden = expected(name)
    logits = logits_of(model, golden["token_ids"])
    np.testing.assert_allclose(
        logits, golden["logits"], atol=LOGITS_TOLERANCE, rtol=0
    )
    # Large enough that the tolerance means something.
    assert np.abs(golden["logits"]).max() > 1

    save_huggingface(tmp_path / "out", model)
    theirs, ours = tensors_of(FOLDERS[name]), tensors_of(tmp_path / "out")
    assert set(ours) == set(theirs)
    for tensor, array in theirs.items():
        np.testing.assert_array_equal(ours[tensor], array, err_msg=tensor)
    again = load_huggingface(tmp_path / "out")
    assert again.config == model.config
    np.testing.assert_array_equal(logits_of(again, golden["token_ids"]), logits)


@pytest.mark.parametrize("name", FOLDERS)
def test_transformers_reads_what_we_write_to_equal_logits(name, tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="pip install 'kerasgpt[peers]'"
    )
    torch = pytest.importorskip("torch", reason="kerasgpt[peers]")
    golden = expected(name)
    model = load_huggingface(FOLDERS[name])
    save_huggingface(tmp_path / "out", model, max_shard_bytes=6000)
    token_ids = torch.tensor(golden["token_ids"])
    for folder in (FOLDERS[name], tmp_path / "out"):
        peer, told = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32
        )
        # Not a tensor left out or made up.
        assert not any(told.values()), told
        with torch.no_grad():
            theirs = peer.eval()(token_ids).logits.numpy()
        np.testing.assert_allclose(
            logits_of(model, golden["token_ids"]),
            theirs,
            atol=LOGITS_TOLERANCE,
            rtol=0,
        )


@pytest.mark.parametrize(
    "name, changes",
    [
        (
            "gpt2",
            {
                "position": "learned",
                "norm": "layer",
                "use_bias": True,
                "num_kv_heads": 2,
                "activation": "gelu_tanh",
                "norm_epsilon": 1e-5,
            },
        ),
        ("qwen3", {"qk_norm": True, "activation": "swiglu"}),
        ("llama", {"activation": "geglu", "tie_embeddings": False}),
    ],
)
def test_a_model_of_ours_goes_out_and_comes_back(name, changes, tmp_path):
    config = tiny_config(**{"qk_norm": False, **changes})
    model = GPTCausalLM(config, name="gpt")
    model.build()
    save_huggingface(tmp_path / "out", model)
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values["model_type"] == name
    back = load_huggingface(tmp_path / "out")
    assert back.config == config
    for one, other in zip(model.weights, back.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_files_are_as_large_as_they_may_be(tmp_path):
    model = load_huggingface(FOLDERS["llama2"])
    whole = tensors_of(FOLDERS["llama2"])
    largest = max(array.nbytes for array in whole.values())
    save_huggingface(tmp_path / "out", model, max_shard_bytes=2 * largest)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(
        array.nbytes for array in whole.values()
    )
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert files[0].name == (f"model-00001-of-{len(files):05}.safetensors")
    assert len(files) > 2
    found = {}
    for file in files:
        tensors = safetensors.numpy.load_file(file)
        assert sum(a.nbytes for a in tensors.values()) <= 2 * largest
        found |= dict.fromkeys(tensors, file.name)
    assert index["weight_map"] == found
    again = tensors_of(tmp_path / "out")
    for name, array in whole.items():
        np.testing.assert_array_equal(again[name], array)


def test_files_of_a_model_without_a_head_lack_the_prefix(copy):
    folder = copy("gpt2")

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = np.ones((1, 1, 17, 17), np.float32)

    rewrite_tensors(folder, strip)
    golden = expected("gpt2")
    np.testing.assert_allclose(
        logits_of(load_huggingface(folder), golden["token_ids"]),
        golden["logits"],
        atol=LOGITS_TOLERANCE,
        rtol=0,
    )


def test_a_tied_table_may_be_there_twice_but_not_be_two(copy):
    folder = copy("gpt2")
    rewrite_tensors(
        folder,
        lambda tensors: tensors.update(
            {"lm_head.weight": tensors["transformer.wte.weight"]}
        ),
    )
    load_huggingface(folder)
    rewrite_tensors(
        folder,
        lambda tensors: tensors.update(
            {"lm_head.weight": tensors["lm_head.weight"] + 1}
        ),
    )
    told = refusal(load_huggingface, folder)
    assert "lm_head.weight is not transformer.wte.weight" in told


def test_a_folder_of_ours_is_none_of_theirs(tmp_path, copy):
    model = GPTCausalLM(tiny_config(vocabulary_size=320), name="gpt")
    model.build()
    save_model(tmp_path / "ours", model, ByteTokenizer())
    assert not is_huggingface(tmp_path / "ours")
    assert not is_huggingface(tmp_path / "nowhere")
    assert is_huggingface(copy("gpt2"))


def test_what_transformers_lacks_is_told_and_nothing_is_written(tmp_path):
    model = GPTCausalLM(tiny_config(activation="relu2"), name="gpt")
    model.build()
    told = refusal(save_huggingface, tmp_path / "out", model)
    assert "no model with activation=relu2" in told
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_replaced_on_request_only(copy, tmp_path):
    model = load_huggingface(FOLDERS["gpt2"])
    folder = copy("llama2")
    assert "exists already" in refusal(save_huggingface, folder, model)
    save_huggingface(folder, model, overwrite=True)
    assert load_huggingface(folder).config == model.config


def test_a_missing_tensor_is_named(copy):
    folder = copy("llama2")
    rewrite_tensors(folder, lambda t: t.pop("model.norm.weight"))
    told = refusal(load_huggingface, folder)
    assert told == f"{folder}: tensor model.norm.weight is missing."


def test_an_unknown_tensor_is_named(copy):
    folder = copy("llama2")
    extra = np.zeros(3, np.float32)
    rewrite_tensors(folder, lambda t: t.update(a=extra, b=extra))
    told = refusal(load_huggingface, folder)
    assert told == f"{folder}: tensor model.a is unknown, as are 1 more."


def test_a_misshapen_tensor_is_named_with_both_shapes(copy):
    folder = copy("llama2")
    rewrite_json(folder / "config.json", intermediate_size=24)
    told = refusal(load_huggingface, folder)
    assert "has shape (20, 12); config.json asks for (24, 12)" in told
    assert WEIGHTS in told


@pytest.mark.parametrize("dtype", [np.int8, np.float64])
def test_a_tensor_of_another_dtype_is_named(copy, dtype):
    folder = copy("llama2")

    def change(tensors):
        name = "model.norm.weight"
        tensors[name] = tensors[name].astype(dtype)

    rewrite_tensors(folder, change)
    assert "it must be one of F32, F16, BF16" in refusal(
        load_huggingface, folder
    )


def test_bfloat16_is_read_to_the_last_bit(copy):
    folder = copy("llama2")

    def change(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)

    rewrite_tensors(folder, change)
    stored = tensors_of(folder)["model.norm.weight"]
    model = load_huggingface(folder)
    loaded = name_variables(model.variables)["backbone/final_norm/scale"]
    assert loaded.dtype == "float32"
    np.testing.assert_array_equal(loaded.numpy(), stored)


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is unknown"),
        ({"model_type": 3}, "model_type 3 is unknown"),
        ({"model_type": ["gpt2"]}, "is unknown"),
        ({"num_hidden_layers": "many"}, "json: num_layers must be int"),
        ({"num_attention_heads": 0}, "num_heads must be a positive integer"),
        ({"num_key_value_heads": 2}, "num_heads must be a multiple"),
        ({"hidden_size": 13, "head_dim": None}, "cannot be shared by 3 heads"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"hidden_act": "mish"}, "activation 'mish' is not supported"),
        ({"hidden_act": [1]}, "is not supported"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope type 'yarn'"),
        ({"rope_parameters": [1]}, "rope_scaling must be an object"),
        (
            {"rope_parameters": {"rope_type": "linear"}},
            "rope type linear needs factor",
        ),
        ({"num_hidden_layers": 10**9}, "asks for 1,000,000,000 blocks"),
        ({"vocab_size": 10**13}, "config.json asks for (10000000000000, 12)"),
        ({"rms_norm_eps": "small"}, "norm_epsilon must be float"),
        ({"vocab_size": None}, "vocab_size is missing"),
    ],
)
def test_a_configuration_that_cannot_be_is_told(copy, changes, told):
    folder = copy("llama2")
    rewrite_json(folder / "config.json", **changes)
    message = refusal(load_huggingface, folder)
    assert told in message
    assert message.startswith(str(folder))


@pytest.mark.parametrize("content", ["{", "[]", "3", '"gpt2"', "\ud800"])
def test_a_configuration_that_is_no_object_is_refused(copy, content):
    folder = copy("llama2")
    (folder / "config.json").write_bytes(content.encode("utf-8", "replace"))
    assert "config.json: " in refusal(load_huggingface, folder)


def test_settings_without_end_are_not_read(copy, monkeypatch):
    monkeypatch.setattr(huggingface, "MAX_HEADER_BYTES", 100)
    assert "is too large for a file of settings" in refusal(
        load_huggingface, copy("llama2")
    )


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_a_cut_file_is_refused(copy, kept):
    folder = copy("llama2")
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path}: cannot be read" in refusal(load_huggingface, folder)


def test_a_header_without_end_is_refused_before_it_is_read(copy):
    folder = copy("llama2")
    path = folder / WEIGHTS
    path.write_bytes(struct.pack("<Q", 2**40) + path.read_bytes()[8:])
    assert f"{path}: cannot be read: its header is too large" in refusal(
        load_huggingface, folder
    )


class Harm:
    """Leaves a trace where a pickle of it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.ckpt", WEIGHTS]
)
def test_a_pickle_is_named_and_not_read(copy, tmp_path, name):
    folder = copy("llama2")
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    told = refusal(load_huggingface, folder)
    assert str(folder / name) in told
    assert "is a pickle" in told or "cannot be read" in told
    assert not (tmp_path / "harm").exists()


def test_a_folder_without_weights_is_told(copy):
    folder = copy("llama2")
    (folder / WEIGHTS).unlink()
    assert f"{folder}: holds no {WEIGHTS}" in refusal(load_huggingface, folder)


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "/a.safetensors", "a.bin", "..", "", 3]
)
def test_an_index_names_files_of_its_folder_only(copy, name):
    folder = copy("qwen3_shards")
    rewrite_json(folder / INDEX, weight_map={"model.norm.weight": name})
    assert (
        f"{folder / INDEX}: {name!r} is no name of a .safetensors file here."
        == refusal(load_huggingface, folder)
    )


def test_an_index_without_names_is_refused(copy):
    folder = copy("qwen3_shards")
    rewrite_json(folder / INDEX, weight_map=3)
    assert "is no name of a .safetensors file" in refusal(
        load_huggingface, folder
    )


def test_a_missing_shard_is_named(copy):
    folder = copy("qwen3_shards")
    shard = next(folder.glob("model-00002*"))
    shard.unlink()
    assert f"{shard}: cannot be read" in refusal(load_huggingface, folder)


def test_a_tensor_that_is_there_twice_is_named(copy):
    folder = copy("qwen3_shards")
    first, second = sorted(folder.glob("model-*"))[:2]
    tensors = safetensors.numpy.load_file(second)
    tensors |= safetensors.numpy.load_file(first)
    safetensors.numpy.save_file(tensors, second)
    assert "is there twice" in refusal(load_huggingface, folder)
