import json
import pathlib
import shutil

import numpy as np
import pytest

from kerasgpt.checkpoints.exchange import (
    convert,
    load_pretrained,
    load_pretrained_config,
    pretrained_hash,
    quantize,
)
from kerasgpt.checkpoints.huggingface import (
    check_vocabulary,
    load_huggingface,
    save_huggingface,
)
from kerasgpt.checkpoints.model_folder import load_model, save_model
from kerasgpt.data.shards import build_shard, save_shards
from kerasgpt.models.gpt import GPTCausalLM
from kerasgpt.models.recurrent import RecurrentCausalLM
from kerasgpt.tokenizers import ByteTokenizer
from tests.checkpoints.folders import refusal
from tests.conftest import GOLDENS
from tests.descriptors import tiny_config, tiny_recurrent
from tests.tokenizers.families import build_family, put_family

THEIRS = GOLDENS / "huggingface" / "llama2"
TOKEN_IDS = np.array([[3, 1, 4, 1, 5, 9, 2, 6]], "int32")


def build_model(vocabulary_size):
    """Returns a model that transformers has, too."""
    config = tiny_config(
        vocabulary_size=vocabulary_size, qk_norm=False, activation="swiglu"
    )
    model = GPTCausalLM(config, name="gpt")
    model.build()
    return model


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A run folder with a model and its tokenizer."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = ByteTokenizer()
    save_model(
        folder / "model", build_model(tokenizer.vocabulary_size), tokenizer
    )
    return folder


@pytest.fixture
def theirs(ours, tmp_path):
    """A folder of transformers with as many ids as there are bytes."""
    save_huggingface(tmp_path / "theirs", load_model(ours)[0])
    return tmp_path / "theirs"


def test_theirs_becomes_ours_and_theirs_again(tmp_path):
    told = []
    convert(THEIRS, tmp_path / "ours", tell=told.append)
    assert told == [
        f"{tmp_path / 'ours'}: 3,204 parameters, without a tokenizer."
    ]
    model, tokenizer = load_model(tmp_path / "ours", needs_tokenizer=False)
    assert tokenizer is None
    expected = load_huggingface(THEIRS)({"token_ids": TOKEN_IDS})
    np.testing.assert_array_equal(model({"token_ids": TOKEN_IDS}), expected)
    convert(tmp_path / "ours", tmp_path / "back", tell=told.append)
    assert (tmp_path / "back" / "model.safetensors").stat().st_size > 0
    again = load_huggingface(tmp_path / "back")
    np.testing.assert_array_equal(again({"token_ids": TOKEN_IDS}), expected)


def test_a_run_folder_goes_out_and_comes_back_with_its_tokenizer(
    ours, tmp_path
):
    told = []
    convert(ours, tmp_path / "out", tell=told.append)
    assert told[0].endswith("with its tokenizer.")
    model, tokenizer = load_pretrained(tmp_path / "out")
    before, ours_tokenizer = load_model(ours)
    np.testing.assert_array_equal(
        model({"token_ids": TOKEN_IDS}), before({"token_ids": TOKEN_IDS})
    )
    for text in ("to be 你好 🙂", "<|user|>"):
        assert tokenizer.encode(text) == ours_tokenizer.encode(text)
    assert tokenizer.control_tokens == ours_tokenizer.control_tokens
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    names = ours_tokenizer.control_tokens
    assert values["eos_token_id"] == names["<|end_of_document|>"]


def test_rows_that_no_token_has_are_left_out(tmp_path):
    tokenizer = build_family("qwen2")
    size = tokenizer.vocabulary_size
    padded = build_model(size + 7)
    save_huggingface(tmp_path / "theirs", padded)
    put_family(tmp_path / "theirs", "qwen2")
    convert(tmp_path / "theirs", tmp_path / "ours", tell=lambda line: None)
    model, loaded = load_model(tmp_path / "ours")
    assert model.config.vocabulary_size == loaded.vocabulary_size == size
    assert loaded.encode("Hello 你好") == tokenizer.encode("Hello 你好")
    expected = np.asarray(padded({"token_ids": TOKEN_IDS}))[..., :size]
    np.testing.assert_allclose(
        model({"token_ids": TOKEN_IDS}), expected, atol=1e-5
    )


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path):
    size = build_family("qwen2").vocabulary_size
    save_huggingface(tmp_path / "theirs", build_model(size - 1))
    put_family(tmp_path / "theirs", "qwen2")
    told = refusal(load_pretrained, tmp_path / "theirs")
    assert f"has {size - 1:,} ids and the tokenizer {size:,}" in told


