"""Owns what a chat template writes around contents. Not: ids of anything."""

import dataclasses
import hashlib
import json
import pathlib

from kerasgpt.config import InputError
from kerasgpt.files import read_json, write_json

ROLES = ("system", "user", "assistant", "tool")
FORMAT_FILE = "chat_template.json"
# How families of tokenizers begin and end a document, ours first.
_DOCUMENT_STARTS = (
    "<|document|>",
    "<|begin_of_text|>",
    "<s>",
    "<|endoftext|>",
)
_DOCUMENT_ENDS = (
    "<|end_of_document|>",
    "<|end_of_text|>",
    "</s>",
    "<|endoftext|>",
)


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    r"""A chat template as a table, which Python, a graph and Jinja can follow.

    A conversation is `opening`, then `default_system` if the first turn is no
    system's, then for each turn `before[role]`, the content, `after[role]`.
    A prompt goes on with `before["assistant"]`. So what is written for some
    turns is how the text of more turns begins.

    Attributes:
        name: str.
        opening: str, at the start of each conversation.
        before, after: dict from role to str. Its keys are the roles there are.
        end: str. The control token in `after["assistant"]` that ends an
            answer: trained, and where generation stops.
        control_tokens: tuple of str. What must be a control token of the
            tokenizer, `end` and the next two included.
        document, document_end: str. Control tokens around a document.
        default_system: str, markers included.
        stripped_roles: tuple of str. Whose contents lose the white space at
            both ends.

    Raises:
        InputError: if these do not make a template.

    Example:
        >>> chatml = build_chat_format("chatml", ["<|im_start|>", "<|im_end|>",
        ...                              "<|endoftext|>"])
        >>> chatml.text([{"role": "user", "content": "Hi"}], is_prompt=True)
        '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
    """

    name: str
    opening: str
    before: dict
    after: dict
    end: str
    control_tokens: tuple
    document: str
    document_end: str
    default_system: str = ""
    stripped_roles: tuple = ()

    def __post_init__(self):
        for kept, fault in (
            (
                set(self.before) == set(self.after) <= set(ROLES),
                f"its roles must be among {', '.join(ROLES)}",
            ),
            (
                {"user", "assistant"} <= set(self.before),
                "it must have the roles user and assistant",
            ),
            (
                self.end and self.end in self.after.get("assistant", ""),
                f"its end {self.end!r} does not stand after an answer",
            ),
            (
                {self.end, self.document, self.document_end}
                <= set(self.control_tokens),
                "its end, document and document_end must be control tokens",
            ),
            (
                set(self.stripped_roles) <= set(self.before),
                "its stripped_roles must be roles of its",
            ),
        ):
            if not kept:
                raise InputError(f"chat template {self.name!r}: {fault}.")

    def text(self, messages, *, is_prompt=False):
        """Returns a conversation as one str, as a Jinja template would.

        For people and other programs to read: in it, a control token and a
        content that spells one look alike. `ChatTemplate` gives ids.

        Args:
            messages: list of {"role", "content"}.
            is_prompt: bool. Go on to where the assistant speaks.

        Raises:
            InputError: for a role that the template has not.
        """
        roles = [message["role"] for message in messages]
        parts = [self.start_text(roles)]
        for role, message in zip(roles, messages, strict=True):
            content = message["content"]
            if role in self.stripped_roles:
                content = content.strip()
            parts += [self.before[role], content, self.after[role]]
        if is_prompt:
            parts.append(self.before["assistant"])
        return "".join(parts)

    def start_text(self, roles):
        """Returns what stands before the first turn of turns of these roles.

        Raises:
            InputError: for a role that the template has not.
        """
        self.require_roles(roles)
        has_system = bool(roles) and roles[0] == "system"
        return self.opening + ("" if has_system else self.default_system)

    def require_roles(self, roles):
        """Refuses roles that the template has not, by an InputError."""
        for role in roles:
            if role not in self.before:
                raise InputError(
                    f"role {role!r} is unknown; roles are "
                    f"{', '.join(self.before)} in the chat template "
                    f"{self.name!r}."
                )

    def to_dict(self):
        """Returns the table as plain, JSON-serialisable data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values):
        """Rebuilds a table from `to_dict`.

        Raises:
            InputError: for a key or a type that is not the table's.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        kinds = {"str": str, "dict": dict, "tuple": (list, tuple)}
        read = {}
        for name, value in values.items():
            if name not in fields:
                raise InputError(f"a chat template has no {name!r}.")
            kind = fields[name].type.__name__
            inner = value.values() if isinstance(value, dict) else value
            if not isinstance(value, kinds[kind]) or not all(
                isinstance(one, str) for one in inner
            ):
                raise InputError(
                    f"{name} of a chat template must be "
                    f"{'a string' if kind == 'str' else 'made of strings'}."
                )
            read[name] = tuple(value) if kind == "tuple" else value
        missing = [
            name
            for name, field in fields.items()
            if name not in read and field.default is dataclasses.MISSING
        ]
        if missing:
            raise InputError(f"a chat template needs {missing[0]!r}.")
        return cls(**read)

    def fingerprint(self):
        """Returns 12 hex digits that differ between unequal templates."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def save_chat_format(folder, chat_format):
    """Writes a ChatFormat into an existing folder."""
    write_json(pathlib.Path(folder) / FORMAT_FILE, chat_format.to_dict())


def load_chat_format(folder):
    """Returns the ChatFormat of a folder, or None if it holds none.

    Raises:
        InputError: if the file is no template.
    """
    path = pathlib.Path(folder) / FORMAT_FILE
    if not path.exists():
        return None
    values = read_json(path)
    try:
        if not isinstance(values, dict):
            raise InputError("a chat template is a JSON object.")
        return ChatFormat.from_dict(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _kerasgpt(document, document_end):
    return {
        "opening": document,
        "before": {role: f"<|{role}|>" for role in ROLES},
        "after": dict.fromkeys(ROLES, "<|end_of_turn|>"),
        "end": "<|end_of_turn|>",
        "control_tokens": (
            *(f"<|{role}|>" for role in ROLES),
            "<|end_of_turn|>",
        ),
    }


def _chatml(document, document_end):
    return {
        "opening": "",
        "before": {role: f"<|im_start|>{role}\n" for role in ROLES},
        "after": dict.fromkeys(ROLES, "<|im_end|>\n"),
        "end": "<|im_end|>",
        "control_tokens": ("<|im_start|>", "<|im_end|>"),
    }


def _llama_3(document, document_end):
    header = "<|start_header_id|>", "<|end_header_id|>"
    return {
        "opening": document,
        "before": {role: f"{header[0]}{role}{header[1]}\n\n" for role in ROLES},
        "after": dict.fromkeys(ROLES, "<|eot_id|>"),
        "end": "<|eot_id|>",
        "control_tokens": (*header, "<|eot_id|>"),
        "stripped_roles": ROLES,
    }


def _zephyr(document, document_end):
    roles = ROLES[:3]
    return {
        "opening": "",
        "before": {role: f"<|{role}|>\n" for role in roles},
        "after": dict.fromkeys(roles, f"{document_end}\n"),
        "end": document_end,
        "control_tokens": (),
    }


def _alpaca(document, document_end):
    return {
        "opening": document,
        "before": {
            "system": "",
            "user": "### Instruction:\n",
            "assistant": "### Response:\n",
        },
        "after": {
            "system": "\n\n",
            "user": "\n\n",
            "assistant": f"{document_end}\n\n",
        },
        "end": document_end,
        "control_tokens": (),
        "default_system": (
            "Below is an instruction that describes a task. Write a response "
            "that appropriately completes the request.\n\n"
        ),
    }


BUILT_IN = {
    "kerasgpt": _kerasgpt,
    "chatml": _chatml,
    "llama-3": _llama_3,
    "zephyr": _zephyr,
    "alpaca": _alpaca,
}


def build_chat_format(name, control_tokens):
    """Returns a known ChatFormat for a tokenizer.

    | name | marks of a turn | safe because |
    |---|---|---|
    | kerasgpt | control tokens only | no text becomes a control token |
    | chatml, llama-3 | control tokens around the role's name | the same |
    | zephyr | text, then the end of a document | see below |
    | alpaca | text; the end of a document after answers | see below |

    Where plain text marks a turn, as `### Response:` does, a content could
    imitate it; `ChatTemplate` refuses a content that holds such a mark.
    On our own tokenizers zephyr's marks are control tokens.

    Args:
        name: str, one of `BUILT_IN`.
        control_tokens: the texts of the tokenizer's control tokens.

    Raises:
        InputError: for an unknown name, or if the tokenizer has no control
            token to begin and end documents with.
    """
    if name not in BUILT_IN:
        raise InputError(
            f"chat template {name!r} is unknown; there are "
            f"{', '.join(BUILT_IN)}."
        )
    document, document_end = document_tokens(name, control_tokens)
    table = BUILT_IN[name](document, document_end)
    needed = {*table.pop("control_tokens"), document, document_end}
    return ChatFormat(
        name=name,
        document=document,
        document_end=document_end,
        control_tokens=tuple(sorted(needed)),
        **table,
    )


def document_tokens(name, control_tokens):
    """Returns the control tokens that begin and end a document.

    Args:
        name: str, of the template that asks.
        control_tokens: the texts of the tokenizer's control tokens.

    Raises:
        InputError: if none of them is known to.
    """
    found = []
    for known in (_DOCUMENT_STARTS, _DOCUMENT_ENDS):
        there = [token for token in known if token in control_tokens]
        if not there:
            raise InputError(
                f"chat template {name!r} needs one of {', '.join(known)} among "
                f"the tokenizer's control tokens."
            )
        found.append(there[0])
    return tuple(found)
