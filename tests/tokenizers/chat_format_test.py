import dataclasses
import json

import pytest

from kerasgpt.config import InputError
from kerasgpt.tokenizers import CONTROL_TOKENS
from kerasgpt.tokenizers.chat_format import (
    BUILT_IN,
    FORMAT_FILE,
    ChatFormat,
    build_chat_format,
    load_chat_format,
    save_chat_format,
)
from tests.tokenizers.chat_cases import chat, goldens

every_name = pytest.mark.parametrize("name", BUILT_IN)


def tokens_of(name):
    return goldens()["templates"][name]["control_tokens"]


def built_in(name):
    return build_chat_format(name, tokens_of(name))


TALK = chat(("system", "S"), ("user", "U\n"), ("assistant", "A"))
WRITTEN = {
    "kerasgpt": "<|document|><|system|>S<|end_of_turn|><|user|>U\n"
    "<|end_of_turn|><|assistant|>A<|end_of_turn|>",
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU\n"
    "<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n",
    "llama-3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>"
    "\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>",
    "zephyr": "<|system|>\nS</s>\n<|user|>\nU\n</s>\n<|assistant|>\nA</s>\n",
    "alpaca": "<s>S\n\n### Instruction:\nU\n\n\n### Response:\nA</s>\n\n",
}


@every_name
def test_what_is_written(name):
    assert built_in(name).text(TALK) == WRITTEN[name]


@every_name
def test_what_is_written_equals_the_published_form(name):
    golden = goldens()["templates"][name]
    texts = iter(golden["form_texts"])
    assert golden["form"] or name == "kerasgpt"
    for talk in goldens()["chats"] if golden["form"] else []:
        for is_prompt in (False, True):
            assert built_in(name).text(talk, is_prompt=is_prompt) == next(texts)


def test_a_default_system_prompt_stands_where_none_is_given():
    alpaca = built_in("alpaca")
    assert alpaca.text(TALK[1:]).startswith("<s>Below is an instruction")
    assert "Below" not in alpaca.text(TALK)


def test_our_own_tokenizers_can_have_those_without_control_tokens():
    for name in ("zephyr", "alpaca"):
        found = build_chat_format(name, CONTROL_TOKENS)
        assert found.end == found.document_end == "<|end_of_document|>"


@pytest.mark.parametrize("tokens", [[], ["<s>"], ["</s>"]])
def test_a_tokenizer_that_cannot_end_documents_is_refused(tokens):
    with pytest.raises(InputError, match="'zephyr' needs one of"):
        build_chat_format("zephyr", tokens)


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match="there are kerasgpt, chatml"):
        build_chat_format("vicuna", CONTROL_TOKENS)


@pytest.mark.parametrize("role", ["bot", "", "User", "user ", "<|user|>"])
def test_an_unknown_role_is_refused(role):
    with pytest.raises(InputError, match="roles are system, user, assistant"):
        built_in("chatml").text(chat((role, "x")))


def test_zephyr_has_no_tools():
    with pytest.raises(InputError, match="'tool' is unknown"):
        built_in("zephyr").text(chat(("tool", "x")))


@every_name
def test_a_template_survives_a_folder(name, tmp_path):
    save_chat_format(tmp_path, built_in(name))
    loaded = load_chat_format(tmp_path)
    assert loaded == built_in(name)
    assert loaded.fingerprint() == built_in(name).fingerprint()


def test_a_folder_without_a_template(tmp_path):
    assert load_chat_format(tmp_path) is None


def test_fingerprints_differ():
    chatml = built_in("chatml")
    others = [
        *(built_in(name) for name in BUILT_IN),
        dataclasses.replace(chatml, default_system="x"),
        dataclasses.replace(chatml, stripped_roles=("user",)),
    ]
    prints = [one.fingerprint() for one in others]
    assert len(set(prints)) == len(prints)
    assert chatml.fingerprint() in prints


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"before": {"user": "a"}}, "its roles must be among"),
        ({"end": "<|im_start|>"}, "does not stand after an answer"),
        ({"control_tokens": []}, "must be control tokens"),
        ({"stripped_roles": ["bot"]}, "must be roles of its"),
        ({"opening": 3}, "opening of a chat template must be a string"),
        ({"before": {"user": 3}}, "must be made of strings"),
        ({"before": ["user"]}, "must be made of strings"),
        ({"extra": ""}, "has no 'extra'"),
    ],
)
def test_a_damaged_file_is_told_in_one_line(change, fault, tmp_path):
    path = tmp_path / FORMAT_FILE
    path.write_text(json.dumps({**built_in("chatml").to_dict(), **change}))
    with pytest.raises(InputError) as caught:
        load_chat_format(tmp_path)
    told = str(caught.value)
    assert told.startswith(str(path))
    assert fault in told
    assert "\n" not in told


@pytest.mark.parametrize("text", ["[]", '{"name": "x"}', "3"])
def test_a_file_that_is_no_template_is_refused(text, tmp_path):
    (tmp_path / FORMAT_FILE).write_text(text)
    with pytest.raises(InputError, match="a chat template"):
        load_chat_format(tmp_path)


def test_a_template_without_answers_is_none():
    values = built_in("chatml").to_dict()
    for name in ("before", "after"):
        values[name] = {"user": values[name]["user"]}
    with pytest.raises(InputError, match="must have the roles user and"):
        ChatFormat.from_dict(values)
