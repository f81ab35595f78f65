import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

from kerasgpt.checkpoints import load_model, save_model
from kerasgpt.checkpoints.model_folder import (
    changing_variables,
    copy_to_host,
    find_model_folder,
    load_config,
    load_tokenizer,
    load_weights,
    name_variables,
    save_weights,
)
from kerasgpt.checkpoints.quantized import quantize_weights
from kerasgpt.config import InputError
from kerasgpt.files import read_manifest, write_manifest
from kerasgpt.models import GPTCausalLM
from kerasgpt.tokenizers import ByteTokenizer
from tests.descriptors import tiny_config, tiny_sentence_piece

WEIGHTS = "model.safetensors"
INPUTS = {"token_ids": np.array([[2, 5, 3, 9, 1, 0]])}


def build_model(**changes):
    fields = {"vocabulary_size": 320, "dropout_rate": 0.1, **changes}
    config = tiny_config(**fields)
    model = GPTCausalLM(config, name="gpt")
    model.build()
    random = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(random.normal(size=variable.shape))
    return model


@pytest.fixture(scope="module")
def model():
    return build_model()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "model"
    save_model(folder, model, tiny_sentence_piece(), step=7)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the saved model, to be damaged."""
    return pathlib.Path(shutil.copytree(saved, tmp_path / "model"))


def refusal(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def flip_a_bit(path, position=-5):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def rewrite_tensors(folder, change):
    """Changes the tensors of a folder and makes its hashes fit again."""
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / WEIGHTS)
    write_manifest(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "norm": "layer",
            "position": "learned",
            "qk_norm": False,
            "use_bias": True,
            "activation": "gelu",
            "tie_embeddings": False,
            "dropout_rate": 0.0,
        },
    ],
    ids=["ours", "gpt2"],
)
def test_a_reloaded_model_gives_equal_logits(tmp_path, changes):
    model = build_model(**changes)
    save_model(tmp_path / "model", model, ByteTokenizer())
    loaded, _ = load_model(tmp_path / "model")
    assert loaded.config == model.config
    np.testing.assert_array_equal(loaded(INPUTS), model(INPUTS))
    other = name_variables(loaded.variables)
    for name, variable in name_variables(model.variables).items():
        np.testing.assert_array_equal(variable.numpy(), other[name].numpy())


@pytest.mark.parametrize("create", [ByteTokenizer, tiny_sentence_piece])
def test_the_tokenizer_comes_back(model, tmp_path, create):
    tokenizer = create()
    save_model(tmp_path / "model", model, tokenizer)
    _, loaded = load_model(tmp_path / "model")
    assert type(loaded) is type(tokenizer)
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert loaded.encode("to be 你好") == tokenizer.encode("to be 你好")


def test_a_run_folder_stands_for_the_model_in_it(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run" / "model")
    # A run folder has a config.json of its own.
    (tmp_path / "run" / "config.json").write_text('{"run_dir": "x"}')
    model, _ = load_model(tmp_path / "run")
    assert model.config.vocabulary_size == 320


def test_a_model_folder_is_found_and_its_shape_read(saved, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(saved, run / "model")
    for folder in (run, str(run), run / "model"):
        assert find_model_folder(folder) == run / "model"
    assert load_config(run / "model") == load_model(run)[0].config
    told = refusal(find_model_folder, tmp_path)
    assert told.startswith(f"{tmp_path}: holds no trained model")
    assert "config.json: no such file" in refusal(load_config, tmp_path)


def test_saving_replaces_the_model_that_was_there(folder):
    other = build_model(num_layers=1)
    save_model(folder, other, ByteTokenizer())
    loaded, tokenizer = load_model(folder)
    assert loaded.config.num_layers == 1
    assert tokenizer.kind == "byte"
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_nothing_in_the_folder_is_a_program(saved):
    suffixes = {path.suffix for path in saved.rglob("*")}
    assert suffixes == {".json", ".safetensors", ".model"}
    for path in saved.rglob("*.json"):
        json.loads(path.read_text())


def test_the_manifest_holds_the_hash_of_every_file(saved):
    manifest = read_manifest(saved)
    assert manifest["step"] == 7
    files = {path.name for path in saved.iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == files


@pytest.mark.parametrize(
    "name",
    ["config.json", WEIGHTS, "tokenizer.json", "sentencepiece.model"],
)
def test_one_flipped_bit_anywhere_is_found(folder, name):
    flip_a_bit(folder / name)
    told = refusal(load_model, folder)
    assert f"{folder / name}: damaged" in told


def test_a_cut_file_is_found(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path}: damaged" in refusal(load_model, folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "sentencepiece.model"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert f"{folder / name}: missing" in refusal(load_model, folder)


def test_a_missing_manifest_is_named(folder):
    (folder / "manifest.json").unlink()
    assert "manifest.json: no such file" in refusal(load_model, folder)


@pytest.mark.parametrize("content", ["{}", "[]", '{"files": 3}', "{"])
def test_a_manifest_without_hashes_is_refused(folder, content):
    (folder / "manifest.json").write_text(content)
    assert "manifest.json" in refusal(load_model, folder)


@pytest.mark.parametrize("kind", ["empty folder", "no folder", "a file"])
def test_a_place_without_a_model_says_what_to_name(tmp_path, kind):
    place = tmp_path / "run"
    if kind == "empty folder":
        place.mkdir()
    elif kind == "a file":
        place.write_text("x")
    told = refusal(load_model, place)
    assert told.startswith(f"{place}: holds no trained model")


def test_a_missing_tensor_is_named(folder):
    rewrite_tensors(folder, lambda tensors: tensors.popitem())
    assert "is missing" in refusal(load_model, folder)


def test_an_extra_tensor_is_named(folder):
    extra = np.zeros(3, np.float32)
    rewrite_tensors(folder, lambda tensors: tensors.update(surprise=extra))
    told = refusal(load_model, folder)
    assert "tensor surprise is not expected" in told


def test_a_misshapen_tensor_is_named_with_both_shapes(folder):
    def transpose(tensors):
        name = next(name for name in tensors if "embedding" in name)
        tensors[name] = np.ascontiguousarray(tensors[name].T)

    rewrite_tensors(folder, transpose)
    told = refusal(load_model, folder)
    assert "embedding" in told
    assert "has shape (8, 320); this model needs (320, 8)" in told


def test_weights_of_another_configuration_are_refused(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "num_layers": 3}))
    write_manifest(folder)
    assert "is missing" in refusal(load_model, folder)


def test_a_configuration_that_does_not_fit_together_is_refused(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "num_kv_heads": 3}))
    write_manifest(folder)
    told = refusal(load_model, folder)
    assert "config.json: num_heads must be a multiple" in told


def test_another_kind_of_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text('{"kind": "morse"}')
    write_manifest(folder)
    told = refusal(load_model, folder)
    assert "unknown tokenizer kind 'morse'" in told
    assert "unknown tokenizer kind" in refusal(load_tokenizer, folder)


def test_a_file_that_is_no_safetensors_file_is_refused(model, tmp_path):
    path = tmp_path / WEIGHTS
    path.write_bytes(b"\x80\x04 a pickle is not even looked at")
    assert "cannot be read" in refusal(load_weights, path, model.variables)


def test_all_variables_are_saved_random_states_too(model, tmp_path):
    save_weights(tmp_path / WEIGHTS, copy_to_host(model.variables))
    tensors = safetensors.numpy.load_file(tmp_path / WEIGHTS)
    assert len(tensors) == len(model.variables)
    assert any("seed" in name for name in tensors)
    assert not any(name.startswith("gpt/") for name in tensors)


def test_two_variables_of_one_path_are_never_mixed_up(model, tmp_path):
    variable = model.trainable_variables[0]
    with pytest.raises(ValueError, match="two variables are named"):
        copy_to_host([variable, variable])


def test_a_copy_stays_as_it_was_when_training_goes_on(model):
    variable = model.trainable_variables[0]
    before = variable.numpy().copy()
    copies = copy_to_host(model.variables)
    variable.assign(before + 1)
    np.testing.assert_array_equal(next(iter(copies.values())), before)
    variable.assign(before)


def test_weights_of_earlier_can_be_saved(model, tmp_path):
    weights = copy_to_host(model.variables)
    changed = {name: value + 1 for name, value in weights.items()}
    save_model(tmp_path / "model", model, ByteTokenizer(), weights=changed)
    loaded, _ = load_model(tmp_path / "model")
    np.testing.assert_array_equal(
        loaded.trainable_variables[0].numpy(),
        model.trainable_variables[0].numpy() + 1,
    )


def test_weights_that_cannot_be_written_are_told(tmp_path):
    weights = {"kernel": np.zeros(3, np.float32)}
    told = refusal(save_weights, tmp_path / "no" / WEIGHTS, weights)
    assert "cannot be written" in told


def test_a_configuration_that_asks_for_too_much_memory_is_refused(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for change in ({"vocabulary_size": 10**13}, {"num_layers": 10**9}):
        path.write_text(json.dumps({**config, **change}))
        write_manifest(folder)
        assert "is too small for the" in refusal(load_model, folder)


def test_files_of_another_tokenizer_are_refused(folder):
    path = folder / "tokenizer.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "fingerprint": "0"}))
    write_manifest(folder)
    assert "of another tokenizer" in refusal(load_model, folder)


@pytest.mark.parametrize("content", ["[]", '{"kind": ["byte"]}', "3"])
def test_a_tokenizer_file_of_another_shape_is_refused(folder, content):
    (folder / "tokenizer.json").write_text(content)
    write_manifest(folder)
    assert "unknown tokenizer kind" in refusal(load_model, folder)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
def test_a_manifest_that_passes_over_a_file_is_refused(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    write_manifest(folder)
    (folder / name).write_bytes(content)
    assert f"does not list {name}" in refusal(load_model, folder)


@pytest.fixture(params=[8, 4])
def integers(request, model, tmp_path):
    """A folder whose matrices are integers."""
    save_model(
        tmp_path / "model",
        model,
        ByteTokenizer(),
        weights=quantize_weights(
            copy_to_host(model.variables), bits=request.param
        ),
    )
    return tmp_path / "model"


def test_integers_are_loaded_with_their_factors(request, model, integers):
    loaded, _ = load_model(integers)
    num_steps = {8: 127, 4: 8}[request.node.callspec.params["integers"]]
    for one, other in zip(model.weights, loaded.weights, strict=True):
        error = np.abs(one.numpy() - other.numpy())
        # Weights are drawn from a normal distribution: up to about 4.
        assert error.max() < 4.5 / num_steps / 2
        assert other.dtype == one.dtype


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda name: {name + ".scale": None}, "does not go with the factors"),
        (
            lambda name: {name + ".scale": np.ones((2, 2), np.float32)},
            "has shape (2, 2); this model needs",
        ),
        (
            lambda name: {name: np.zeros((8, 8), np.float32)},
            "does not go with the factors",
        ),
        (
            lambda name: {"no" + name + ".scale": np.ones(1, np.float32)},
            "is not expected",
        ),
    ],
)
def test_integers_and_factors_that_do_not_fit_are_refused(
    integers, change, told
):
    name = "backbone/block_0/attention/query/kernel"

    def apply(tensors):
        for key, value in change(name).items():
            tensors[key] = value
            if value is None:
                del tensors[key]

    rewrite_tensors(integers, apply)
    assert told in refusal(load_model, integers)


def test_arrays_that_lie_columns_first_are_written_rows_first(tmp_path):
    array = np.arange(6, dtype="float32").reshape(2, 3)
    save_weights(tmp_path / WEIGHTS, {"a": np.asfortranarray(array)})
    found = safetensors.numpy.load_file(tmp_path / WEIGHTS)["a"]
    np.testing.assert_array_equal(found, array)


def test_a_model_without_a_tokenizer_is_loaded_on_request(model, tmp_path):
    save_model(tmp_path / "bare", model, None)
    assert not (tmp_path / "bare" / "tokenizer.json").exists()
    assert "holds no tokenizer" in refusal(load_model, tmp_path / "bare")
    loaded, tokenizer = load_model(tmp_path / "bare", needs_tokenizer=False)
    assert tokenizer is None
    np.testing.assert_array_equal(loaded(INPUTS), model(INPUTS))


def test_of_a_frozen_model_random_states_alone_change():
    model = build_model()
    assert len(changing_variables(model)) == len(model.variables)
    for variable in model.variables:
        variable.trainable = False
    changing = changing_variables(model)
    assert changing and all("seed" in one.path for one in changing)
