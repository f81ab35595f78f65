"""Owns what OpenAI's routes are sent: tables, check, document. Not: routes.

The tables are JSON Schema. `check` is the reader of the few words of it that
they use, and `openapi_document` publishes them as they are, so that what is
documented is what is accepted.
"""

import json
import math

from kerasgpt.serving.backend import MAX_TOP_TOKENS
from kerasgpt.tokenizers.chat_template import ROLES

# "developer" is OpenAI's newer word for "system".
ROLE_NAMES = (*ROLES, "developer")
_INT32, _INT64 = 2**31 - 1, 2**63 - 1
_KINDS = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


class BadRequest(ValueError):
    """A body that is refused, and the field that is to blame.

    Args:
        message: str, one line.
        param: str, such as "messages[0].role". `None` = the whole body.
        code: str, OpenAI's word for it, or None.
    """

    def __init__(self, message, *, param=None, code=None):
        super().__init__(f"{param}: {message}" if param else message)
        self.param = param
        self.code = code


def parse_body(body):
    """Returns the value of a JSON body, read strictly.

    Numbers that JSON or 64 bits cannot hold become NaN or infinite floats,
    which `check` refuses by the name of their field.

    Args:
        body: bytes.

    Raises:
        BadRequest: for what is no UTF-8 or no JSON, and for an object that
            gives a field twice.
    """
    try:
        return json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=lambda digits: (
                int(digits) if len(digits) <= 20 else math.inf
            ),
        )
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8 at byte {error.start}") from (
            error
        )
    except RecursionError as error:
        raise BadRequest("the body is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise BadRequest(
            f"the body is not JSON: {error.msg} at character {error.pos}"
        ) from error


def _object(pairs):
    fields = {}
    for name, value in pairs:
        if name in fields:
            raise BadRequest("is given twice", param=_shown(name))
        fields[name] = value
    return fields


def _shown(name):
    """Returns a name that the client made up, short and in ASCII."""
    return json.dumps(name[:64])[1:-1]


def check(value, schema, path=""):
    """Raises BadRequest unless `value` is what `schema` describes.

    `true` is no integer, and neither is `1.0`.

    Args:
        value: of `parse_body`.
        schema: dict, JSON Schema of the kind of this file's tables.
        path: str, the name of the value in messages.
    """
    if "anyOf" in schema:
        fitting = (one for one in schema["anyOf"] if _begins_as(value, one))
        choice = next(fitting, None)
        if choice is None:
            raise BadRequest(f"must be {schema['description']}", param=path)
        schema = choice
    kind = _KINDS[type(value)]
    if not _is_of(value, schema):
        raise BadRequest(
            f"must be {' or '.join(_kinds(schema))}", param=path or None
        )
    if value is None:
        return
    if "enum" in schema and value not in schema["enum"]:
        choices = ", ".join(map(json.dumps, schema["enum"]))
        raise BadRequest(f"must be one of {choices}", param=path)
    if kind in ("integer", "number"):
        if not _is_within(value, schema):
            low, high = schema["minimum"], schema["maximum"]
            raise BadRequest(
                f"must be from {low} to {high}; received {value}", param=path
            )
    elif kind == "string":
        _check_string(value, schema, path)
    elif kind == "array":
        _check_count(len(value), schema, "Items", "items", path)
        items = schema["items"]
        for index, item in enumerate(value):
            # Nearly all items of all bodies are ids, and all of them good.
            if type(item) is not int or not _is_within(item, items):
                check(item, items, f"{path}[{index}]")
    elif kind == "object":
        _check_object(value, schema, path)


def _is_within(number, schema):
    """Returns whether a number is within its bounds; NaN never is."""
    return schema.get("minimum", math.inf) <= number <= schema["maximum"]


def _kinds(schema):
    kinds = schema["type"]
    return [kinds] if isinstance(kinds, str) else kinds


def _is_of(value, schema):
    kind, kinds = _KINDS[type(value)], _kinds(schema)
    return kind in kinds or (kind == "integer" and "number" in kinds)


def _begins_as(value, schema):
    """Returns whether `schema` is the one of several that was meant.

    Those in our tables differ in the kind of the value or of its items.
    """
    if not _is_of(value, schema):
        return False
    return not isinstance(value, list) or all(
        _is_of(item, schema["items"]) for item in value[:1]
    )


def _check_string(value, schema, path):
    _check_count(len(value), schema, "Length", "characters", path)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadRequest(
                f"holds half a surrogate pair at character {error.start}",
                param=path,
            ) from error


