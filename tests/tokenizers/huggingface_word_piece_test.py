import functools
import json
import pathlib
import shutil
import tempfile

import hypothesis
import pytest
import tensorflow as tf
import tokenizers
from hypothesis import strategies as st

from kerasgpt.tokenizers.huggingface import (
    load_huggingface_tokenizer,
    save_huggingface_tokenizer,
)
from tests.checkpoints.folders import (
    copier,
    golden_folders,
    refusal,
    rewrite_json,
)
from tests.conftest import GOLDENS
from tests.descriptors import tiny_word_piece

FOLDERS = golden_folders("bert")
TEXTS = json.loads((GOLDENS / "bert" / "texts.json").read_text())


copy = copier(FOLDERS)


@pytest.mark.parametrize("name", FOLDERS)
def test_texts_become_their_ids_in_python_and_in_tf_data(name, tmp_path):
    expected, texts = TEXTS["ids"][name], TEXTS["texts"]
    tokenizer = load_huggingface_tokenizer(FOLDERS[name])
    assert [tokenizer.encode(text) for text in texts] == expected
    assert [row.tolist() for row in tokenizer.encode_batch(texts)] == expected
    # Saved and loaded as ours, and as theirs.
    tokenizer.save_files(tmp_path)
    again = type(tokenizer).load_files(tmp_path)
    assert again.fingerprint() == tokenizer.fingerprint()
    assert again.encode_strings(tf.constant(texts)).to_list() == expected
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    save_huggingface_tokenizer(theirs, tokenizer, max_length=17)
    for file in ("vocab.txt", "tokenizer.json"):
        # Either file alone is enough.
        other = tmp_path / file.replace(".", "_")
        other.mkdir()
        for kept in (file, "tokenizer_config.json"):
            shutil.copy(theirs / kept, other)
        read = load_huggingface_tokenizer(other)
        assert read.fingerprint() == tokenizer.fingerprint()


LETTERS = (
    "aeThEuns dwRcfé\u0301Éİß12.,!?'#-_[]@ \t\n\u00a0\u3000\u200b"
    "，。“你好世界國\U0001f600"
)


@pytest.mark.parametrize("name", FOLDERS)
@hypothesis.given(st.lists(st.text(LETTERS, max_size=40), max_size=8))
def test_ids_of_any_text_are_those_of_tokenizers(name, texts):
    tokenizer, peer = pair(name)
    assert tokenizer.encode_strings(
        tf.constant(texts, tf.string)
    ).to_list() == [
        peer.encode(text, add_special_tokens=False).ids for text in texts
    ]


@functools.cache
def pair(name):
    """Returns our tokenizer of a folder, and `tokenizers`' of what we write."""
    tokenizer = load_huggingface_tokenizer(FOLDERS[name])
    with tempfile.TemporaryDirectory() as folder:
        save_huggingface_tokenizer(folder, tokenizer)
        path = pathlib.Path(folder, "tokenizer.json")
        peer = tokenizers.Tokenizer.from_file(str(path))
    peer.encode_special_tokens = True
    return tokenizer, peer


def test_what_we_write_gives_tokenizers_their_ids():
    for name in FOLDERS:
        _, peer = pair(name)
        ids = [
            peer.encode(text, add_special_tokens=False).ids
            for text in TEXTS["texts"]
        ]
        assert ids == TEXTS["ids"][name]
    assert peer.encode("the").ids == [9, 2, 27]


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"normalizer": {"type": "Lowercase"}}, "with Lowercase is not"),
        ({"normalizer": None}, "WordPiece with None is not supported"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "with Whitespace is not"),
        (
            {"normalizer": {"type": "BertNormalizer", "clean_text": False}},
            "clean_text=false is not supported",
        ),
        (
            {"model": {"type": "WordPiece", "continuing_subword_prefix": "@"}},
            "continuing_subword_prefix='@' is not supported; only '##' is",
        ),
        (
            {"model": {"max_input_chars_per_word": 7}},
            "max_input_chars_per_word=7 is not supported",
        ),
        ({"model": {"type": "WordPiece"}}, "is no tokenizer of Hugging Face"),
        ({"added_tokens": [{"id": 3, "content": "[PAD]"}]}, "has two ids"),
    ],
)
def test_a_tokenizer_of_another_form_is_refused(copy, changes, told):
    folder = copy("masked")
    rewrite_json(folder / "tokenizer.json", **changes)
    message = refusal(load_huggingface_tokenizer, folder)
    assert told in message
    assert message.startswith(str(folder / "tokenizer.json"))


def test_settings_of_another_form_are_refused(copy):
    folder = copy("masked_float16")
    path = folder / "tokenizer_config.json"
    rewrite_json(path, added_tokens_decoder={"x": {"content": "a"}})
    assert f"{path}: added_tokens_decoder is no table of" in refusal(
        load_huggingface_tokenizer, folder
    )


def test_ours_cuts_words_otherwise_and_is_not_written(tmp_path):
    told = refusal(save_huggingface_tokenizer, tmp_path, tiny_word_piece())
    assert "is not written for transformers" in told
    assert list(tmp_path.iterdir()) == []
