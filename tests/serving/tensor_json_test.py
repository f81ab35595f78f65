"""The cases are those of TensorFlow Serving's json_tensor_test.cc, by name."""

import base64
import json
import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from kerasgpt.serving.tensor_json import (
    check_examples,
    error_body,
    parse_request,
    read_tensors,
    reply_body,
    signature_name,
)

INT32, STRING, FLOAT, DOUBLE = tf.int32, tf.string, tf.float32, tf.float64
BIG = str(2**1030)


def read(text, **dtypes):
    """Returns the inputs of a request as nested lists, and its form."""
    body = text if isinstance(text, bytes) else text.encode()
    inputs, form = read_tensors(parse_request(body), dtypes)
    return {name: array.tolist() for name, array in inputs.items()}, form


def refused(text, error=tf.errors.InvalidArgumentError, **dtypes):
    """Returns the message with which a request is refused."""
    with pytest.raises(error) as caught:
        read(text, **(dtypes or {"default": INT32}))
    return caught.value.message


def reply(form, **outputs):
    """Returns the reply, read by a reader that keeps numbers as text."""
    return json.loads(
        reply_body(outputs, form),
        parse_float=str,
        parse_int=str,
        parse_constant=str,
    )


def strings(*values):
    return np.array(values, object)


# Requests.


def test_single_unnamed_tensor():
    body = '{"instances": [[1,2],[3,4],[5,6]]}'
    assert read(body, default=INT32) == (
        {"default": [[1, 2], [3, 4], [5, 6]]},
        "row",
    )


@pytest.mark.parametrize("dtype", [FLOAT, DOUBLE])
def test_mixed_input_for_float_and_double_tensor(dtype):
    request = parse_request(b'{"instances": [1, 2.0, 3, 5.003, 0.0]}')
    inputs, _ = read_tensors(request, {"default": dtype})
    expected = np.array([1, 2, 3, 5.003, 0], dtype.as_numpy_dtype)
    np.testing.assert_array_equal(inputs["default"], expected, strict=True)


def test_single_unnamed_tensor_with_signature():
    request = parse_request(b'{"signature_name": "s", "instances": [[1,2]]}')
    assert signature_name(request) == "s"
    assert signature_name({}) == signature_name({"signature_name": ""})
    assert signature_name({}) == "serving_default"


def test_tensor_from_non_null_terminated_buffer():
    body = '  {"instances": [[1,2]]}X and more'
    assert read(body, default=INT32)[0] == {"default": [[1, 2]]}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            [{"b64": "aGVsbG8="}, {"b64": "d29ybGQ="}],
            [b"hello", b"world"],
        ),
        ([[{"b64": "aGVsbG8"}], ["world"]], [[b"hello"], [b"world"]]),
        ([{"default": [[{"b64": "aGVsbG8="}]]}], [[[b"hello"]]]),
        ([{"b64": ""}], [b""]),
    ],
    ids=["Scalars", "Lists", "Named", "empty"],
)
def test_single_tensor_base64(values, expected):
    body = json.dumps({"instances": values})
    assert read(body, default=STRING)[0] == {"default": expected}


ROWS = """{"instances": [
  {"int": [[1,2],[3,4]], "str": ["foo", "bar"], "float": [1.0, NaN],
   "double": [-Infinity]},
  {"int": [[7,8],[9,0]], "str": ["baz", "天"], "float": [2.0, Infinity],
   "double": [2.0]}]}"""


def test_multiple_named_tensor():
    inputs, form = read(ROWS, int=INT32, str=STRING, float=FLOAT, double=DOUBLE)
    assert form == "row"
    assert inputs["int"] == [[[1, 2], [3, 4]], [[7, 8], [9, 0]]]
    assert inputs["str"] == [[b"foo", b"bar"], [b"baz", "天".encode()]]
    assert math.isnan(inputs["float"][0][1])
    assert inputs["float"][1] == [2.0, math.inf]
    assert inputs["double"] == [[-math.inf], [2.0]]


@pytest.mark.parametrize("body", ['{"inputs": {"t": VAL}}', '{"inputs": VAL}'])
def test_single_unnamed_tensor_columnar_format(body):
    body = body.replace("VAL", "[[[1,2],[3,4]]]")
    assert read(body, t=INT32) == ({"t": [[[1, 2], [3, 4]]]}, "columnar")


