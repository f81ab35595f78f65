"""Owns who may send how much, how often, and the log. Not: any route."""

import asyncio
import collections
import dataclasses
import hashlib
import hmac
import json
import math
import re
import sys
import time
import uuid
from collections.abc import Callable

# Requests to these are told of errors as OpenAI does.
_OPENAI_PATHS = re.compile(
    r"/v1/(chat/.*|completions|models)|/(de)?tokenize|/tokenizer_info"
    r"|/openapi\.json"
)
_OPENAI_KINDS = {401: "authentication_error", 429: "rate_limit_error"}
# A string, whatever is in it, or a bracket. It cannot backtrack, and a string
# that does not end reaches to the end: one pass over any body.
_STRING_OR_BRACKET = re.compile(
    rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL
)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_MAX_LOGGED_CHARACTERS = 256


def write_log_line(line):
    """Writes a line of the request log to standard error."""
    print(line, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class LimitsConfig:
    """What a server puts up with.

    Attributes:
        max_body_bytes: int. Counted while reading, whatever a header says. A
            batch of lm-evaluation-harness is larger than a conversation.
        max_json_depth: int, brackets within brackets.
        body_timeout_s: float. Seconds within which a body must have come.
        api_key: str or None. Asked for as "Authorization: Bearer".
        open_paths: tuple of str. Paths that need no key and count towards no
            limit: health and readiness, or the files of a page.
        requests_per_minute: int. For each client's address; 0 = any number.
        burst_requests: int. So many may come at once.
        max_concurrent: int, requests at a time, streams included.
        log: function of a line of JSON, or None for no log.
        has_log_texts: bool. Whether bodies of requests are logged, too.
        clock: function that returns seconds that never go back.
    """

    max_body_bytes: int = 1 << 20
    max_json_depth: int = 8
    body_timeout_s: float = 10.0
    api_key: str | None = None
    open_paths: tuple = ("/healthz", "/readyz")
    requests_per_minute: int = 0
    burst_requests: int = 60
    max_concurrent: int = 256
    log: Callable | None = write_log_line
    has_log_texts: bool = False
    clock: Callable = time.monotonic

    def __post_init__(self):
        for name in (
            "max_body_bytes",
            "max_json_depth",
            "body_timeout_s",
            "burst_requests",
            "max_concurrent",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(
                    f"{name} must be positive; received {getattr(self, name)}."
                )
        if self.api_key == "":
            raise ValueError("api_key must not be empty; None asks for none.")


def with_limits(app, config):
    """Returns an ASGI application that guards `app`.

    From the outside in: a request id and a line of log, the number of
    requests at a time, the rate, the key, and the body. Errors are
    {"error": {"message", "type", "param", "code"}} on OpenAI's paths and
    {"error": message} on all others, as TF Serving's are.

    A route may add to its line of log through the dict
    `scope["request_log"]`: the counts "prompt_tokens" and
    "completion_tokens".

    Args:
        app: ASGI application.
        config: LimitsConfig.
    """
    app = _Body(app, config)
    if config.api_key is not None:
        app = _Key(app, config)
    if config.requests_per_minute:
        app = _Rate(app, config)
    return _Log(_Concurrency(app, config), config)


class _Refused(Exception):
    """An answer with an error status.

    Args:
        status: int, of HTTP.
        message: str, without anything that the client sent.
        headers: dict of str.
    """

    def __init__(self, status, message, headers=None):
        super().__init__(message)
        self.status = status
        self.headers = headers or {}

    async def tell(self, scope, send):
        message = str(self)
        error = message
        if _OPENAI_PATHS.fullmatch(scope["path"]):
            error = {
                "message": message,
                "type": _OPENAI_KINDS.get(self.status, "invalid_request_error"),
                "param": None,
                "code": "invalid_api_key" if self.status == 401 else None,
            }
        body = json.dumps({"error": error}).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            # What is left of the body is not read.
            "connection": "close",
            **self.headers,
        }
        await send(
            {
                "type": "http.response.start",
                "status": self.status,
                "headers": [
                    (name.encode(), value.encode())
                    for name, value in headers.items()
                ],
            }
        )
        if scope["method"] == "HEAD":
            body = b""
        await send({"type": "http.response.body", "body": body})


def _header(scope, name):
    """Returns the bytes of a header, or None."""
    return next((value for key, value in scope["headers"] if key == name), None)


class _Log:
    """Gives each request an id and writes a line about it."""

    def __init__(self, app, config):
        self._app = app
        self._config = config

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            # The start and the end of the server; there are no web sockets.
            await self._app(scope, receive, send)
            return
        given = _header(scope, b"x-request-id") or b""
        request_id = (
            given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        )
        # Cancelled, until something else is answered: the client has left.
        record = {"status": 499, "request_bytes": 0, "response_bytes": 0}
        scope["request_log"] = record
        begun = self._config.clock()

        async def told(message):
            if message["type"] == "http.response.start":
                record["status"] = message["status"]
                headers = list(message.get("headers", ()))
                headers.append((b"x-request-id", request_id.encode()))
                message = {**message, "headers": headers}
            else:
                record["response_bytes"] += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, told)
        except _Refused as refused:
            await refused.tell(scope, told)
        finally:
            if self._config.log:
                milliseconds = 1000 * (self._config.clock() - begun)
                self._config.log(
                    json.dumps(
                        {
                            "time": time.strftime(
                                "%Y-%m-%dT%H:%M:%SZ", time.gmtime()
                            ),
                            "id": request_id,
                            "method": scope["method"],
                            "path": scope["path"][:_MAX_LOGGED_CHARACTERS],
                            "ms": round(milliseconds, 1),
                            **record,
                        }
                    )
                )


