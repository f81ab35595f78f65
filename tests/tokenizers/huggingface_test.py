import base64
import functools
import json
import pathlib
import shutil

import pytest
import tensorflow as tf

from kerasgpt.config import InputError
from kerasgpt.tokenizers import BytePairTokenizer, SentencePieceTokenizer
from kerasgpt.tokenizers.chat_format import build_chat_format
from kerasgpt.tokenizers.chat_template import ChatTemplate
from kerasgpt.tokenizers.huggingface import (
    load_huggingface_tokenizer,
    save_huggingface_tokenizer,
)
from kerasgpt.tokenizers.kinds import EXACT_KINDS
from kerasgpt.tokenizers.tokenizer import Tokenizer
from tests.descriptors import tiny_byte_pair
from tests.tokenizers.families import FAMILIES, golden, put_family

ROOT = pathlib.Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
GPT2 = ROOT.parent / "shared" / "data" / "gpt2"


@functools.cache
def written():
    """Returns what transformers made of tokenizers that we wrote."""
    text = (GOLDENS / "huggingface_tokenizers.json").read_text()
    return json.loads(text)


def put(folder, kind):
    """Writes the files that we once wrote for a kind of tokenizer."""
    for name, content in written()["kinds"][kind]["files"].items():
        if name.endswith(".json"):
            (folder / name).write_text(content)
        else:
            (folder / name).write_bytes(base64.b64decode(content))
    return folder


@pytest.mark.parametrize("kind", EXACT_KINDS)
def test_what_we_write_gives_transformers_our_ids(kind, tmp_path):
    expected = written()["kinds"][kind]
    tokenizer = load_huggingface_tokenizer(put(tmp_path, kind))
    texts = written()["texts"]
    ours = tokenizer.encode_strings(tf.constant(texts)).to_list()
    odd = [
        text
        for text, one, other in zip(texts, ours, expected["ids"], strict=True)
        if one != other
    ]
    # Its names of bytes and control tokens are pieces that transformers finds
    # where a letter of them is no piece, as "0" and "|" are not here.
    assert odd == (["<0x41>", "<|user|>"] if kind == "unigram" else [])
    back = tokenizer.decode_ids(tf.ragged.constant(expected["ids"], tf.int32))
    assert [text.decode() for text in back.numpy()] == expected["texts"]
    assert tokenizer.vocabulary_size == expected["length"]


@pytest.mark.parametrize("kind", EXACT_KINDS)
def test_transformers_renders_chats_to_our_ids_and_mask(kind, tmp_path):
    expected, chat = written()["kinds"][kind], written()["chat"]
    template = ChatTemplate(load_huggingface_tokenizer(put(tmp_path, kind)))
    token_ids, loss_mask = template.render(chat)
    assert token_ids == expected["chat_ids"]
    assert loss_mask == expected["chat_mask"]
    assert template.prompt(chat[:2]) == expected["prompt_ids"]


@pytest.mark.parametrize("kind", EXACT_KINDS)
def test_files_are_the_same_after_a_round_trip(kind, tmp_path):
    tokenizer = load_huggingface_tokenizer(put(tmp_path, kind))
    again = tmp_path / "again"
    again.mkdir()
    save_huggingface_tokenizer(again, tokenizer, max_length=64)
    for name in written()["kinds"][kind]["files"]:
        one, other = ((at / name).read_bytes() for at in (tmp_path, again))
        if name.endswith(".json"):
            one, other = json.loads(one), json.loads(other)
        assert one == other, name


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_read_and_written_with_equal_ids(name, tmp_path):
    expected = golden()["tokenizers"][name]
    tokenizer = load_huggingface_tokenizer(put_family(tmp_path, name))
    texts = tf.constant(golden()["texts"])
    assert tokenizer.encode_strings(texts).to_list() == expected["ids"]
    again = tmp_path / "again"
    again.mkdir()
    save_huggingface_tokenizer(again, tokenizer)
    table = json.loads((again / "tokenizer.json").read_text())
    theirs = expected["tokenizer.json"]
    assert table["added_tokens"] == theirs["added_tokens"]
    assert table["model"]["merges"] == theirs["model"]["merges"]
    assert table["model"]["vocab"] == theirs["model"]["vocab"]
    assert table["normalizer"] == theirs["normalizer"]
    loaded = load_huggingface_tokenizer(again)
    assert loaded.fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("gpt2", "alpaca"),
        ("gpt2_digits", "chatml"),
        ("llama3", "llama-3"),
        ("qwen2", "chatml"),
        ("o200k", "alpaca"),
    ],
)
def test_without_a_template_the_control_tokens_tell(name, chosen, tmp_path):
    tokenizer = load_huggingface_tokenizer(put_family(tmp_path, name))
    assert tokenizer.chat_format.name == chosen
    template = ChatTemplate(tokenizer)
    chat = [
        {"role": "user", "content": "to be"},
        {"role": "assistant", "content": "or not"},
    ]
    token_ids, loss_mask = template.render(chat)
    # The answer and what ends it.
    trained = [
        one for one, is_on in zip(token_ids, loss_mask, strict=True) if is_on
    ]
    assert trained == [*tokenizer.encode("or not"), template.end_id]
    assert token_ids[: len(template.prompt(chat[:1]))] == template.prompt(
        chat[:1]
    )


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("place", ["config", "list", "file"])
def test_the_template_of_the_folder_is_used(place, tmp_path):
    told = {
        "config": CHATML,
        "list": [{"name": "default", "template": CHATML}],
        "file": None,
    }[place]
    put_family(tmp_path, "qwen2", chat_template=told)
    if place == "file":
        (tmp_path / "chat_template.jinja").write_text(CHATML)
    tokenizer = load_huggingface_tokenizer(tmp_path)
    assert tokenizer.chat_format.name == "jinja"
    assert tokenizer.chat_format.before["user"] == "<|im_start|>user\n"
    chosen = load_huggingface_tokenizer(tmp_path, chat_format="alpaca")
    assert chosen.chat_format.name == "alpaca"
    table = build_chat_format("chatml", tokenizer.control_tokens)
    given = load_huggingface_tokenizer(tmp_path, chat_format=table)
    assert given.chat_format is table