def test_multiple_named_tensor_columnar_format():
    body = """{"inputs": {"int": [[1,2]], "str": ["foo", "bar"],
               "bin": {"b64": "aGVsbG8="}, "extra": null}, "other": 1}"""
    inputs, form = read(body, int=INT32, str=STRING, bin=STRING)
    assert form == "columnar"
    assert inputs == {"int": [[1, 2]], "str": [b"foo", b"bar"], "bin": b"hello"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "JSON Parse error: The document is empty"),
        (" \n", "JSON Parse error: The document is empty. at offset: 2"),
        ("{x", "JSON Parse error: Missing a name for object member. at "
         "offset: 1"),
        ('{"天":}', "JSON Parse error: Invalid value. at offset: 7"),
        ("[1]", "JSON Value: [\n    1\n] Is not object"),
        ("null", "JSON Value: null Is not object"),
        ("{}", "Missing 'inputs' or 'instances' key"),
        ('{"instances": 1}', "JSON Value: {\n    \"instances\": 1\n} "
         "Expecting 'instances' to be an list/array"),
        ('{"instances": []}', "JSON Value: {\n    \"instances\": []\n} No "
         "values in 'instances' array"),
        ('{"instances": [1], "inputs": 1}', "JSON Value: {\n    "
         '"instances": [\n        1\n    ],\n    "inputs": 1\n} Not formatted '
         "correctly expecting only one of 'inputs' or 'instances' keys to "
         "exist "),
        ('{"instances": [[1,2],[3,4,5]]}', "Failed to process element: 1 of "
         "'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size: "
         "2 but got: 3"),
        ('{"instances": [[1,2],[[5,6]]]}', "Failed to process element: 1 of "
         "'instances' list. Error: INVALID_ARGUMENT: Expecting shape [2] but "
         "got: [1,2]"),
        ('{"instances": [1,[1]]}', "Failed to process element: 1 of "
         "'instances' list. Error: INVALID_ARGUMENT: Expecting shape [] but "
         "got: [1]"),
        ('{"instances": [[1,2],["a","b"]]}', "Failed to process element: 1 "
         "of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: \"a\" "
         "Type: String is not of expected type: int32"),
        ('{"inputs": [[1,2],[3]]}', "Encountered list at unexpected size: 1 "
         "at level: 1 expected size: 2"),
        ('{"inputs": [1,[2]]}', "Encountered list at unexpected level: 1 "
         "expected < 1"),
        ('{"inputs": [[1],2]}', "JSON Value: 2 found at incorrect level: 2 "
         "in the JSON DOM. Expected at level: 2"),
        ('{"inputs": {"b64": "aGk="}}', "JSON Value: {\n    \"b64\": "
         "\"aGk=\"\n} Type: Object is not of expected type: int32"),
        ('{"inputs": {"x": 1}}', "Missing named input: default in 'inputs' "
         "object."),
    ],
)  # fmt: skip
def test_single_unnamed_tensor_errors(body, message):
    assert refused(body) == message


@pytest.mark.parametrize("value", ["5", "null", "[]"])
def test_signature_name_must_be_a_string(value):
    request = parse_request(f'{{"signature_name": {value}}}'.encode())
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        signature_name(request)
    assert caught.value.message.endswith(
        "not formatted correctly. 'signature_name' key must be a string value."
    )


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        ("1.0", INT32, "Type: Number is not of expected type: int32"),
        ("1e3", INT32, "Type: Number is not of expected type: int32"),
        ("true", INT32, "Type: True is not of expected type: int32"),
        ("2147483648", INT32, "Type: Number is not of expected type: int32"),
        (BIG[:25], tf.int64, "Type: Number is not of expected type: int64"),
        ("1.0", tf.int64, "Type: Number is not of expected type: int64"),
        ("-1", tf.uint8, "Type: Number is not of expected type: uint8"),
        ("1", tf.bool, "Type: Number is not of expected type: bool"),
        ("null", STRING, "Type: Null is not of expected type: string"),
        ("1", STRING, "Type: Number is not of expected type: string"),
        ("false", FLOAT, "Type: False is not of expected type: float"),
        ('"1"', DOUBLE, "Type: String is not of expected type: double"),
        ("16777217", FLOAT, "to float without loss of precision."),
        ("1e39", FLOAT, "to float without loss of precision."),
        ("9007199254740993", DOUBLE, "to double without loss of precision."),
        ('{"b64": "@"}', STRING, "Unable to base64 decode"),
        ('{"b64": "天"}', STRING, "Unable to base64 decode"),
        ('{"b64": 1}', STRING, "not formatted correctly for base64 data"),
        ('{"b64": "", "x": 1}', STRING, "correctly for base64 data"),
    ],
)
def test_types_are_strict(value, dtype, words):
    assert refused(f'{{"inputs": [{value}]}}', x=dtype).endswith(words)
    assert words in refused(f'{{"instances": [[{value}]]}}', x=dtype)


