"""Owns chat templates in Jinja, the form of Hugging Face. Not: our own form."""

import datetime
import json
import pathlib
import re
import subprocess
import sys

from kerasgpt.config import InputError
from kerasgpt.tokenizers.chat_format import ROLES
from kerasgpt.tokenizers.chat_template import literal_ids

WORKER = pathlib.Path(__file__).with_name("jinja_worker.py")
# Compiling and a thousand conversations take 0.3 s.
SECONDS = 10
MEMORY_BYTES = 512 << 20
MAX_SOURCE = 1 << 17
# Stands for the content of turn i: chr(HOLDER + i), private to its users.
HOLDER, MAX_TURNS = 0xF0000, 0xFFFE
_HELD = re.compile(f"([{chr(HOLDER)}-{chr(HOLDER + MAX_TURNS - 1)}])")


class JinjaTemplate:
    """Any `chat_template` of Hugging Face, rendered to ids and loss mask.

    The template never sees a content. It writes around place holders, in a
    process with limits on time and memory; contents are put in afterwards, as
    ids of plain text. So a content cannot become a control token, nor reach
    the template, whose choices by what a content says, or whether it says
    anything, are not made either.
    Messages have a role of `ROLES` and a content; all else in them is left
    out.

    This is slow, a process a call, and Python only. `jinja_reader.read_jinja`
    turns most templates into a ChatFormat, which runs in a graph too.

    Args:
        tokenizer: Tokenizer.
        source: str, the `chat_template`.
        variables: dict of what the template may ask for, for example
            {"bos_token": "<s>", "eos_token": "</s>"}.
        now: str, ISO time, what `strftime_now` tells. `None` = now.

    Raises:
        InputError: if the source is no template.

    Example:
        >>> from kerasgpt.tokenizers.byte import ByteTokenizer
        >>> source = ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        ...           "<|end_of_turn|>{% endfor %}")
        >>> template = JinjaTemplate(ByteTokenizer(), source)
        >>> template.render([{"role": "user", "content": "A"},
        ...                  {"role": "assistant", "content": "B"}])
        ([5, 74, 8, 6, 75, 8], [0, 0, 0, 0, 1, 1])
    """

    def __init__(self, tokenizer, source, *, variables=None, now=None):
        self.tokenizer = tokenizer
        self.source = source
        self.variables = dict(variables or {})
        self.now = now or datetime.datetime.now().isoformat()
        self._ask([])

    def render(self, messages):
        """Returns (token_ids, loss_mask), lists of int, of a conversation.

        Trained are contents of the assistant's, and what follows them up to
        the next control token.

        Raises:
            InputError: for an unknown role, if the template refuses the
                conversation, or writes no control token after an answer.
        """
        (row,) = self.render_batch([messages])
        return row

    def render_batch(self, chats):
        """Returns what `render` does, of many conversations at once."""
        return [
            self._encode(chat, pieces)
            for chat, pieces in zip(chats, self._pieces(chats), strict=True)
        ]

    def prompt(self, messages):
        """Returns ids up to the point where the assistant starts to speak."""
        (pieces,) = self._pieces([messages], is_prompt=True)
        token_ids, _ = self._encode(messages, pieces)
        return token_ids

    def texts(self, chats, *, is_prompt=False):
        """Returns what the template writes, a str for each conversation.

        Raises:
            InputError: see `render`.
        """
        texts = []
        for pieces in self._pieces(chats, is_prompt=is_prompt):
            texts.append("".join(text for text, _ in pieces))
        return texts

    def _pieces(self, chats, *, is_prompt=False):
        """Returns a list of (text, turn) for each conversation.

        `turn` is the number of the turn whose content the text is, or None
        for what the template wrote.
        """
        # Twice: with white space at the ends of contents and without, which
        # tells whether the template takes it away.
        requests = [
            {
                "messages": [_held(m, i, spaced) for i, m in enumerate(chat)],
                "add_generation_prompt": is_prompt,
            }
            for chat in chats
            for spaced in (False, True)
        ]
        replies = self._ask(requests)
        rows = []
        for number, chat in enumerate(chats):
            pair = replies[2 * number : 2 * number + 2]
            for reply in pair:
                if "error" in reply:
                    raise InputError(
                        f"the chat template refuses the conversation: "
                        f"{reply['error']}"
                    )
            bare, spaced = (_HELD.split(reply["text"]) for reply in pair)
            rows.append(_put_in(chat, bare, spaced))
        return rows

    def _encode(self, chat, pieces):
        known = set(self.tokenizer.control_tokens.values())
        token_ids, loss_mask = [], []
        is_answer = False
        for text, turn in pieces:
            if turn is None:
                ids = literal_ids(self.tokenizer, text)
                ends = [place for place, i in enumerate(ids, 1) if i in known]
                if is_answer and not ends:
                    raise InputError(
                        "the chat template writes no control token of this "
                        "tokenizer after an answer, so that none would end."
                    )
                num_trained = ends[0] if is_answer else 0
            else:
                ids = self.tokenizer.encode(text)
                is_answer = chat[turn]["role"] == "assistant"
                num_trained = len(ids) if is_answer else 0
            token_ids += ids
            loss_mask += [1] * num_trained + [0] * (len(ids) - num_trained)
        return token_ids, loss_mask

    def _ask(self, requests):
        for request in requests:
            for message in request["messages"]:
                if message["role"] not in ROLES:
                    raise InputError(
                        f"role {message['role']!r} is unknown; roles are "
                        f"{', '.join(ROLES)}."
                    )
        return run_worker(self.source, self.variables, requests, now=self.now)


