"""Owns the reading of a Jinja chat template into our form, by questioning it.

A template is a program; nobody can see from its text what it will write. So
it is run on conversations whose contents are place holders. What it writes
around them gives the pieces of a ChatFormat, and further conversations, every
order of roles up to some length, must come out the same from both.
"""

import itertools

from kerasgpt.config import InputError
from kerasgpt.tokenizers.chat_format import (
    ROLES,
    ChatFormat,
    document_tokens,
)
from kerasgpt.tokenizers.jinja_template import HOLDER, run_worker

# All orders of roles of so many turns are compared.
NUM_TURNS = 4
# Contents that templates are known to treat in their own ways.
_WORDS = (
    "",
    " \n",
    " hi\n",
    "</think>a",
    "[",
    "{{x}}",
    "你好",
    "\u3000a\u3000",
)
_DAYS = ("2021-02-03T04:05:06", "2022-12-13T14:15:16")


def read_jinja(source, *, control_tokens, variables=None, name="jinja"):
    """Returns the ChatFormat that writes what a Jinja template does.

    A role that the template refuses, or treats unlike the others, is left
    out: `system` and `tool` may be missing. The format may take more orders
    of roles than the template; what both take, they write alike.

    Args:
        source: str, the `chat_template` of a Hugging Face tokenizer.
        control_tokens: the texts of the tokenizer's control tokens.
        variables: dict, such as {"bos_token": "<s>", "eos_token": "</s>"}.
        name: str, of the format.

    Raises:
        InputError: if the template is not of our form; the text says why.

    Example:
        >>> source = ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        ...           "</s>{% endfor %}{% if add_generation_prompt %}"
        ...           "<|assistant|>{% endif %}")
        >>> read_jinja(source, control_tokens=["<s>", "</s>"]).before["user"]
        '<|user|>'
    """
    reader = _Reader(source, dict(variables or {}), name)
    days = [
        run_worker(source, reader.variables, [_request(("user",))], now=day)
        for day in _DAYS
    ]
    if days[0] != days[1]:
        reader.refuse("it writes today's date")
    pieces = reader.read_pieces()
    after = pieces["after"]["assistant"]
    ends = {after.find(token): token for token in control_tokens}
    ends.pop(-1, None)
    if not ends:
        reader.refuse(
            "no control token of the tokenizer stands after an answer"
        )
    # At one place the longest token counts.
    first = min(ends)
    end = max(
        (one for one in control_tokens if after.startswith(one, first)), key=len
    )
    document, document_end = document_tokens(name, control_tokens)
    written = "".join(
        [
            pieces["opening"],
            pieces["default_system"],
            *pieces["before"].values(),
            *pieces["after"].values(),
        ]
    )
    needed = [token for token in control_tokens if token in written]
    chat_format = ChatFormat(
        name=name,
        end=end,
        document=document,
        document_end=document_end,
        control_tokens=tuple(sorted({*needed, end, document, document_end})),
        **pieces,
    )
    return reader.verify(chat_format)


