"""Owns conversations and tokenizers that chat templates are tested with."""

import functools
import json
import pathlib
import random

import tensorflow as tf

from kerasgpt.tokenizers import CONTROL_TOKENS, ByteTokenizer, ChatTemplate
from kerasgpt.tokenizers.chat_format import build_chat_format
from tests.descriptors import tiny_sentence_piece

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "chat_templates.json"


class ControlledBytes(ByteTokenizer):
    """A byte tokenizer with control tokens of its own, ids from 0."""

    def __init__(self, control_tokens):
        super().__init__()
        self.control_tokens = {
            token: index for index, token in enumerate(control_tokens)
        }
        self.shift = len(control_tokens) - len(CONTROL_TOKENS)
        self.vocabulary_size = 256 + len(control_tokens)

    def encode_strings(self, strings):
        return super().encode_strings(strings) + self.shift

    def decode_ids(self, token_ids):
        # Ids of ours below 0 are control ids as well.
        return super().decode_ids(token_ids - self.shift)


@functools.cache
def goldens():
    """Returns what `tests/goldens/make_chat_templates.py` wrote."""
    return json.loads(GOLDENS.read_text(encoding="utf-8"))


def chat(*turns):
    """Returns messages of (role, content) pairs."""
    return [{"role": role, "content": content} for role, content in turns]


def build_template(name, kind="bytes"):
    """Returns a built-in ChatTemplate on a tokenizer that can have it.

    Args:
        name: str, of the template.
        kind: str. "bytes" = with the control tokens of the family, "ours" =
            a SentencePiece tokenizer.
    """
    if kind == "ours":
        tokenizer = tiny_sentence_piece()
        tokens = CONTROL_TOKENS
    else:
        tokens = goldens()["templates"][name]["control_tokens"]
        tokenizer = ControlledBytes(tokens)
    return ChatTemplate(tokenizer, build_chat_format(name, tokens))


# Every built-in template, on each tokenizer that has its control tokens.
TEMPLATES = (
    *((name, "bytes") for name in goldens()["templates"]),
    *((name, "ours") for name in ("kerasgpt", "zephyr", "alpaca")),
)


def control_ids(template, token_ids):
    """Returns those of the ids that are control ids."""
    known = set(template.control_ids.values())
    return [one for one in token_ids if one in known]


def padded(chats):
    """Returns roles and contents, string (batch, turns)."""
    turns = max(map(len, chats))
    rows = [one + chat(("", "")) * (turns - len(one)) for one in chats]
    return tuple(
        tf.constant([[turn[key] for turn in row] for row in rows])
        for key in ("role", "content")
    )


def random_chats(template, count, *, seed=0):
    """Returns conversations of 1 to 6 turns in any order of roles."""
    draw = random.Random(seed)
    contents = (
        *("", " ", "\n a ", "hi", "你好，世界", "\u3000a\u2003b\u3000", "🙂"),
        *template.control_ids,
    )
    chats = []
    for _ in range(count):
        turns = []
        for _ in range(draw.randint(1, 6)):
            content = "".join(draw.choices(contents, k=draw.randint(0, 3)))
            if not any(mark in content for mark in template.marks):
                turns.append((draw.choice(template.roles), content))
        if turns:
            chats.append(chat(*turns))
    return chats
