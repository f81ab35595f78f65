import pytest

from kerasgpt.data.formats import (
    RowError,
    is_unicode,
    read_messages,
    read_text_column,
    recognise,
)


def message(role, content):
    return {"role": role, "content": content}


def turn(name, value):
    return {"from": name, "value": value}


HELLO = [message("user", "Hi"), message("assistant", "Hello.")]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"messages": HELLO}, "messages"),
        ({"conversations": []}, "sharegpt"),
        ({"instruction": "a", "output": "b"}, "alpaca"),
        ({"text": "a"}, "text"),
        ({"标题": "a", "正文": "b"}, "text"),
        ({"content": "a", "url": "b"}, "text"),
        ({"prompt": "a", "completion": "b"}, "pair"),
        ({"问题": "a", "答案": "b"}, "pair"),
        ({"question": "a", "answer": "b", "text": "c"}, "pair"),
        ({"text": "a", "messages": HELLO}, "messages"),
    ],
)
def test_a_row_is_recognised_by_its_keys(row, kind):
    assert recognise(row) == kind


@pytest.mark.parametrize("row", [{}, {"prompt": "a"}, {"instruction": "a"}])
def test_a_row_of_other_keys_says_which_keys_it_has(row):
    with pytest.raises(RowError, match="format not recognised") as caught:
        recognise(row)
    for key in row:
        assert key in str(caught.value)


@pytest.mark.parametrize("row", ["a text", 3, None, ["a"], True])
def test_a_row_that_is_no_object_is_not_recognised(row):
    with pytest.raises(RowError, match="no object"):
        recognise(row)


def test_a_named_column_is_the_document_whatever_else_there_is():
    row = {"abstract": "a", "text": "b", "messages": HELLO}
    assert recognise(row, text_column="abstract") == "text"
    assert read_text_column(row, text_column="abstract") == "a"


def test_a_named_column_that_is_missing_is_told_with_those_there_are():
    with pytest.raises(RowError) as caught:
        recognise({"a": 1, "text": 2}, text_column="abstract")
    assert str(caught.value) == "no column 'abstract' (columns: a, text)"


@pytest.mark.parametrize("value", [None, 3, ["a"], "\ud800"])
def test_a_document_is_a_text(value):
    with pytest.raises(RowError, match="no valid Unicode text"):
        read_text_column({"body": value})


def test_a_question_and_its_answer_are_a_conversation():
    row = {"id": "7", "question": "Hi", "answer": "Hello."}
    assert read_messages(row) == HELLO


def test_messages_are_returned_as_they_are():
    chat = [
        message("system", "Be brief."),
        message("user", "Hi"),
        message("assistant", "Hello."),
        message("tool", '{"price": 3}'),
        message("assistant", "It costs 3."),
    ]
    assert read_messages({"messages": chat}) == chat


def test_keys_beside_role_and_content_are_left_out():
    row = {"messages": [{**HELLO[0], "name": "Eve"}, HELLO[1]], "id": 7}
    assert read_messages(row) == HELLO


def test_sharegpt_has_other_names_for_the_same_roles():
    row = {
        "conversations": [
            turn("human", "How much?"),
            turn("function_call", '{"name": "price"}'),
            turn("observation", '{"price": 3}'),
            turn("gpt", "Three euros."),
        ],
        "system": "You sell cups.",
        "tools": '[{"name": "price"}]',
    }
    assert read_messages(row) == [
        message("system", 'You sell cups.\n[{"name": "price"}]'),
        message("user", "How much?"),
        message("assistant", '{"name": "price"}'),
        message("tool", '{"price": 3}'),
        message("assistant", "Three euros."),
    ]


@pytest.mark.parametrize(
    ("further", "system"),
    [
        ({"system": "", "tools": None}, []),
        ({"system": "A"}, [message("system", "A")]),
        ({"tools": "B"}, [message("system", "B")]),
    ],
)
def test_an_empty_system_text_makes_no_turn(further, system):
    row = {"conversations": [turn("human", "Hi"), turn("gpt", "Yo")], **further}
    assert read_messages(row) == [
        *system,
        message("user", "Hi"),
        message("assistant", "Yo"),
    ]