def run_worker(
    source,
    variables,
    requests,
    *,
    now,
    seconds=SECONDS,
    memory_bytes=MEMORY_BYTES,
):
    """Returns the answer of a `jinja_worker` process to some requests.

    Args:
        source, variables, requests, now: see `jinja_worker.render`.
        seconds: int, of processor time; at most three times as many pass.
        memory_bytes: int.

    Returns:
        list of {"text": str} or {"error": str}, one a request.

    Raises:
        InputError: if the source is no template, if it exceeds a limit, or
            if Jinja is not installed.
    """
    if not isinstance(source, str) or len(source) > MAX_SOURCE:
        raise InputError(
            f"a chat template must be a text of at most {MAX_SOURCE:,} "
            f"characters."
        )
    if any(_HELD.search(text) for text in (source, *variables.values())):
        raise InputError(
            "the chat template uses characters of plane 15, which stand for "
            "contents here."
        )
    task = {
        "source": source,
        "variables": variables,
        "requests": requests,
        "now": now,
        "seconds": seconds,
        "memory_bytes": memory_bytes,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(WORKER)],
            input=json.dumps(task).encode(),
            capture_output=True,
            timeout=3 * seconds,
            env={},
            check=False,
        )
        reply = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise InputError(
            f"the chat template takes more than {seconds} s or "
            f"{memory_bytes >> 20} MB; it is not used."
        ) from error
    if isinstance(reply, dict):
        if "missing" in reply:
            raise InputError(
                "Jinja chat templates need the package jinja2: "
                "pip install 'kerasgpt[jinja]'."
            )
        raise InputError(f"the chat template is no Jinja: {reply['error']}")
    return reply


