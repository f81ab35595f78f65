import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasgpt.serving.request_schema import (
    BadRequest,
    check,
    openapi_document,
    parse_body,
    request_schemas,
    with_defaults,
)

SCHEMAS = request_schemas(max_choices=8, max_stops=2)
CHAT = SCHEMAS["/v1/chat/completions"]
COMPLETION = SCHEMAS["/v1/completions"]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(VALUES)
def test_valid_json_is_read_as_it_is(value):
    assert parse_body(json.dumps(value).encode()) == value
    assert parse_body(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(body):
    try:
        value = parse_body(body)
    except BadRequest as error:
        assert "\n" not in str(error)
        str(error).encode()
    else:
        json.dumps(value)


def test_numbers_beyond_json_keep_their_field():
    told = parse_body(b'{"a": NaN, "b": -Infinity, "c": 1e999}')
    assert math.isnan(told["a"])
    assert told["b"] == -math.inf
    assert told["c"] == math.inf
    long = parse_body(b'{"a": %s}' % (b"1" * 10_000))
    assert long["a"] == math.inf


def test_a_field_given_twice_is_named_in_short_ascii():
    name = "键" * 1000
    with pytest.raises(BadRequest) as caught:
        parse_body(json.dumps({"x": 1})[:-1].encode() + b', "x": 2}')
    assert caught.value.param == "x"
    with pytest.raises(BadRequest) as caught:
        parse_body(f'{{"{name}": 1, "{name}": 2}}'.encode())
    assert caught.value.param.isascii()
    assert len(caught.value.param) < 500
    # Fields of two objects are not one field.
    parse_body(b'[{"x": 1}, {"x": 2}]')


@given(VALUES)
def test_any_value_is_checked_without_a_crash(value):
    for schema in SCHEMAS.values():
        for name in schema["properties"]:
            try:
                check({name: value}, schema)
            except BadRequest as error:
                str(error).encode()


@pytest.mark.parametrize(
    ("value", "schema", "is_right"),
    [
        (True, {"type": "integer", "minimum": 0, "maximum": 9}, False),
        (1.0, {"type": "integer", "minimum": 0, "maximum": 9}, False),
        (1, {"type": "number", "minimum": 0, "maximum": 9}, True),
        (math.nan, {"type": "number", "minimum": 0, "maximum": 9}, False),
        (9, {"type": "number", "minimum": 0, "maximum": 9}, True),
        (10, {"type": "integer", "minimum": 0, "maximum": 9}, False),
        (None, {"type": ["string", "null"]}, True),
        (None, {"type": "string"}, False),
        ("ab", {"type": "string", "maxLength": 1}, False),
        ("\ud800", {"type": "string"}, False),
        ("b", {"type": "string", "enum": ["a"]}, False),
        ([1], {"type": "array", "items": {"type": "string"}}, False),
    ],
)
def test_the_words_of_schemas(value, schema, is_right):
    if is_right:
        check(value, schema)
        return
    with pytest.raises(BadRequest):
        check(value, schema, "field")


def test_one_of_several_forms_is_told_by_how_it_begins():
    for prompt, param in (
        (["a", 1], "prompt[1]"),
        ([1, "a"], "prompt[1]"),
        ([[1], ["a"]], "prompt[1][0]"),
        ([{}], "prompt"),
        (1, "prompt"),
    ):
        with pytest.raises(BadRequest) as caught:
            check({"prompt": prompt}, COMPLETION)
        assert caught.value.param == param
    for prompt in ("", ["", "a"], [1], [[1], [2, 3]]):
        check({"prompt": prompt}, COMPLETION)


def test_limits_are_those_that_were_set():
    check({"prompt": "", "n": 8, "stop": ["a", "b"]}, COMPLETION)
    for wrong in ({"n": 9}, {"stop": ["a"] * 3}, {"prompt": ["a"] * 9}):
        with pytest.raises(BadRequest):
            check({"prompt": "", **wrong}, COMPLETION)


def test_null_and_nothing_have_the_default():
    fields = with_defaults({"prompt": "", "temperature": None}, COMPLETION)
    assert set(fields) == set(COMPLETION["properties"])
    assert (fields["temperature"], fields["n"], fields["echo"]) == (1, 1, False)
    fields = with_defaults({"prompt": "", "temperature": 0}, COMPLETION)
    assert fields["temperature"] == 0


def test_the_defaults_are_right_themselves():
    for schema in SCHEMAS.values():
        for name, field in schema["properties"].items():
            if "default" in field:
                check(field["default"], field, name)


def test_the_document_is_json_and_holds_the_tables():
    document = openapi_document(
        {
            ("POST", "/v1/chat/completions"): ("Chat.", ["choices"], []),
            ("GET", "/tokenizer_info"): ("Info.", [], ["model"]),
        },
        SCHEMAS,
    )
    document = json.loads(json.dumps(document, allow_nan=False))
    post = document["paths"]["/v1/chat/completions"]["post"]
    body = post["requestBody"]["content"]["application/json"]
    assert body["schema"] == json.loads(json.dumps(CHAT))
    assert "text/event-stream" in post["responses"]["200"]["content"]
    get = document["paths"]["/tokenizer_info"]["get"]
    assert "requestBody" not in get
    assert get["parameters"][0]["name"] == "model"
    for operation in (post, get):
        assert {"400", "401", "404", "413", "429", "503", "504"} <= set(
            operation["responses"]
        )