class _Reader:
    def __init__(self, source, variables, name):
        self.source = source
        self.variables = variables
        self.name = name

    def refuse(self, reason):
        raise InputError(
            f"the chat template cannot be exported: {reason}; use a built-in "
            f"one, or JinjaTemplate in Python."
        )

    def ask(self, requests):
        """Returns the text of each request, or None where it is refused."""
        replies = run_worker(
            self.source, self.variables, requests, now=_DAYS[0]
        )
        return [reply.get("text") for reply in replies]

    def read_pieces(self):
        """Returns the fields of ChatFormat that say what is written."""
        dialogue = ("user", "assistant", "user", "assistant")
        questions = {
            "one": _request(dialogue[:1]),
            "prompt": _request(dialogue[:1], is_prompt=True),
            "two": _request(dialogue[:2]),
            "four": _request(dialogue),
            "system": _request(("system", *dialogue)),
            "late system": _request((*dialogue[:2], "system", *dialogue)),
            "tool": _request((*dialogue[:2], "tool", "assistant")),
        }
        texts = dict(
            zip(questions, self.ask([*questions.values()]), strict=True)
        )
        told = {
            name: _gaps(text, len(questions[name]["messages"]))
            for name, text in texts.items()
        }
        for name in ("one", "prompt", "two", "four"):
            if told[name] is None:
                self.refuse("it refuses a question and an answer, or changes")
        start, after_user = told["one"]
        asked = told["four"][1]
        if not asked.startswith(after_user):
            self.refuse("what follows a question depends on what comes next")
        before_answer = asked[len(after_user) :]
        if told["prompt"][1] != asked:
            self.refuse("its generation prompt is not how an answer begins")
        after_answer = told["two"][2]
        between = told["four"][2]
        if not between.startswith(after_answer):
            self.refuse("what follows an answer depends on what comes next")
        before_user = between[len(after_answer) :]
        if not start.endswith(before_user):
            self.refuse("its first question is not written like others")
        opening = start[: len(start) - len(before_user)]
        before = {"user": before_user, "assistant": before_answer}
        after = {"user": after_user, "assistant": after_answer}
        default = ""
        system = self._system(told, opening, before_user, after_answer)
        if system:
            opening, default, before["system"], after["system"] = system
        tool = told["tool"]
        if (
            tool
            and tool[2].startswith(after_answer)
            and tool[3].endswith(before_answer)
        ):
            before["tool"] = tool[2][len(after_answer) :]
            after["tool"] = tool[3][: len(tool[3]) - len(before_answer)]
        return {
            "opening": opening,
            "default_system": default,
            "before": {r: before[r] for r in ROLES if r in before},
            "after": {r: after[r] for r in ROLES if r in after},
            "stripped_roles": self._stripped([*before]),
        }

    def _system(self, told, opening, before_user, after_answer):
        """Returns opening, default, and what is around a system's content."""
        first, late = told["system"], told["late system"]
        if first is None or not first[1].endswith(before_user):
            return None
        after = first[1][: len(first[1]) - len(before_user)]
        if late and late[2].startswith(after_answer):
            before = late[2][len(after_answer) :]
            if not first[0].endswith(before):
                return None
            start = first[0][: len(first[0]) - len(before)]
        else:
            # It comes first or not at all, so that any cut will do.
            start = self.variables.get("bos_token") or ""
            if not first[0].startswith(start):
                start = ""
            before = first[0][len(start) :]
        if not opening.startswith(start):
            return None
        return start, opening[len(start) :], before, after

    def _stripped(self, roles):
        """Returns the roles whose contents lose white space."""
        stripped = []
        for role in roles:
            order = {
                "system": ("system", "user"),
                "user": ("user",),
                "assistant": ("user", "assistant"),
                "tool": ("user", "assistant", "tool", "assistant"),
            }[role]
            plain = _request(order)
            spaced = _request(order)
            message = spaced["messages"][order.index(role, 0)]
            if role == "tool":
                message = spaced["messages"][2]
            held = message["content"]
            message["content"] = f" \n{held}\n "
            bare, told = self.ask([plain, spaced])
            if told == bare:
                stripped.append(role)
            elif told is None or told != bare.replace(held, f" \n{held}\n "):
                self.refuse(f"it changes white space in a {role} turn")
        return tuple(role for role in ROLES if role in stripped)

    def verify(self, chat_format):
        """Returns the format, less the optional roles that it gets wrong."""
        for dropped in ((), ("tool",), ("system",), ("tool", "system")):
            if any(role not in chat_format.before for role in dropped):
                continue
            kept = chat_format
            if dropped:
                kept = _without(chat_format, dropped)
            fault = self._difference(kept)
            if fault is None:
                return kept
        return self.refuse(f"it treats {fault} in a way of its own")

    def _difference(self, chat_format):
        """Returns which conversations come out unlike, or None."""
        roles = [*chat_format.before]
        orders = [
            order
            for count in range(1, NUM_TURNS + 1)
            for order in itertools.product(roles, repeat=count)
        ]
        dialogue = ("user", "assistant") * 5
        orders += [dialogue[:count] for count in range(1, 11)]
        if "system" in roles:
            orders += [("system", *dialogue[:count]) for count in range(1, 11)]
        requests = [
            _request(order, is_prompt=is_prompt)
            for order in orders
            for is_prompt in (False, True)
        ]
        requests += [
            _request(("user", "assistant", "user"), contents=(one, two, "x"))
            for one in _WORDS
            for two in _WORDS
        ]
        for request, text in zip(requests, self.ask(requests), strict=True):
            if text is None:
                continue
            expected = chat_format.text(
                request["messages"],
                is_prompt=request["add_generation_prompt"],
            )
            if text != expected:
                turns = [
                    f"{m['role']} {m['content']!r}"
                    if ord((m["content"] or " ")[0]) < HOLDER
                    else m["role"]
                    for m in request["messages"]
                ]
                return ", ".join(turns)
        return None


def _request(roles, *, is_prompt=False, contents=None):
    contents = contents or [chr(HOLDER + turn) for turn in range(len(roles))]
    return {
        "messages": [
            {"role": role, "content": content}
            for role, content in zip(roles, contents, strict=True)
        ],
        "add_generation_prompt": is_prompt,
    }


def _gaps(text, num_turns):
    """Returns what stands before, between and after the holders, or None."""
    if text is None:
        return None
    gaps = []
    for turn in range(num_turns):
        gap, found, text = text.partition(chr(HOLDER + turn))
        if not found:
            return None
        gaps.append(gap)
    return [*gaps, text]


def _without(chat_format, roles):
    values = chat_format.to_dict()
    for name in ("before", "after"):
        values[name] = {
            role: text
            for role, text in values[name].items()
            if role not in roles
        }
    values["stripped_roles"] = [
        role for role in values["stripped_roles"] if role not in roles
    ]
    return ChatFormat.from_dict(values)