def test_transformers_finds_equal_ids_and_logits(ours, tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="pip install 'kerasgpt[peers]'"
    )
    torch = pytest.importorskip("torch", reason="kerasgpt[peers]")
    convert(ours, tmp_path / "out", tell=lambda line: None)
    model, tokenizer = load_model(ours)
    theirs = transformers.AutoTokenizer.from_pretrained(
        tmp_path / "out", split_special_tokens=True
    )
    text = "To be, or not to be? 生存还是毁灭"
    token_ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert token_ids == tokenizer.encode(text)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        expected = peer(torch.tensor([token_ids[:8]])).logits.numpy()
    np.testing.assert_allclose(
        model({"token_ids": np.array([token_ids[:8]])}), expected, atol=1e-4
    )


def test_a_tokenizer_of_ours_can_be_given(ours, tmp_path):
    save_huggingface(tmp_path / "theirs", load_model(ours)[0])
    convert(
        tmp_path / "theirs",
        tmp_path / "new",
        tokenizer_folder=ours,
        tell=lambda line: None,
    )
    model, tokenizer = load_pretrained(tmp_path / "new")
    assert tokenizer.fingerprint() == ByteTokenizer().fingerprint()
    assert model.config.vocabulary_size == tokenizer.vocabulary_size


def test_a_tokenizer_that_does_not_fit_is_refused(ours, tmp_path):
    told = refusal(convert, THEIRS, tmp_path / "new", tokenizer_folder=ours)
    assert told == (
        f"{THEIRS}: the model has 23 ids and the tokenizer 265: it is not the "
        f"model's."
    )
    assert list(tmp_path.iterdir()) == []
    check_vocabulary("here", build_model(265).config, ByteTokenizer())


def test_a_tokenizer_for_a_model_of_ours_is_refused(ours, tmp_path):
    told = refusal(convert, ours, tmp_path / "new", tokenizer_folder=ours)
    assert "--tokenizer is for a model that comes from others" in told


def test_a_target_is_replaced_on_request_only(ours, tmp_path):
    target = tmp_path / "new"
    target.mkdir()
    (target / "mine.txt").write_text("x")
    for source in (THEIRS, ours):
        assert "without --overwrite" in refusal(convert, source, target)
        assert (target / "mine.txt").exists()
    convert(THEIRS, target, overwrite=True, tell=lambda line: None)
    assert not (target / "mine.txt").exists()
    convert(ours, target, overwrite=True, tell=lambda line: None)
    assert load_huggingface(target).config.vocabulary_size == 265


def test_a_model_without_a_tokenizer_serves_where_none_is_needed(tmp_path):
    convert(THEIRS, tmp_path / "ours", tell=lambda line: None)
    assert "holds no tokenizer" in refusal(load_model, tmp_path / "ours")
    assert "holds no tokenizer" in refusal(load_pretrained, tmp_path / "ours")
    told = refusal(load_pretrained, THEIRS)
    assert (
        f"{THEIRS}: brings no tokenizer" in told and "kerasgpt convert" in told
    )


def test_a_model_of_8_bits_is_a_quarter_and_answers_nearly_the_same(
    ours, tmp_path
):
    told = []
    quantize(ours, tmp_path / "int8", tell=told.append)
    assert "% of 0." in told[0]
    sizes = [
        (folder / "model.safetensors").stat().st_size
        for folder in (ours / "model", tmp_path / "int8")
    ]
    # Names and factors are half of so small a file.
    assert sizes[1] < 0.6 * sizes[0]
    model, tokenizer = load_model(tmp_path / "int8")
    assert tokenizer.kind == "byte"
    before = np.asarray(load_model(ours)[0]({"token_ids": TOKEN_IDS}))
    after = np.asarray(model({"token_ids": TOKEN_IDS}))
    # A rounding is off by 0.6 % of a weight's usual size; some ten follow each
    # other.
    change = np.sqrt(np.mean((after - before) ** 2) / np.mean(before**2))
    assert 0 < change < 0.03
    told = refusal(quantize, ours, tmp_path / "int8")
    assert "without --overwrite" in told
    # Out to others it goes in float32.
    convert(tmp_path / "int8", tmp_path / "theirs", tell=lambda line: None)
    again = load_huggingface(tmp_path / "theirs")
    np.testing.assert_array_equal(again({"token_ids": TOKEN_IDS}), after)


