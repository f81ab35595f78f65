"""Owns chat formats: one row -> messages. Not: reading files (sources.py)."""

# The names other formats give to our roles. A function call is something the
# assistant says, what comes back from it is the tool's turn.
ROLE_NAMES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


class RowError(ValueError):
    """A row that cannot be used; the text says which rule it breaks."""


def recognise(row):
    """Returns the format of a row: "messages", "sharegpt", "alpaca", "text".

    Args:
        row: dict, one line of a file.

    Raises:
        RowError: if the keys fit no format.

    Example:
        >>> recognise({"instruction": "Say hi.", "output": "Hi."})
        'alpaca'
    """
    if isinstance(row, dict):
        if "messages" in row:
            return "messages"
        if "conversations" in row:
            return "sharegpt"
        if "instruction" in row and "output" in row:
            return "alpaca"
        if "text" in row:
            return "text"
    keys = ", ".join(sorted(row)) if isinstance(row, dict) else "no object"
    raise RowError(
        f"format not recognised (keys: {keys}); a row needs messages, "
        f"conversations, instruction and output, or text"
    )


def read_messages(row):
    r"""Returns the conversation in a row as {"role", "content"} messages.

    - messages: `{"messages": [{"role", "content"}, …]}`;
    - ShareGPT: `{"conversations": [{"from", "value"}, …], "system", "tools"}`,
      of a preference row (`chosen`, `rejected`) the chosen answer;
    - Alpaca: `{"instruction", "input", "output", "system", "history"}`.

    Raises:
        RowError: for an unknown format or role, content that is no text, or a
            conversation in which the assistant says nothing.

    Example:
        >>> read_messages({"instruction": "Add.", "input": "1 1",
        ...                "output": "2"})
        [{'role': 'user', 'content': 'Add.\n1 1'},
         {'role': 'assistant', 'content': '2'}]
    """
    kind = recognise(row)
    if kind == "text":
        raise RowError("a document, not a conversation: it has only text")
    turns = {
        "messages": _messages_turns,
        "sharegpt": _sharegpt_turns,
        "alpaca": _alpaca_turns,
    }[kind](row)
    messages = []
    for role, content in turns:
        if not isinstance(role, str) or role not in ROLE_NAMES:
            raise RowError(f"unknown role {role!r}")
        if not isinstance(content, str):
            raise RowError(f"the content of a {role} turn is no text")
        if not is_unicode(content):
            raise RowError(f"the content of a {role} turn is no valid Unicode")
        messages.append({"role": ROLE_NAMES[role], "content": content})
    if not any(m["role"] == "assistant" and m["content"] for m in messages):
        raise RowError("no assistant turn with content")
    return messages


def is_unicode(text):
    """Returns whether a str can be written as UTF-8 (no lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _messages_turns(row):
    return _turns(row["messages"], "role", "content")


def _sharegpt_turns(row):
    turns = _turns(row["conversations"], "from", "value")
    parts = [row[key] for key in ("system", "tools") if row.get(key)]
    if not all(isinstance(part, str) for part in parts):
        raise RowError("system and tools must be texts")
    if parts:
        turns.insert(0, ("system", "\n".join(parts)))
    if "chosen" in row:
        turns.extend(_turns([row["chosen"]], "from", "value"))
    return turns


def _alpaca_turns(row):
    turns = [("system", row["system"])] if row.get("system") else []
    history = row.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in history
    ):
        raise RowError("history must be a list of [question, answer] pairs")
    for user, assistant in history:
        turns += [("user", user), ("assistant", assistant)]
    parts = [row["instruction"], row.get("input")]
    if not all(part is None or isinstance(part, str) for part in parts):
        raise RowError("instruction and input must be texts")
    question = "\n".join(part for part in parts if part)
    return [*turns, ("user", question), ("assistant", row["output"])]


def _turns(turns, role_key, content_key):
    if not isinstance(turns, list) or not turns:
        raise RowError("the conversation is no list of turns, or empty")
    result = []
    for turn in turns:
        if not isinstance(turn, dict) or {role_key, content_key} - set(turn):
            raise RowError(f"a turn lacks {role_key!r} or {content_key!r}")
        result.append((turn[role_key], turn[content_key]))
    return result
