"""Owns TF Serving's JSON: a request -> arrays, arrays -> a reply.

Not: routes and HTTP (rest.py).
"""

import base64
import binascii
import functools
import json
import math
import re

import numpy as np
import tensorflow as tf

DEFAULT_SIGNATURE = "serving_default"

_INTEGERS = frozenset(
    (tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint32, tf.uint64)
)
_FLOATS = frozenset((tf.float32, tf.float64))
# TensorFlow's C++ names of types, where Python's differ.
_TYPE_NAMES = {
    "float16": "half",
    "float32": "float",
    "float64": "double",
}
# What RapidJSON says where Python says otherwise.
_PARSE_ERRORS = {
    "Expecting value": "Invalid value.",
    "Expecting property name enclosed in double quotes": (
        "Missing a name for object member."
    ),
    "Expecting ':' delimiter": (
        "Missing a colon after a name of object member."
    ),
    "Unterminated string starting at": (
        "Missing a closing quotation mark in string."
    ),
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": (
        "Incorrect hex digit after \\u escape in string."
    ),
    "Invalid control character at": "Invalid encoding in string.",
}
_SPACE = " \t\n\r"
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
# NumPy's limit; TensorFlow's is 254.
_MAX_RANK = 64
# Of a JSON value in an error message, in characters.
_SHOWN_LENGTH = 256
_SHOWN = json.JSONEncoder(indent=4, ensure_ascii=False)


def parse_request(body):
    """Returns the object of a request's body; text after it is ignored.

    As TF Serving reads it, `NaN` and `Infinity` included, but stricter where
    that lets garbage through: a key that stands twice, a lone surrogate and
    bytes that are not UTF-8 are refused.

    Args:
        body: bytes.

    Returns:
        dict.

    Raises:
        tf.errors.InvalidArgumentError: if there is no such object.
    """
    if not body:
        raise _invalid("JSON Parse error: The document is empty")
    try:
        # A byte order mark may come first.
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _parse_error(
            "Invalid encoding in string.", error.start
        ) from error
    start = len(text) - len(text.lstrip(_SPACE))
    if start == len(text):
        raise _parse_error("The document is empty.", len(body))
    try:
        value, end = _DECODER.raw_decode(text, start)
        if _SURROGATE_ESCAPE.search(text, start, end):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        message = _PARSE_ERRORS.get(error.msg, f"{error.msg}.")
        offset = len(text[: error.pos].encode())
        raise _parse_error(message, offset) from error
    except UnicodeEncodeError as error:
        raise _parse_error(
            "The surrogate pair in string is invalid.",
            _SURROGATE_ESCAPE.search(text).start(),
        ) from error
    except RecursionError as error:
        raise _parse_error("The document is nested too deeply.", 0) from error
    if not isinstance(value, dict):
        raise _bad_value(value, "Is not object")
    return value


def signature_name(request):
    """Returns the signature that a request asks for.

    Raises:
        tf.errors.InvalidArgumentError: if it is not named by a string.
    """
    name = request.get("signature_name", "")
    if not isinstance(name, str):
        raise _bad_value(
            request,
            "not formatted correctly. 'signature_name' key must be a string "
            "value.",
        )
    return name or DEFAULT_SIGNATURE


def read_tensors(request, dtypes):
    """Returns the arrays that a request holds.

    Args:
        request: dict, see `parse_request`.
        dtypes: dict from the name of an input to its tf.DType.

    Returns:
        dict from name to array (strings are bytes in an object array), and
        the form, "row" or "columnar", in which the reply is expected.

    Raises:
        tf.errors.InvalidArgumentError, tf.errors.UnimplementedError: if the
            values do not fit; TF Serving's words.

    Example:
        >>> read_tensors({"instances": [1, 2.5]}, {"x": tf.float32})
        ({'x': array([1. , 2.5], dtype=float32)}, 'row')
    """
    if "instances" in request and "inputs" in request:
        raise _bad_value(
            request,
            "Not formatted correctly expecting only one of 'inputs' or "
            "'instances' keys to exist ",
        )
    if "instances" in request:
        return _read_rows(request, dtypes), "row"
    if "inputs" in request:
        return _read_columns(request["inputs"], dtypes), "columnar"
    raise _invalid("Missing 'inputs' or 'instances' key")