class _Concurrency:
    """Turns away what comes while too many requests are being answered."""

    def __init__(self, app, config):
        self._app = app
        self._max_concurrent = config.max_concurrent
        self._open_paths = config.open_paths
        self._num_running = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
            return
        if self._num_running >= self._max_concurrent:
            raise _Refused(
                429,
                "the server is busy; try again later",
                {"retry-after": "1"},
            )
        self._num_running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_running -= 1


class _Rate:
    """A bucket of tokens for each address, which fills by and by."""

    # The addresses longest unseen are forgotten: their buckets are full.
    MAX_ADDRESSES = 10_000

    def __init__(self, app, config):
        self._app = app
        self._open_paths = config.open_paths
        self._per_second = config.requests_per_minute / 60
        self._size = config.burst_requests
        self._clock = config.clock
        self._buckets = collections.OrderedDict()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            self._take((scope.get("client") or ("",))[0])
        await self._app(scope, receive, send)

    def _take(self, address):
        now = self._clock()
        level, since = self._buckets.pop(address, (self._size, now))
        level = min(self._size, level + (now - since) * self._per_second)
        is_allowed = level >= 1
        self._buckets[address] = (level - is_allowed, now)
        if len(self._buckets) > self.MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        if not is_allowed:
            seconds = math.ceil((1 - level) / self._per_second)
            raise _Refused(
                429,
                "too many requests from this address; try again later",
                {"retry-after": str(seconds)},
            )


class _Key:
    """Asks for a bearer token, compared in constant time."""

    def __init__(self, app, config):
        self._app = app
        self._open_paths = config.open_paths
        self._digest = hashlib.sha256(config.api_key.encode()).digest()

    async def __call__(self, scope, receive, send):
        # A browser's preflight carries no key and is told nothing.
        if (
            scope["type"] == "http"
            and scope["method"] != "OPTIONS"
            and scope["path"] not in self._open_paths
        ):
            self._require_key(_header(scope, b"authorization") or b"")
        await self._app(scope, receive, send)

    def _require_key(self, header):
        scheme, _, key = header.partition(b" ")
        # Digests are equally long, whatever was sent.
        digest = hashlib.sha256(key.strip()).digest()
        is_equal = hmac.compare_digest(digest, self._digest)
        if scheme.lower() != b"bearer" or not is_equal:
            raise _Refused(
                401,
                "the bearer token is missing or wrong",
                {"www-authenticate": "Bearer"},
            )


class _Body:
    """Reads the whole body, within its bounds, before the application runs."""

    def __init__(self, app, config):
        self._app = app
        self._config = config

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        encoding = _header(scope, b"content-encoding") or b"identity"
        if encoding.strip().lower() != b"identity":
            raise _Refused(415, "compressed bodies are not accepted")
        may_have_body = scope["method"] in ("POST", "PUT", "PATCH")
        max_bytes = self._config.max_body_bytes if may_have_body else 0
        try:
            async with asyncio.timeout(self._config.body_timeout_s):
                body = await _read(scope, receive, max_bytes)
        except TimeoutError as error:
            raise _Refused(408, "the body came too slowly") from error
        if body is None:
            return
        record = scope.get("request_log", {})
        record["request_bytes"] = len(body)
        if self._config.has_log_texts:
            record["request"] = body.decode(errors="replace")
        if _is_deeper(body, self._config.max_json_depth):
            raise _Refused(
                400,
                f"JSON may be nested {self._config.max_json_depth} deep",
            )
        is_told = False

        async def again():
            nonlocal is_told
            if is_told:
                return await receive()
            is_told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)


async def _read(scope, receive, max_bytes):
    """Returns the body, or None if the client left before its end."""
    message = (
        f"the body is larger than {max_bytes} bytes"
        if max_bytes
        else f"{scope['method']} takes no body"
    )
    refused = _Refused(413 if max_bytes else 400, message)
    length = _header(scope, b"content-length") or b"0"
    if not length.isdigit() or len(length) > 18 or int(length) > max_bytes:
        raise refused
    chunks, num_bytes = [], 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            return None
        chunks.append(event.get("body", b""))
        num_bytes += len(chunks[-1])
        if num_bytes > max_bytes:
            raise refused
        if not event.get("more_body"):
            return b"".join(chunks)


def _is_deeper(body, max_depth):
    depth = 0
    for mark in _STRING_OR_BRACKET.finditer(body):
        first = body[mark.start()]
        if first in b"[{":
            depth += 1
            if depth > max_depth:
                return True
        elif first in b"]}":
            depth -= 1
    return False