def test_of_a_preference_row_the_chosen_answer_is_taken():
    row = {
        "conversations": [turn("human", "Hi")],
        "chosen": turn("gpt", "Hello!"),
        "rejected": turn("gpt", "Go away."),
    }
    assert read_messages(row) == [
        message("user", "Hi"),
        message("assistant", "Hello!"),
    ]


def test_alpaca_joins_instruction_and_input_after_the_history():
    row = {
        "instruction": "Add.",
        "input": "1 1",
        "output": "2",
        "system": "You count.",
        "history": [["Hi", "Hello."], ["Ready?", "Yes."]],
    }
    assert read_messages(row) == [
        message("system", "You count."),
        message("user", "Hi"),
        message("assistant", "Hello."),
        message("user", "Ready?"),
        message("assistant", "Yes."),
        message("user", "Add.\n1 1"),
        message("assistant", "2"),
    ]


@pytest.mark.parametrize("empty", ["", None])
def test_alpaca_without_input_asks_the_instruction_alone(empty):
    row = {
        "instruction": "Say hi.",
        "input": empty,
        "output": "Hi.",
        "system": empty,
        "history": empty or None,
    }
    assert read_messages(row) == [
        message("user", "Say hi."),
        message("assistant", "Hi."),
    ]


BAD_ROWS = {
    "a document": ({"text": "Once upon a time"}, "only text"),
    "unknown role": (
        {"messages": [message("narrator", "x"), *HELLO]},
        "unknown role 'narrator'",
    ),
    "role that is a list": (
        {"messages": [message(["user"], "x"), *HELLO]},
        "unknown role",
    ),
    "role that is missing": (
        {"messages": [{"content": "x"}, *HELLO]},
        "lacks 'role' or 'content'",
    ),
    "turn that is a text": ({"messages": ["Hi"]}, "lacks 'role'"),
    "no list of turns": ({"messages": "Hi"}, "no list of turns"),
    "no turn at all": ({"messages": []}, "no list of turns, or empty"),
    "only a question": ({"messages": HELLO[:1]}, "no assistant turn"),
    "an empty answer": (
        {"messages": [HELLO[0], message("assistant", "")]},
        "no assistant turn",
    ),
    "content that is null": (
        {"messages": [message("user", None), HELLO[1]]},
        "content of a user turn is no text",
    ),
    "content that is a list": (
        {"messages": [HELLO[0], message("assistant", [{"text": "Yo"}])]},
        "content of a assistant turn is no text",
    ),
    "a lone surrogate": (
        {"messages": [message("user", "\ud800"), HELLO[1]]},
        "no valid Unicode",
    ),
    "sharegpt without value": (
        {"conversations": [{"from": "human"}]},
        "lacks 'from' or 'value'",
    ),
    "tools that are a list": (
        {
            "conversations": [turn("human", "a"), turn("gpt", "b")],
            "tools": [{"name": "price"}],
        },
        "system and tools must be texts",
    ),
    "chosen that is a text": (
        {"conversations": [turn("human", "a")], "chosen": "b"},
        "lacks 'from'",
    ),
    "alpaca instruction that is a number": (
        {"instruction": 1, "output": "b"},
        "instruction and input must be texts",
    ),
    "alpaca output that is a number": (
        {"instruction": "a", "output": 2},
        "is no text",
    ),
    "alpaca history of texts": (
        {"instruction": "a", "output": "b", "history": ["Hi", "Yo"]},
        "list of [question, answer] pairs",
    ),
    "alpaca history of three": (
        {"instruction": "a", "output": "b", "history": [["1", "2", "3"]]},
        "list of [question, answer] pairs",
    ),
    "alpaca history that is a text": (
        {"instruction": "a", "output": "b", "history": "Hi"},
        "list of [question, answer] pairs",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_row_that_cannot_be_used_says_which_rule_it_breaks(name):
    row, rule = BAD_ROWS[name]
    with pytest.raises(RowError) as caught:
        read_messages(row)
    assert rule in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unicode_is_what_utf8_can_write():
    assert is_unicode("你好 \U0001f600")
    assert not is_unicode("a\udcff")