def _check_object(value, schema, path):
    properties = schema.get("properties", {})
    others = schema["additionalProperties"]
    _check_count(len(value), schema, "Properties", "fields", path)
    prefix = f"{path}." if path else ""
    for name, field in value.items():
        if name in properties:
            check(field, properties[name], prefix + name)
        elif others:
            check(field, others, prefix + _shown(name))
        else:
            raise BadRequest("is unknown here", param=prefix + _shown(name))
    for name in schema.get("required", ()):
        if name not in value:
            raise BadRequest("is missing", param=prefix + name)


def _check_count(count, schema, word, noun, path):
    low = schema.get(f"min{word}", 0)
    high = schema.get(f"max{word}", math.inf)
    if not low <= count <= high:
        span = f"at least {low}" if count < low else f"at most {high}"
        raise BadRequest(f"has {count} {noun}; {span}", param=path or None)


def with_defaults(body, schema):
    """Returns a dict of all fields: null and absent ones have the default."""
    return {
        name: body[name] if body.get(name) is not None else field.get("default")
        for name, field in schema["properties"].items()
    }


def _maybe(kind, *, default=None, **words):
    """Returns the schema of a field that may be left out or null."""
    if "enum" in words:
        words["enum"] = [*words["enum"], None]
    return {"type": [kind, "null"], "default": default, **words}


def _integer(low, high, **words):
    return {"type": "integer", "minimum": low, "maximum": high, **words}


def _maybe_number(kind, low, high, *, default=None, **words):
    return _maybe(kind, default=default, minimum=low, maximum=high, **words)


def _array(items, low=0, high=None):
    schema = {"type": "array", "items": items, "minItems": low}
    return schema if high is None else {**schema, "maxItems": high}


def _object_of(properties, required=()):
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_TEXT = {"type": "string"}
_NAME = {"type": "string", "minLength": 1, "maxLength": 256}
_MAYBE_NAME = {**_NAME, "type": ["string", "null"]}
_IDS = _array(_integer(0, _INT32), low=1)
_NOTHING = {"type": "null"}