@pytest.mark.parametrize("dtype", [tf.half, tf.bfloat16])
def test_half_is_not_implemented_and_in_a_row_invalid(dtype):
    words = "Conversion of JSON Value: 1 to type: "
    name = {"float16": "half"}.get(dtype.name, dtype.name)
    error = tf.errors.UnimplementedError
    assert refused('{"inputs": [1]}', error, x=dtype) == words + name
    assert refused('{"instances": [1]}', x=dtype).endswith(
        f"UNIMPLEMENTED: {words}{name}"
    )


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ('[{"a": 1}, [1]]', "Failed to process element: 0 of 'instances' "
         "list. JSON object: {\n    \"a\": 1\n} keys must be equal to: a,b"),
        ('[{"a": 1, "b": "x"}, [1]]', "Expecting object but got list at item "
         "1 of input list"),
        ('[{"a": 1, "b": "x", "c": 1}]', "Failed to process element: 0 key: "
         "c of 'instances' list. Error: INVALID_ARGUMENT: JSON object: does "
         "not have named input: c"),
        ('[{"a": 1, "b": "x"}, {"a": [1], "b": "x"}]', "Failed to process "
         "element: 1 key: a of 'instances' list. Error: INVALID_ARGUMENT: "
         "Expecting shape [] but got: [1]"),
        ("[1]", "instances is a plain list, but expecting list of objects as "
         "multiple input tensors required as per tensorinfo_map"),
    ],
)  # fmt: skip
def test_multiple_named_tensor_errors(instances, message):
    body = f'{{"instances": {instances}}}'
    assert refused(body, b=STRING, a=INT32) == message


def test_a_plain_value_is_not_enough_for_two_inputs():
    assert refused('{"inputs": [1]}', a=INT32, b=INT32) == (
        "inputs is a plain value/list, but expecting an object as multiple "
        "input tensors required as per tensorinfo_map"
    )


def test_objects_and_lists_do_not_mix():
    body = '{"instances": [["baz"], {"x": ["baz"]}]}'
    assert refused(body, x=STRING) == (
        "Expecting value/list but got object at item 1 of input list"
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"inputs": "\xff"}', "Invalid encoding in string. at offset: 12"),
        (b'{"inputs": "\\ud800"}', "surrogate pair in string is invalid"),
        (b'{"\\udfff": 1, "inputs": "a"}', "surrogate pair"),
        (b'{"inputs": "a\nb"}', "Invalid encoding in string."),
        (b'{"inputs": 1e999}', "Number too big to be stored in double"),
        (b'{"inputs": ' + b"9" * 5000 + b"}", "Number too big"),
        (b'{"inputs": 1, "inputs": 2}', 'has the name "inputs" twice'),
        (b'{"inputs": ' + b"[" * 100_000, "JSON Parse error"),
        (b'{"inputs": ' + b"[" * 200 + b"]" * 200 + b"}", "unexpected level"),
        (b'{"inputs": "', "Missing a closing quotation mark"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_what_is_hostile_is_refused_in_a_short_line(body, words):
    message = refused(body, x=STRING)
    assert words in message
    assert len(message) < 400


def test_an_escaped_pair_of_surrogates_is_a_character():
    assert read(rb'{"inputs": ["\ud83d\ude42"]}', x=STRING)[0] == {
        "x": ["🙂".encode()]
    }


def test_a_long_value_is_cut_in_the_message():
    body = json.dumps({"inputs": "天" * 10_000})
    message = refused(body)
    assert len(message) < 400
    assert message.endswith("... Type: String is not of expected type: int32")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "When method is classify, key 'examples' is expected and was not"),
        ({"examples": {}}, "Expecting 'examples' value to be an list/array"),
        ({"examples": []}, "'examples' value is an empty array"),
        ({"examples": [1]}, "must be JSON object but got JSON Number"),
        ({"examples": [{}], "context": []}, "but got JSON Array"),
        ({"examples": [{}], "signature_name": 1}, "must be a string value"),
    ],
)
def test_classify_regress_request_errors(body, words):
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        check_examples(body)
    check_examples({"examples": [{"age": 20}], "context": {"a": 1}})


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b64", "x"]), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "instances": NESTED,
            "inputs": NESTED,
            "signature_name": NESTED,
        },
    ),
    st.sampled_from([INT32, STRING, FLOAT, tf.bool, tf.int64, tf.half]),
    st.booleans(),
)
def test_any_json_is_read_or_refused(value, dtype, two):
    body = json.dumps(value).encode(errors="replace")
    dtypes = {"a": dtype, "x": STRING} if two else {"a": dtype}
    try:
        request = parse_request(body)
        signature_name(request)
        inputs, _ = read_tensors(request, dtypes)
    except tf.errors.OpError as error:
        assert error.message
        assert json.loads(error_body(error.message)) == {"error": error.message}
    else:
        assert set(inputs) == set(dtypes)


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(body):
    try:
        assert isinstance(parse_request(body), dict)
    except tf.errors.InvalidArgumentError as error:
        assert "\n" not in error.message or "Is not object" in error.message


