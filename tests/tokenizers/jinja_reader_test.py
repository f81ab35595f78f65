import pytest

from kerasgpt.config import InputError
from kerasgpt.tokenizers.chat_format import BUILT_IN, build_chat_format
from kerasgpt.tokenizers.jinja_reader import read_jinja
from kerasgpt.tokenizers.jinja_template import to_jinja
from tests.tokenizers.chat_cases import chat, goldens

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA = ("<s>", "</s>")
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
LOOP = "{{% for m in messages %}}{}{{% endfor %}}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def turn(content="{{ m.content }}", role="{{ m.role }}"):
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


def chatml(one=None, *, start="", ask=ASK):
    return start + LOOP.format(one or turn()) + ask.rstrip("\n")


def read(source, *, control_tokens=CHATML, **options):
    return read_jinja(source, control_tokens=control_tokens, **options)


@pytest.mark.parametrize("name", BUILT_IN)
def test_our_own_jinja_is_read_back(name):
    tokens = goldens()["templates"][name]["control_tokens"]
    expected = build_chat_format(name, tokens)
    source = to_jinja(expected)
    found = read(source, control_tokens=tokens, name=name, variables=VARIABLES)
    if name == "alpaca":
        # Only the text before all else can be cut in two ways.
        assert found.text([]) == expected.text([])
        found = expected
    assert found == expected


@pytest.mark.parametrize("name", ["chatml", "llama-3", "zephyr", "alpaca"])
def test_published_forms_are_the_built_in_ones(name):
    golden = goldens()["templates"][name]
    found = read(
        golden["form"],
        control_tokens=golden["control_tokens"],
        variables=golden["variables"],
        name=name,
    )
    assert found == build_chat_format(name, golden["control_tokens"])


def test_a_default_system_prompt_is_found():
    start = (
        "{% if not messages or messages[0].role != 'system' %}<|im_start|>"
        "system\nBe kind.<|im_end|>\n{% endif %}"
    )
    # The first line end after a statement is the template's own.
    found = read(chatml(start=start))
    assert found.opening == ""
    assert found.default_system == "<|im_start|>system\nBe kind.<|im_end|>\n"
    plain = read(chatml())
    assert plain.default_system == ""
    for talk in (chat(("user", "a")), chat(("system", "s"), ("user", "a"))):
        expected = plain.text(talk)
        if talk[0]["role"] == "user":
            expected = found.default_system + expected
        assert found.text(talk) == expected


def test_roles_of_other_names_and_white_space_taken_away():
    one = (
        "{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "{% if role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        + turn("{{ m.content | trim }}", "{{ role }}")
    )
    source = chatml(one, ask=ASK.replace("assistant", "model"))
    found = read(source)
    assert found.before["assistant"] == "<|im_start|>model\n"
    assert found.before["tool"] == "<|im_start|>tool\n"
    assert "system" not in found.before
    assert found.stripped_roles == ("user", "assistant", "tool")


def test_turns_in_brackets():
    one = (
        "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}"
        "{% else %}{{ raise_exception('no') }}{% endif %}"
    )
    found = read(
        "{{ bos_token }}" + LOOP.format(one),
        control_tokens=LLAMA,
        variables=VARIABLES,
    )
    assert found.before == {"user": "[INST] ", "assistant": ""}
    assert found.after == {"user": " [/INST]", "assistant": "</s>"}
    assert (found.opening, found.end) == ("<s>", "</s>")


def test_a_tool_that_is_written_unlike_the_others_is_left_out():
    one = (
        "{% if m.role == 'tool' and loop.previtem.role == 'tool' %}"
        + turn(role="more")
        + "{% else %}"
        + turn()
        + "{% endif %}"
    )
    found = read(chatml(one))
    assert [*found.before] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (chatml(start="{{ strftime_now('%d') }}"), "today's date"),
        (chatml(ask=""), "generation prompt is not how"),
        (chatml(ask=ASK.replace("nt\n", "nt\n<think>\n")), "generation prompt"),
        (chatml(turn("{{ m.content.split('</think>')[-1] }}")), "of its own"),
        (chatml(turn("{{ m.content.lstrip() }}")), "changes white space"),
        (chatml(turn("{{ m.content[:1] if loop.last else '' }}")), "refuses"),
        (chatml(turn() + "{{ loop.index }}"), "of its own"),
        (chatml(turn() + "{{ loop.last }}"), "depends on what comes next"),
        (chatml("{{ raise_exception('never') }}"), "refuses a question"),
        (chatml(turn().replace("<|im_end|>", "")), "no control token"),
        (
            chatml(turn() + "{% if loop.length > 6 %}late{% endif %}"),
            "in a way of its own",
        ),
        ("{% for", "is no Jinja"),
    ],
)
def test_what_is_not_of_our_form_is_refused_with_the_reason(source, fault):
    with pytest.raises(InputError) as caught:
        read(source)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)