def check_examples(request):
    """Checks the body of a classify or regress request as far as its form.

    Raises:
        tf.errors.InvalidArgumentError: if there are no examples.
    """
    signature_name(request)
    examples = request.get("examples")
    if "examples" not in request:
        raise _bad_value(
            request,
            "When method is classify, key 'examples' is expected and was not "
            "found",
        )
    if not isinstance(examples, list):
        raise _bad_value(
            request, "Expecting 'examples' value to be an list/array"
        )
    if not examples:
        raise _bad_value(request, "'examples' value is an empty array")
    for example in [*examples, request.get("context", {})]:
        if not isinstance(example, dict):
            raise _invalid(
                f"Example must be JSON object but got JSON "
                f"{_json_type(example)}"
            )


def reply_body(outputs, form):
    """Returns the body that answers a request.

    Floats have 6 digits where that reads back equal, else 9 or 17; strings
    are written as they are, as base64 if their name ends in "_bytes".

    Args:
        outputs: dict from name to array.
        form: "row" or "columnar", see `read_tensors`.

    Returns:
        bytes.

    Raises:
        tf.errors.InvalidArgumentError: if a type has no JSON, or the outputs
            are no rows.

    Example:
        >>> print(reply_body({"y": np.float32([2.5, 0.1])}, "row").decode())
        {
            "predictions": [2.5, 0.1]
        }
    """
    if not outputs:
        raise _invalid("Cannot convert empty tensor map to JSON")
    if form == "row":
        return _as_bytes("predictions", _rows_text(outputs))
    texts = {
        name: _nested(_leaves_text(name, array), array.shape)
        for name, array in outputs.items()
    }
    if len(texts) == 1:
        return _as_bytes("outputs", *texts.values())
    return _as_bytes("outputs", _object_text(texts, indent=8))


def error_body(message):
    """Returns the body that tells an error."""
    return _as_bytes("error", _string_text(message))


def _integer(text):
    # As RapidJSON: what no 64-bit type holds is a double.
    if len(text) <= 20 and -(2**63) <= (value := int(text)) < 2**64:
        return value
    return _decimal(text)


def _decimal(text):
    value = float(text)
    if math.isinf(value):
        raise _invalid(
            f"JSON Parse error: Number too big to be stored in double: "
            f"{text[:32]}"
        )
    return value


def _members(pairs):
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _invalid(
            f"JSON Parse error: An object has the name {_show(twice)} twice"
        )
    return members


_DECODER = json.JSONDecoder(
    parse_int=_integer, parse_float=_decimal, object_pairs_hook=_members
)


def _invalid(message):
    return tf.errors.InvalidArgumentError(None, None, message)


def _parse_error(message, offset):
    return _invalid(f"JSON Parse error: {message} at offset: {offset}")


def _bad_value(value, message):
    return _invalid(f"JSON Value: {_show(value)} {message}")


def _show(value):
    text = ""
    for piece in _SHOWN.iterencode(value):
        text += piece
        if len(text) > _SHOWN_LENGTH:
            return f"{text[:_SHOWN_LENGTH]}..."
    return text


def _json_type(value):
    if isinstance(value, bool):
        return str(value)
    names = {dict: "Object", list: "Array", str: "String", type(None): "Null"}
    return names.get(type(value), "Number")


def _type_name(dtype):
    return _TYPE_NAMES.get(dtype.name, dtype.name)


def _is_base64(value):
    return (
        isinstance(value, dict)
        and list(value) == ["b64"]
        and isinstance(value["b64"], str)
    )


def _is_object(value):
    return isinstance(value, dict) and not _is_base64(value)


def _read_rows(request, dtypes):
    instances = request["instances"]
    if not isinstance(instances, list):
        raise _bad_value(request, "Expecting 'instances' to be an list/array")
    if not instances:
        raise _bad_value(request, "No values in 'instances' array")
    are_objects = _is_object(instances[0])
    if not are_objects and len(dtypes) > 1:
        raise _invalid(
            "instances is a plain list, but expecting list of objects as "
            "multiple input tensors required as per tensorinfo_map"
        )
    columns = {name: _Column(dtype) for name, dtype in dtypes.items()}
    for index, element in enumerate(instances):
        if _is_object(element) != are_objects:
            raise _invalid(
                f"Expecting object but got list at item {index} of input list"
                if are_objects
                else f"Expecting value/list but got object at item {index} "
                f"of input list"
            )
        if are_objects:
            _add_object(columns, index, element)
            continue
        (column,) = columns.values()
        try:
            column.add(element)
        except tf.errors.OpError as error:
            raise _row_error(f"{index}", error) from error
    return {name: column.array() for name, column in columns.items()}