# Replies.


def test_from_json_single_tensor():
    value = np.arange(12, dtype=np.int32).reshape(2, 3, 2)
    assert json.loads(reply_body({"t": value}, "row")) == {
        "predictions": value.tolist()
    }
    assert json.loads(reply_body({"t": value}, "columnar")) == {
        "outputs": value.tolist()
    }


def test_from_json_single_scalar_tensor():
    assert reply("row", t=np.int64([1, 2])) == {"predictions": ["1", "2"]}
    assert reply("columnar", t=np.int64(3)) == {"outputs": "3"}


def test_from_json_single_bytes_tensor():
    value = strings(b"hello", b"world").reshape(2, 1)
    assert reply("row", t_bytes=value) == {
        "predictions": [[{"b64": "aGVsbG8="}], [{"b64": "d29ybGQ="}]]
    }


@pytest.mark.parametrize("number", [np.float32, np.float64])
def test_from_json_single_float_tensor_six_digit_precision(number):
    value = number([9000000, 999999, 0.5, 0.0003, 0.00003, 555557.5])
    assert reply("row", t=value) == {
        "predictions": [
            *("9e+06", "999999.0", "0.5", "0.0003", "3e-05", "555557.5")
        ]
    }


def test_from_json_single_float_tensor_non_finite():
    value = np.float32([np.nan, np.inf, 3, -np.inf])
    assert reply("row", t=value) == {
        "predictions": ["NaN", "Infinity", "3.0", "-Infinity"]
    }


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({}, "empty tensor map"),
        ({"t": np.complex64([1])}, "tensor type: complex64"),
        ({"t": np.float16([1])}, "tensor type: half"),
        ({"t": tf.constant([1], tf.bfloat16).numpy()}, "type: bfloat16"),
        ({"t": np.int32(1)}, "Tensor name: t has no shape information "),
        (
            {"a": np.int32([[1], [2]]), "b": strings(b"x")},
            "Tensor name: b has inconsistent batch size: 1 expecting: 2",
        ),
    ],
)
def test_from_json_tensor_errors(outputs, words):
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        reply_body(outputs, "row")


def test_from_json_multiple_named_tensors():
    outputs = {
        "double": np.float64([8, 9]),
        "int": np.int32([[[1, 2]], [[3, 4]]]),
        "flag": np.array([True, False]),
        "str": strings(b"foo", "天\n\x00".encode()),
        "str_bytes": strings(b"tf", b"serving"),
    }
    assert reply("row", **outputs) == {
        "predictions": [
            {
                "double": "8.0",
                "int": [["1", "2"]],
                "flag": True,
                "str": "foo",
                "str_bytes": {"b64": "dGY="},
            },
            {
                "double": "9.0",
                "int": [["3", "4"]],
                "flag": False,
                "str": "天\n\x00",
                "str_bytes": {"b64": "c2VydmluZw=="},
            },
        ]
    }
    assert reply("columnar", **outputs) == {
        "outputs": {
            "double": ["8.0", "9.0"],
            "int": [[["1", "2"]], [["3", "4"]]],
            "flag": [True, False],
            "str": ["foo", "天\n\x00"],
            "str_bytes": [{"b64": "dGY="}, {"b64": "c2VydmluZw=="}],
        }
    }


def test_bytes_that_are_no_utf8_leave_as_they_came():
    assert b'"\xff\xfe"' in reply_body({"t": strings(b"\xff\xfe")}, "row")


DTYPES = [
    *(np.float32, np.float64, np.int8, np.int32, np.int64),
    *(np.uint8, np.uint32, np.uint64, np.bool_),
]


@given(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(
            dtype, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0)
        )
    )
)
def test_a_reply_reads_back_equal(value):
    for form, key in (("row", "predictions"), ("columnar", "outputs")):
        told = json.loads(reply_body({"t": value}, form))[key]
        back = np.array(told, value.dtype).reshape(value.shape)
        np.testing.assert_array_equal(back, value, strict=True)
        # As a request, integers above a float's 24 bits apart.
        if value.size and value.dtype.kind in "iub":
            body = json.dumps({"inputs": told}).encode()
            dtypes = {"t": tf.as_dtype(value.dtype)}
            inputs, _ = read_tensors(parse_request(body), dtypes)
            np.testing.assert_array_equal(inputs["t"], value, strict=True)


@given(st.lists(st.binary(max_size=12), min_size=1, max_size=3))
def test_bytes_survive_as_base64(values):
    told = reply("columnar", t_bytes=strings(*values))["outputs"]
    body = json.dumps({"instances": told})
    assert read(body, t=STRING)[0] == {"t": values}
    assert [base64.b64decode(one["b64"]) for one in told] == values