def test_a_template_of_another_form_is_refused_with_the_cure(tmp_path):
    put_family(tmp_path, "qwen2", chat_template="{{ messages | length }}")
    with pytest.raises(
        InputError, match='or load it with chat_format="chatml"'
    ):
        load_huggingface_tokenizer(tmp_path)


def test_all_added_tokens_are_control_tokens(tmp_path):
    table = golden()["tokenizers"]["qwen2"]["tokenizer.json"]
    size = 1 + max(one["id"] for one in table["added_tokens"])
    tool = {**table["added_tokens"][0], "id": size, "content": "<tool_call>"}
    tool["special"] = False
    added = [*table["added_tokens"], tool]
    put_family(tmp_path, "qwen2", changes={"added_tokens": added})
    tokenizer = load_huggingface_tokenizer(tmp_path)
    assert tokenizer.control_id("<tool_call>") == size
    assert tokenizer.vocabulary_size == size + 1
    assert size not in tokenizer.encode("<tool_call>")


def test_the_files_of_gpt2_are_read(tmp_path):
    if not GPT2.is_dir():
        pytest.skip(f"{GPT2} is absent")
    shutil.copy(GPT2 / "encoder.json", tmp_path / "vocab.json")
    shutil.copy(GPT2 / "vocab.bpe", tmp_path / "merges.txt")
    tokenizer = load_huggingface_tokenizer(tmp_path)
    assert isinstance(tokenizer, BytePairTokenizer)
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.control_tokens == {"<|endoftext|>": 50256}
    assert tokenizer.chat_format.name == "alpaca"
    assert tokenizer.chat_format.end == "<|endoftext|>"


def test_a_sentence_piece_model_alone_is_read(tmp_path):
    (tmp_path / "a").mkdir()
    put(tmp_path / "a", "sentence_piece")
    model = (tmp_path / "a" / "tokenizer.model").read_bytes()
    (tmp_path / "sentencepiece.model").write_bytes(model)
    tokenizer = load_huggingface_tokenizer(tmp_path)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert tokenizer.is_ours
    assert tokenizer.chat_format.name == "kerasgpt"
    assert tokenizer.decode(tokenizer.encode("\u2581 to")) == "\u2581 to"


def test_a_folder_without_a_tokenizer_has_none(tmp_path):
    assert load_huggingface_tokenizer(tmp_path) is None
    (tmp_path / "config.json").write_text("{}")
    assert load_huggingface_tokenizer(tmp_path) is None


def _pre(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
UNSUPPORTED = {
    "the pre-tokenizer Whitespace is not supported": {
        "pre_tokenizer": {"type": "Whitespace"}
    },
    "the pre-tokenizer None is not supported": {"pre_tokenizer": None},
    "the word split 'a' is not supported": {
        "pre_tokenizer": _pre(
            {
                "type": "Split",
                "pattern": {"Regex": "a"},
                "behavior": "Isolated",
                "invert": False,
            },
            {**BYTE_LEVEL, "use_regex": False},
        )
    },
    "add_prefix_space=true": {
        "pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True}
    },
    "the normalizer Lowercase is not": {"normalizer": {"type": "Lowercase"}},
    "type 'WordLevel' are not supported": {"model": {"type": "WordLevel"}},
    "SentencePiece tokenizer is read from": {"model": {"type": "Unigram"}},
    "is no tokenizer of Hugging Face": {"model": []},
    "with end_of_word_suffix is not": {
        "model": {"type": "BPE", "end_of_word_suffix": "</w>"}
    },
    "the added token '  ', which is found": {
        "added_tokens": [{"id": 500, "content": "  ", "special": False}]
    },
    "the token '你' is not spelled in bytes": {
        "model": {"type": "BPE", "vocab": {"你": 0}, "merges": []}
    },
}


@pytest.mark.parametrize("message", UNSUPPORTED)
def test_what_is_not_supported_is_named(message, tmp_path):
    put_family(tmp_path, "gpt2", changes=UNSUPPORTED[message])
    with pytest.raises(InputError, match=message) as caught:
        load_huggingface_tokenizer(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "[]"),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer.model", "no model"),
        ("tokenizer.model", ""),
    ],
)
def test_damaged_files_are_refused(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=name):
        load_huggingface_tokenizer(tmp_path)


def test_what_has_no_such_form_is_not_written(tmp_path):
    with pytest.raises(InputError, match="is not written for transformers"):
        save_huggingface_tokenizer(tmp_path, Tokenizer())
    assert not list(tmp_path.iterdir())


def test_peers_read_what_we_write(tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="a peer, in an environment of its own"
    )
    tokenizer = tiny_byte_pair()
    save_huggingface_tokenizer(tmp_path, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("to be, or not\n\n  你好", "I'll 123 \U0001f600"):
        ids = theirs.encode(text, add_special_tokens=False)
        assert ids == tokenizer.encode(text)