def _add_object(columns, index, element):
    for name, value in element.items():
        try:
            if name not in columns:
                raise _invalid(
                    f"JSON object: does not have named input: {name}"
                )
            columns[name].add(value)
        except tf.errors.OpError as error:
            raise _row_error(f"{index} key: {name}", error) from error
    if len(element) < len(columns):
        raise _invalid(
            f"Failed to process element: {index} of 'instances' list. JSON "
            f"object: {_show(element)} keys must be equal to: "
            f"{','.join(sorted(columns))}"
        )


def _row_error(place, error):
    is_invalid = isinstance(error, tf.errors.InvalidArgumentError)
    code = "INVALID_ARGUMENT" if is_invalid else "UNIMPLEMENTED"
    return _invalid(
        f"Failed to process element: {place} of 'instances' list. Error: "
        f"{code}: {error.message}"
    )


def _read_columns(inputs, dtypes):
    if not _is_object(inputs):
        if len(dtypes) > 1:
            raise _invalid(
                "inputs is a plain value/list, but expecting an object as "
                "multiple input tensors required as per tensorinfo_map"
            )
        inputs = {name: inputs for name in dtypes}
    arrays = {}
    for name, dtype in dtypes.items():
        if name not in inputs:
            raise _invalid(f"Missing named input: {name} in 'inputs' object.")
        leaves, shape = _flatten(inputs[name], _reader(dtype))
        arrays[name] = _array(leaves, shape, dtype)
    return arrays


class _Column:
    """One input, collected row by row; all rows are equal in shape."""

    def __init__(self, dtype):
        self._dtype = dtype
        self._read = _reader(dtype)
        self._leaves = []
        self._row_size = 0
        self._row_shape = None
        self._num_rows = 0

    def add(self, value):
        leaves, shape = _flatten(value, self._read)
        if self._row_shape is None:
            self._row_size, self._row_shape = len(leaves), shape
        elif len(leaves) != self._row_size:
            raise _invalid(
                f"Expecting tensor size: {self._row_size} but got: "
                f"{len(leaves)}"
            )
        elif shape != self._row_shape:
            expected, received = (
                ",".join(map(str, sizes)) for sizes in (self._row_shape, shape)
            )
            raise _invalid(
                f"Expecting shape [{expected}] but got: [{received}]"
            )
        self._leaves += leaves
        self._num_rows += 1

    def array(self):
        shape = [self._num_rows, *self._row_shape]
        return _array(self._leaves, shape, self._dtype)


def _array(leaves, shape, dtype):
    return np.array(leaves, dtype.as_numpy_dtype).reshape(shape)


def _flatten(value, read):
    """Returns the leaves of a dense tensor in order, and its shape.

    Args:
        value: JSON value.
        read: see `_reader`.
    """
    shape = []
    first = value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    leaves = []

    def visit(value, level):
        if not isinstance(value, list):
            if level != len(shape):
                raise _bad_value(
                    value,
                    f"found at incorrect level: {level + 1} in the JSON DOM. "
                    f"Expected at level: {len(shape)}",
                )
            leaves.append(read(value))
            return
        limit = min(len(shape), _MAX_RANK - 1)
        if level >= limit:
            raise _invalid(
                f"Encountered list at unexpected level: {level} expected < "
                f"{limit}"
            )
        if len(value) != shape[level]:
            raise _invalid(
                f"Encountered list at unexpected size: {len(value)} at "
                f"level: {level} expected size: {shape[level]}"
            )
        for item in value:
            visit(item, level + 1)

    visit(value, 0)
    return leaves, shape


def _reader(dtype):
    """Returns the function that checks a leaf and returns it for NumPy."""
    name = _type_name(dtype)
    if dtype == tf.string:
        return _read_string
    if dtype == tf.bool:
        return _read_bool
    if dtype in _INTEGERS:
        limits = np.iinfo(dtype.as_numpy_dtype)
        return functools.partial(_read_integer, name, limits.min, limits.max)
    if dtype in _FLOATS:
        limits = np.finfo(dtype.as_numpy_dtype)
        greatest = 2 ** (limits.nmant + 1) - 1, float(limits.max)
        return functools.partial(_read_float, name, *greatest)
    return functools.partial(_read_other, name)


def _read_string(value):
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict):
        return _decode_base64(value)
    raise _type_error(value, "string")


