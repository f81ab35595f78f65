import json
import pathlib
import shutil

import numpy as np
import pytest

from kerasgpt.checkpoints.exchange import (
    check_vocabulary,
    convert,
    load_pretrained,
    load_pretrained_config,
    pretrained_hash,
)
from kerasgpt.checkpoints.huggingface import load_huggingface, save_huggingface
from kerasgpt.checkpoints.model_folder import load_model, save_model
from kerasgpt.config import InputError
from kerasgpt.models.gpt import GPTCausalLM
from kerasgpt.tokenizers import ByteTokenizer
from tests.conftest import GOLDENS
from tests.descriptors import tiny_config

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


def refusal(function, *arguments, **options):
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_theirs_becomes_ours_and_theirs_again(tmp_path):
    told = []
    convert(THEIRS, tmp_path / "ours", tell=told.append)
    assert told == [f"{tmp_path / 'ours'}: 3,204 parameters."]
    model, tokenizer = load_model(tmp_path / "ours", needs_tokenizer=False)
    assert tokenizer is None
    expected = load_huggingface(THEIRS)({"token_ids": TOKEN_IDS})
    np.testing.assert_array_equal(model({"token_ids": TOKEN_IDS}), expected)
    convert(tmp_path / "ours", tmp_path / "back", tell=told.append)
    assert (tmp_path / "back" / "model.safetensors").stat().st_size > 0
    again = load_huggingface(tmp_path / "back")
    np.testing.assert_array_equal(again({"token_ids": TOKEN_IDS}), expected)


def test_a_run_folder_goes_out_without_its_tokenizer(ours, tmp_path):
    told = []
    convert(ours, tmp_path / "out", tell=told.append)
    assert told[0] == "the tokenizer is left out."
    model, tokenizer = load_pretrained(tmp_path / "out", needs_tokenizer=False)
    assert tokenizer is None
    expected = load_model(ours)[0]({"token_ids": TOKEN_IDS})
    np.testing.assert_array_equal(model({"token_ids": TOKEN_IDS}), expected)


def test_a_tokenizer_of_ours_can_be_given(ours, theirs, tmp_path):
    (theirs / "vocab.json").write_text("{}")
    told = []
    convert(theirs, tmp_path / "bare", tell=told.append)
    assert told[0] == "its tokenizer files are left out."
    convert(theirs, tmp_path / "new", tokenizer_folder=ours, tell=told.append)
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
    check_vocabulary("here", build_model(265), ByteTokenizer())


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
    assert "brings no tokenizer" in told and "kerasgpt convert" in told


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