def request_schemas(*, max_choices, max_stops):
    """Returns a dict from path to the schema of its body.

    Args:
        max_choices: int, answers a request may ask for.
        max_stops: int, stop strings.
    """
    stop = {"type": "string", "minLength": 1, "maxLength": 256}
    sampling = {
        "model": _MAYBE_NAME,
        "max_tokens": _maybe_number("integer", 1, _INT32),
        "temperature": _maybe_number("number", 0, 2, default=1.0),
        "top_p": _maybe_number("number", 0, 1, default=1.0),
        "top_k": _maybe_number("integer", 0, _INT32, default=0),
        "min_p": _maybe_number("number", 0, 1, default=0.0),
        "repetition_penalty": _maybe_number("number", 0.01, 100, default=1.0),
        "frequency_penalty": _maybe_number("number", -2, 2, default=0.0),
        "presence_penalty": _maybe_number("number", -2, 2, default=0.0),
        "seed": _maybe_number("integer", -_INT64 - 1, _INT64),
        "n": _maybe_number("integer", 1, max_choices, default=1),
        "stop": {
            "anyOf": [stop, _array(stop, high=max_stops), _NOTHING],
            "description": f"a string or a list of up to {max_stops} strings",
        },
        "stream": _maybe("boolean", default=False),
        "stream_options": {
            **_object_of(
                {
                    "include_usage": _maybe("boolean", default=False),
                    "include_obfuscation": _maybe("boolean", default=False),
                }
            ),
            "type": ["object", "null"],
        },
        # Standard fields that change nothing here.
        "user": _maybe("string", maxLength=512),
        "logit_bias": _maybe(
            "object", maxProperties=0, additionalProperties=False
        ),
    }
    ignored = {
        "metadata": _maybe(
            "object",
            maxProperties=16,
            additionalProperties={"type": "string", "maxLength": 512},
        ),
        "store": _maybe("boolean"),
        "service_tier": _maybe("string", enum=["auto", "default"]),
        "safety_identifier": _maybe("string", maxLength=512),
        "prompt_cache_key": _maybe("string", maxLength=512),
        "parallel_tool_calls": _maybe("boolean"),
        "tools": _maybe("array", maxItems=0, items=_NOTHING),
        "tool_choice": _maybe("string", enum=["none", "auto"]),
        "modalities": _maybe(
            "array", items={"type": "string", "enum": ["text"]}, maxItems=1
        ),
        "response_format": {
            **_object_of(
                {"type": {"type": "string", "enum": ["text"]}}, ["type"]
            ),
            "type": ["object", "null"],
        },
    }
    part = _object_of(
        {"type": {"type": "string", "enum": ["text"]}, "text": _TEXT},
        ["type", "text"],
    )
    message = _object_of(
        {
            "role": {"type": "string", "enum": list(ROLE_NAMES)},
            "content": {
                "anyOf": [_TEXT, _array(part, low=1)],
                "description": "a string or a list of text parts",
            },
            # What clients send back with an answer they got, or add to it.
            "type": _maybe("string", enum=["text"]),
            "name": _maybe("string", maxLength=256),
            "tool_call_id": _maybe("string", maxLength=256),
            "tool_calls": _maybe("array", maxItems=0, items=_NOTHING),
            "annotations": _maybe("array", maxItems=0, items=_NOTHING),
            "refusal": _NOTHING,
            "audio": _NOTHING,
            "function_call": _NOTHING,
        },
        ["role", "content"],
    )
    chat = _object_of(
        {
            "messages": _array(message, low=1),
            "logprobs": _maybe("boolean", default=False),
            "top_logprobs": _maybe_number(
                "integer", 0, MAX_TOP_TOKENS, default=0
            ),
            "max_completion_tokens": _maybe_number("integer", 1, _INT32),
            **sampling,
            **ignored,
        },
        ["messages"],
    )
    completion = _object_of(
        {
            "prompt": {
                "anyOf": [
                    _TEXT,
                    _array(_TEXT, 1, max_choices),
                    _IDS,
                    _array(_IDS, 1, max_choices),
                ],
                "description": (
                    "a string, a list of strings, a list of token ids or a "
                    "list of such lists"
                ),
            },
            "logprobs": _maybe_number("integer", 0, MAX_TOP_TOKENS),
            "echo": _maybe("boolean", default=False),
            "best_of": _maybe_number("integer", 1, max_choices),
            "suffix": _maybe("string", maxLength=0),
            **sampling,
            # Of no new token, and only the prompt's probabilities.
            "max_tokens": _maybe_number("integer", 0, _INT32),
            "max_completion_tokens": _maybe_number("integer", 0, _INT32),
        },
        ["prompt"],
    )
    return {
        "/v1/chat/completions": chat,
        "/v1/completions": completion,
        "/tokenize": _object_of(
            {
                "model": _MAYBE_NAME,
                "prompt": _TEXT,
                "add_special_tokens": _maybe("boolean", default=False),
            },
            ["prompt"],
        ),
        "/detokenize": _object_of(
            {"model": _MAYBE_NAME, "tokens": _array(_integer(0, _INT32))},
            ["tokens"],
        ),
    }


_ERROR = _object_of(
    {
        "error": _object_of(
            {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            ["message", "type", "param", "code"],
        )
    },
    ["error"],
)
_STATUSES = {
    400: "The request is wrong; param names the field.",
    401: "The bearer token is missing or wrong.",
    404: "There is no such model.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is not JSON, or it is compressed.",
    429: "The server is busy; Retry-After says for how long.",
    500: "The server is at fault.",
    503: "The server is about to stop, or the model is away.",
    504: "The answer was not ready in time.",
}


def openapi_document(summaries, schemas):
    """Returns the OpenAPI 3.1 document of the routes as a dict.

    Args:
        summaries: dict from (method, path) to (summary, required names of the
            reply, a list of the query's parameters).
        schemas: dict of `request_schemas`.
    """
    paths = {}
    for (method, path), (summary, required, parameters) in summaries.items():
        reply = {"type": "object", "required": required}
        content = {"application/json": {"schema": reply}}
        if "stream" in schemas.get(path, {}).get("properties", {}):
            content["text/event-stream"] = {"schema": _TEXT}
        operation = {
            "summary": summary,
            "parameters": [
                {"name": name, "in": "query", "schema": _NAME}
                for name in parameters
            ],
            "responses": {
                "200": {"description": "The answer.", "content": content},
                **{
                    str(status): {
                        "description": description,
                        "content": {"application/json": {"schema": _ERROR}},
                    }
                    for status, description in _STATUSES.items()
                },
            },
        }
        if path in schemas:
            operation["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": schemas[path]}},
            }
        paths.setdefault(path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "kerasgpt", "version": "1"},
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}
        },
        # Both: a server may run without a token.
        "security": [{}, {"bearer": []}],
    }