def _read_bool(value):
    if isinstance(value, bool):
        return value
    raise _type_error(value, "bool")


def _read_integer(name, least, most, value):
    # Neither a bool nor 1.0 is an int.
    if type(value) is int and least <= value <= most:
        return value
    raise _type_error(value, name)


def _read_float(name, most_exact, most, value):
    if type(value) is int:
        fits = abs(value) <= most_exact
    elif type(value) is float:
        fits = abs(value) <= most or not math.isfinite(value)
    else:
        raise _type_error(value, name)
    if not fits:
        raise _invalid(
            f"Cannot convert JSON value: {_show(value)} to {name} without "
            f"loss of precision."
        )
    return value


def _read_other(name, value):
    if isinstance(value, dict):
        raise _type_error(value, name)
    raise tf.errors.UnimplementedError(
        None, None, f"Conversion of JSON Value: {_show(value)} to type: {name}"
    )


def _type_error(value, name):
    return _bad_value(
        value, f"Type: {_json_type(value)} is not of expected type: {name}"
    )


def _decode_base64(value):
    if not _is_base64(value):
        raise _bad_value(value, "not formatted correctly for base64 data")
    text = "".join(value["b64"].split())
    try:
        # The padding may be left out.
        padded = text + "=" * (-len(text) % 4)
        return base64.b64decode(padded, validate=True)
    except (ValueError, binascii.Error) as error:
        raise _invalid("Unable to base64 decode") from error


def _as_bytes(key, text):
    # Bytes that are no UTF-8 leave as they came.
    return f'{{\n    "{key}": {text}\n}}'.encode("utf-8", "surrogateescape")


def _rows_text(outputs):
    num_rows = None
    for name, array in outputs.items():
        if not array.shape:
            raise _invalid(f"Tensor name: {name} has no shape information ")
        if num_rows not in (None, len(array)):
            raise _invalid(
                f"Tensor name: {name} has inconsistent batch size: "
                f"{len(array)} expecting: {num_rows}"
            )
        num_rows = len(array)
    columns = {
        name: _rows(_leaves_text(name, array), array.shape)
        for name, array in outputs.items()
    }
    if len(columns) == 1:
        (rows,) = columns.values()
        return f"[{', '.join(rows)}]"
    rows = (
        _object_text(dict(zip(columns, row, strict=True)), indent=12)
        for row in zip(*columns.values(), strict=True)
    )
    return "[" + ",".join(f"\n        {row}" for row in rows) + "\n    ]"


def _object_text(members, *, indent):
    space = " " * indent
    lines = ",\n".join(
        f"{space}{_string_text(name)}: {text}" for name, text in members.items()
    )
    return f"{{\n{lines}\n{space[:-4]}}}"


def _rows(leaves, shape):
    """Returns the text of each row of a tensor, from those of its leaves."""
    size = math.prod(shape[1:])
    return [
        _nested(leaves[row * size : (row + 1) * size], shape[1:])
        for row in range(shape[0])
    ]


def _nested(leaves, shape):
    if not shape:
        return leaves[0]
    if len(shape) == 1:
        return f"[{', '.join(leaves)}]"
    return f"[{', '.join(_rows(leaves, shape))}]"


def _leaves_text(name, array):
    values = array.ravel().tolist()
    dtype = tf.as_dtype(array.dtype)
    if dtype in _FLOATS:
        return _decimals_text(values, array.dtype.type)
    if dtype in _INTEGERS:
        return [str(value) for value in values]
    if dtype == tf.bool:
        return ["true" if value else "false" for value in values]
    if dtype != tf.string:
        raise _invalid(
            f"Failed to write JSON value for tensor type: {_type_name(dtype)}"
        )
    if name.endswith("_bytes"):
        encoded = (base64.b64encode(value).decode() for value in values)
        return [f'{{ "b64": "{text}" }}' for text in encoded]
    return [_string_text(value) for value in values]


def _string_text(value):
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    return json.dumps(value, ensure_ascii=False)


def _decimals_text(values, number):
    num_digits = {np.float32: 9, np.float64: 17}[number]
    texts = []
    for value in values:
        if not math.isfinite(value):
            # NaN, Infinity, -Infinity.
            texts.append(json.dumps(value))
            continue
        text = f"{value:.6g}"
        if number(text) != value:
            text = f"{value:.{num_digits}g}"
        if "." not in text and "e" not in text:
            text += ".0"
        texts.append(text)
    return texts
