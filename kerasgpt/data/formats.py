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
# Columns that hold a document, and those of a question and its answer.
TEXT_COLUMNS = (
    *("text", "content", "raw_content", "document", "article", "body"),
    *("正文", "内容", "文本", "文章"),
)
QUESTION_COLUMNS = ("prompt", "question", "query", "问题", "提问")
ANSWER_COLUMNS = ("completion", "response", "answer", "回答", "答案")


class RowError(ValueError):
    """A row that cannot be used; the text says which rule it breaks."""


def recognise(row, *, text_column=""):
    """Returns the format of a row: what `read_messages` lists, or "text".

    Args:
        row: dict, one line of a file.
        text_column: str, the column that holds documents; "" = whatever is
            recognised.

    Raises:
        RowError: if the keys fit no format.

    Example:
        >>> recognise({"instruction": "Say hi.", "output": "Hi."})
        'alpaca'
        >>> recognise({"标题": "早", "正文": "早上好。"})
        'text'
    """
    keys = ", ".join(map(str, row)) if isinstance(row, dict) else "no object"
    if text_column:
        if isinstance(row, dict) and text_column in row:
            return "text"
        raise RowError(f"no column {text_column!r} (columns: {keys})")
    if isinstance(row, dict):
        if "messages" in row:
            return "messages"
        if "conversations" in row:
            return "sharegpt"
        if "instruction" in row and "output" in row:
            return "alpaca"
        if _first(QUESTION_COLUMNS, row) and _first(ANSWER_COLUMNS, row):
            return "pair"
        if find_text_column(row):
            return "text"
    raise RowError(
        f"format not recognised (keys: {keys}); a row needs messages, "
        f"conversations, instruction and output, prompt and completion, or text"
    )


def read_text_column(row, *, text_column=""):
    """Returns the document in a row.

    Args:
        row: dict of format "text".
        text_column: str, as in `recognise`.

    Raises:
        RowError: if it is no text.

    Example:
        >>> read_text_column({"id": 7, "content": "Once."})
        'Once.'
    """
    text = row[text_column or find_text_column(row)]
    if not isinstance(text, str) or not is_unicode(text):
        raise RowError("text is no valid Unicode text")
    return text


def find_text_column(row):
    """Returns the first of TEXT_COLUMNS that a row has, or None.

    Example:
        >>> find_text_column(["id", "body"])
        'body'
    """
    return _first(TEXT_COLUMNS, row)


def read_messages(row):
    r"""Returns the conversation in a row as {"role", "content"} messages.

    - messages: `{"messages": [{"role", "content"}, …]}`;
    - ShareGPT: `{"conversations": [{"from", "value"}, …], "system", "tools"}`,
      of a preference row (`chosen`, `rejected`) the chosen answer;
    - Alpaca: `{"instruction", "input", "output", "system", "history"}`;
    - a question and its answer: `{"prompt", "completion"}` and the like.

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
        "pair": _pair_turns,
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


def _pair_turns(row):
    return [
        ("user", row[_first(QUESTION_COLUMNS, row)]),
        ("assistant", row[_first(ANSWER_COLUMNS, row)]),
    ]


def _first(columns, row):
    return next((column for column in columns if column in row), None)


def _turns(turns, role_key, content_key):
    if not isinstance(turns, list) or not turns:
        raise RowError("the conversation is no list of turns, or empty")
    result = []
    for turn in turns:
        if not isinstance(turn, dict) or {role_key, content_key} - set(turn):
            raise RowError(f"a turn lacks {role_key!r} or {content_key!r}")
        result.append((turn[role_key], turn[content_key]))
    return result