def to_jinja(chat_format):
    r"""Returns the `chat_template` that writes what a ChatFormat does.

    An answer stands in a `generation` block, with which `transformers` gives
    the loss mask as well. Programs that read this template take control
    tokens typed in a content for control tokens, if their tokenizer does.

    Args:
        chat_format: ChatFormat.

    Example:
        >>> from kerasgpt.tokenizers.chat_format import build_chat_format
        >>> print(to_jinja(build_chat_format("zephyr", ["<s>", "</s>"]))[:60])
        {% for message in messages %}{% if message['role'] == 'syste
    """
    parts = []
    if chat_format.opening:
        parts.append(_told(chat_format.opening))
    if chat_format.default_system:
        parts.append(
            "{% if not messages or messages[0]['role'] != 'system' %}"
            + _told(chat_format.default_system)
            + "{% endif %}"
        )
    parts.append("{% for message in messages %}")
    for index, (role, before) in enumerate(chat_format.before.items()):
        word = "elif" if index else "if"
        content = "message['content']"
        if role in chat_format.stripped_roles:
            content = f"({content} | trim)"
        after = chat_format.after[role]
        parts.append(f"{{% {word} message['role'] == {_quoted(role)} %}}")
        if role == "assistant":
            cut = after.index(chat_format.end) + len(chat_format.end)
            parts += [
                _told(before),
                "{% generation %}",
                f"{{{{ {content} + {_quoted(after[:cut])} }}}}",
                "{% endgeneration %}",
                _told(after[cut:]),
            ]
        else:
            parts.append(
                f"{{{{ {_quoted(before)} + {content} + {_quoted(after)} }}}}"
            )
    known = ", ".join(chat_format.before)
    fault = _quoted(f"roles are {known}")
    parts.append(
        f"{{% else %}}{{{{ raise_exception({fault}) }}}}{{% endif %}}"
        "{% endfor %}{% if add_generation_prompt %}"
        f"{_told(chat_format.before['assistant'])}{{% endif %}}"
    )
    return "".join(parts)


def _told(text):
    return f"{{{{ {_quoted(text)} }}}}" if text else ""


def _quoted(text):
    """Returns a Jinja string: Jinja reads escapes as Python does."""
    for character, escape in (
        ("\\", "\\\\"),
        ("'", "\\'"),
        ("\n", "\\n"),
        ("\r", "\\r"),
        ("\t", "\\t"),
    ):
        text = text.replace(character, escape)
    return f"'{text}'"


def _held(message, turn, spaced):
    """Returns a message with a place holder for its content."""
    if turn >= MAX_TURNS:
        raise InputError(f"a conversation has at most {MAX_TURNS:,} turns.")
    lead, _, trail = _parts(message["content"])
    held = chr(HOLDER + turn)
    if spaced:
        held = f"{lead}{held}{trail}"
    return {"role": message["role"], "content": held}


def _parts(text):
    """Returns (white space, the rest, white space) of a text.

    White space alone is the rest: what stands for it is never taken away.
    """
    core = text.strip() or text
    lead, _, trail = text.partition(core) if core else ("", "", "")
    return lead, core, trail


def _put_in(chat, bare, spaced):
    """Returns (text, turn) pieces, with each holder's content in its place.

    Args:
        chat: list of messages.
        bare, spaced: lists of str, literals and holders in turn, of contents
            without and with the white space at their ends.
    """
    fault = InputError(
        "the chat template treats white space around contents in a way that "
        "is not understood."
    )
    if bare[1::2] != spaced[1::2]:
        raise fault
    turns = [ord(holder) - HOLDER for holder in bare[1::2]]
    parts = [_parts(chat[turn]["content"]) for turn in turns]
    pieces = []
    for gap in range(len(turns) + 1):
        literal, told = bare[2 * gap], spaced[2 * gap]
        trail = parts[gap - 1][2] if gap else ""
        lead = parts[gap][0] if gap < len(turns) else ""
        for kept_trail, kept_lead in (
            (trail, lead),
            ("", ""),
            (trail, ""),
            ("", lead),
        ):
            if told == kept_trail + literal + kept_lead:
                break
        else:
            raise fault
        if pieces:
            text, turn = pieces[-1]
            pieces[-1] = (text + kept_trail, turn)
        pieces.append((literal, None))
        if gap < len(turns):
            pieces.append((kept_lead + parts[gap][1], turns[gap]))
    return pieces