@pytest.fixture(scope="module")
def trained(ours, tmp_path_factory):
    """A run folder with the rows that a model was trained on."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(ours / "model", folder / "model")
    tokenizer = ByteTokenizer()
    texts = [
        "to be, or not to be, that is the question. " * 9,
        "你好，世界" * 9,
    ]
    rows = [tokenizer.encode(text) for text in texts]
    shard = build_shard(
        rows,
        [[1] * len(row) for row in rows],
        vocabulary_size=tokenizer.vocabulary_size,
    )
    save_shards(
        folder / "data",
        {"train": shard, "validation": shard},
        tokenizer_fingerprint=tokenizer.fingerprint(),
    )
    return folder


def test_a_model_of_4_bits_answers_nearer_if_it_is_fitted(trained, tmp_path):
    before = load_model(trained)[0]
    token_ids = ByteTokenizer().encode("to be, or not to be, that is")
    inputs = {"token_ids": np.array([token_ids[:8]], "int32")}
    expected = np.asarray(before(inputs))
    changes = []
    for name, fit_to in (("nearest", None), ("fitted", trained)):
        told = []
        folder = tmp_path / name
        quantize(trained, folder, bits=4, fit_to=fit_to, tell=told.append)
        assert "% of 0." in told[0]
        model, tokenizer = load_model(folder)
        assert tokenizer.kind == "byte"
        change = np.asarray(model(inputs)) - expected
        changes.append(np.sqrt(np.mean(change**2) / np.mean(expected**2)))
    assert 0 < changes[1] < 0.8 * changes[0] < 0.3
    sizes = [
        (tmp_path / name / "model.safetensors").stat().st_size
        for name in ("nearest", "fitted")
    ]
    assert sizes[0] == sizes[1]


def test_what_cannot_be_fitted_is_refused(ours, trained, theirs, tmp_path):
    target = tmp_path / "new"
    told = refusal(quantize, trained, target, bits=8, fit_to=trained)
    assert "--fit-to is for --bits 4" in told
    told = refusal(quantize, ours, target, bits=4, fit_to=ours)
    assert "manifest" in told
    told = refusal(quantize, theirs, target, bits=4, fit_to=trained)
    assert "brings no tokenizer" in told
    model = RecurrentCausalLM(
        tiny_recurrent(vocabulary_size=265), name="recurrent"
    )
    model.build()
    save_model(tmp_path / "gru", model, ByteTokenizer())
    told = refusal(quantize, tmp_path / "gru", target, bits=4, fit_to=trained)
    assert "--fit-to is for GPTs" in told
    assert not target.exists()


def test_the_shape_is_read_without_the_weights(ours, tmp_path):
    assert load_pretrained_config(ours) == load_model(ours)[0].config
    copy = pathlib.Path(shutil.copytree(THEIRS, tmp_path / "theirs"))
    (copy / "model.safetensors").unlink()
    assert load_pretrained_config(copy) == load_huggingface(THEIRS).config


def test_a_preset_is_known_by_its_prefix(tmp_path):
    told = refusal(load_pretrained, f"keras_hub:{tmp_path}")
    assert "KerasHub has no GPT-2 there" in told
    assert pretrained_hash("keras_hub:gpt2_base_en") == "keras_hub:gpt2_base_en"


def test_a_place_that_holds_nothing_says_what_to_name(tmp_path):
    assert "holds no trained model" in refusal(
        convert, tmp_path / "no", tmp_path / "new"
    )


def test_the_hash_changes_with_the_weights(ours, theirs, tmp_path):
    assert pretrained_hash(ours) == pretrained_hash(ours / "model")
    before = pretrained_hash(theirs)
    assert pretrained_hash(str(theirs)) == before
    copy = pathlib.Path(shutil.copytree(theirs, tmp_path / "copy"))
    assert pretrained_hash(copy) == before
    values = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**values, "rope_theta": 2}))
    assert pretrained_hash(copy) != before
