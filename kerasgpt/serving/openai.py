"""Owns OpenAI's routes over a Backend. Not: what they accept
(request_schema.py), nor limits of bodies and clients (limits.py).
"""

import asyncio
import contextlib
import functools
import json
import logging
import secrets
import time
import uuid
import weakref

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kerasgpt.config import InputError
from kerasgpt.serving.backend import (
    DeadlineExceeded,
    GenerationRequest,
    QueueFull,
    Unavailable,
)
from kerasgpt.serving.openai_answers import (
    ChatForm,
    CompletionForm,
    Entry,
    Prompt,
    TokenNames,
    Usage,
    answer_pieces,
    merged,
    no_pieces,
    told_at_once,
    told_by_and_by,
)
from kerasgpt.serving.request_schema import (
    BadRequest,
    check,
    openapi_document,
    parse_body,
    request_schemas,
    with_defaults,
)
from kerasgpt.serving.text_stream import character_offsets

# No tokenizer of ours has longer pieces; a text that cannot fit is refused
# before it is encoded.
_MAX_TOKEN_CHARACTERS = 64
_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)
_EXCHANGES = {
    ("POST", "/v1/chat/completions"): (
        "The assistant's next turn in a conversation.",
        ["id", "object", "created", "model", "choices", "usage"],
        [],
    ),
    ("POST", "/v1/completions"): (
        "How the model continues a text, and how likely it finds it.",
        ["id", "object", "created", "model", "choices", "usage"],
        [],
    ),
    ("GET", "/v1/models"): ("The models.", ["object", "data"], []),
    ("POST", "/tokenize"): (
        "The ids of a text.",
        ["tokens", "count", "max_model_len"],
        [],
    ),
    ("POST", "/detokenize"): ("The text of ids.", ["prompt"], []),
    ("GET", "/tokenizer_info"): (
        "The control tokens.",
        ["eos_token", "bos_token", "pad_token", "model_max_length"],
        ["model"],
    ),
    ("GET", "/openapi.json"): ("This document.", ["openapi", "paths"], []),
}


class UnknownModel(LookupError):
    """No model has that name, or the version asked for is not there."""


def openai_routes(
    find_backend,
    list_models,
    *,
    max_choices=128,
    max_stops=4,
    max_parallel=16,
    deadline_s=300.0,
    is_draining=lambda: False,
):
    """Returns the routes of OpenAI's API, and of lm-evaluation-harness.

    POST /v1/chat/completions, POST /v1/completions, GET /v1/models, and
    POST /tokenize, POST /detokenize, GET /tokenizer_info, GET /openapi.json.

    As with OpenAI the temperature is 1 where none is given, and answers
    differ from call to call without a `seed`. The i-th of `n` answers has the
    seed `seed + i`. `max_tokens` is 16 for completions; for chat it is all
    that fits, up to the model's `max_new_tokens`. What exceeds a bound is
    refused, never cut. `top_k`, `min_p` and `repetition_penalty` are ours.

    These standard fields are checked and then change nothing: `user`,
    `metadata`, `store`, `service_tier`, `safety_identifier`,
    `prompt_cache_key`, `parallel_tool_calls`, `stream_options.
    include_obfuscation`, an empty `logit_bias`, empty `tools`, `tool_choice`
    none or auto, `modalities` and `response_format` of text, and for
    completions an empty `suffix` and `best_of` equal to `n`. Unknown fields
    are refused.

    A text prompt follows what begins a document, `<|document|>` in our own
    template, which counts as a token of it; ids are taken as they are. An
    answer ends at `<|end_of_document|>`, or, if the prompt holds
    `<|assistant|>`, at `<|end_of_turn|>`; with `logprobs` a
    completion tells that token, too, so that `echo` with `max_tokens` 1 adds
    exactly one entry to the prompt's. A token is named by its text, or, if
    another token has the same text or it is a part of a character,
    "token_id:" and its id: names never collide.

    /tokenize and /detokenize take text literally: no text gives a control id.
    lm-evaluation-harness must be told `custom_prefix_token_id` and
    `eos_string` therefore, and `max_length` as /tokenizer_info says.

    Args:
        find_backend: function from a model's name, "NAME" or "NAME@VERSION",
            or None where the client names none, to its Backend. Raises
            UnknownModel.
        list_models: function that returns (name, seconds since 1970 of its
            creation) of each model.
        max_choices: int, answers a request may ask for in all.
        max_stops: int, stop strings.
        max_parallel: int, answers of a request generated at a time.
        deadline_s: float, seconds until a request ends with status 504.
        is_draining: function that returns whether the server is about to
            stop: what it cannot take then is 503 instead of 429.

    Returns:
        list of starlette Routes.
    """
    schemas = request_schemas(max_choices=max_choices, max_stops=max_stops)
    service = _Service(
        find_backend, list_models, max_choices, max_parallel, deadline_s
    )
    handlers = {
        "/v1/chat/completions": service.chat,
        "/v1/completions": service.complete,
        "/v1/models": service.models,
        "/tokenize": service.tokenize,
        "/detokenize": service.detokenize,
        "/tokenizer_info": service.tokenizer_info,
        "/openapi.json": functools.partial(
            _document, openapi_document(_EXCHANGES, schemas)
        ),
    }
    routes = []
    for method, path in _EXCHANGES:
        endpoint = _Endpoint(
            handlers[path], method, schemas.get(path), deadline_s, is_draining
        )
        # Other methods there belong to TF Serving's contract.
        only = ["GET"] if path == "/v1/models" else None
        routes.append(Route(path, endpoint, methods=only))
    return routes


class _Refusal(Exception):
    """An answer with an error status.

    Args:
        status: int, of HTTP.
        message: str.
        kind: str, OpenAI's `type`.
        param: str, the field to blame, or None.
        code: str or None.
        headers: dict.
    """

    def __init__(
        self, status, message, kind, *, param=None, code=None, headers=None
    ):
        super().__init__(message)
        self.status = status
        self.body = {
            "error": {
                "message": message,
                "type": kind,
                "param": param,
                "code": code,
            }
        }
        self.headers = headers

    def response(self):
        return JSONResponse(self.body, self.status, headers=self.headers)


class _Endpoint:
    """An ASGI application: one method and path, whatever may go wrong."""

    def __init__(self, handler, method, schema, deadline_s, is_draining):
        self._handler = handler
        self._method = method
        self._schema = schema
        self._deadline_s = deadline_s
        self._is_draining = is_draining

    async def __call__(self, scope, receive, send):
        request = Request(scope, receive)
        try:
            response = await self._respond(request)
        except ClientDisconnect:
            return
        except Exception as error:
            response = self._refusal(error).response()
        await response(scope, receive, send)

    async def _respond(self, request):
        if self._method == "GET" and request.method in ("GET", "HEAD"):
            return await self._handler(request)
        if request.method != self._method:
            raise _Refusal(
                405,
                f"{request.method} is not allowed here; use {self._method}",
                "invalid_request_error",
                headers={"allow": self._method},
            )
        media_type = request.headers.get("content-type", "")
        # Also keeps a page of another site from posting: a browser asks
        # before it sends JSON there.
        if media_type.split(";")[0].strip().lower() != "application/json":
            raise _Refusal(
                415,
                "the body must be sent with Content-Type: application/json",
                "invalid_request_error",
            )
        body = parse_body(await request.body())
        check(body, self._schema)
        fields = with_defaults(body, self._schema)
        work = self._handler(request, fields)
        response = await _while_connected(request.receive, self._in_time(work))
        if isinstance(response, _EventStream):
            response.limit(self._in_time, self._refusal)
        return response

    async def _in_time(self, work):
        try:
            async with asyncio.timeout(self._deadline_s):
                return await work
        except TimeoutError as error:
            raise DeadlineExceeded("the answer was not ready in time") from (
                error
            )

    def _refusal(self, error):
        """Returns the _Refusal that tells of an exception."""
        wrong = "invalid_request_error"
        match error:
            case _Refusal():
                return error
            case BadRequest():
                return _Refusal(
                    400, str(error), wrong, param=error.param, code=error.code
                )
            case UnknownModel():
                return _Refusal(
                    404,
                    str(error),
                    wrong,
                    param="model",
                    code="model_not_found",
                )
            case InputError():
                return _Refusal(400, str(error), wrong)
            case QueueFull():
                seconds = str(max(1, round(error.retry_after_s)))
                status, kind, code = (
                    (503, "server_error", "server_is_stopping")
                    if self._is_draining()
                    else (429, "rate_limit_error", "server_is_busy")
                )
                return _Refusal(
                    status,
                    str(error),
                    kind,
                    code=code,
                    headers={"retry-after": seconds},
                )
            case Unavailable():
                return _Refusal(
                    503,
                    str(error) or "the model is not available",
                    "server_error",
                    code="model_unavailable",
                )
            case DeadlineExceeded():
                return _Refusal(
                    504,
                    str(error) or "the answer was not ready in time",
                    "server_error",
                    code="deadline_exceeded",
                )
        logging.getLogger(__name__).error("a request failed", exc_info=error)
        return _Refusal(
            500, "the server failed to answer", "server_error", code="internal"
        )


async def _while_connected(receive, work):
    """Returns what the coroutine `work` does; cancels it if the client leaves.

    Raises:
        ClientDisconnect: if so.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_client_leaves(receive))
    try:
        await asyncio.wait({task, watch}, return_when="FIRST_COMPLETED")
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _client_leaves(receive):
    while (await receive())["type"] != "http.disconnect":
        pass


class _EventStream(Response):
    """Server-sent events; an error on the way is told as the last one.

    Args:
        events: async generator of JSON values.
        source: the async generator that they are made of, begun already.
    """

    def __init__(self, events, source):
        super().__init__(
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        del self.headers["content-length"]
        self._events = events
        self._source = source

    def limit(self, in_time, refusal):
        """Sets who ends it in time, and what tells of an exception."""
        self._in_time = in_time
        self._refusal = refusal

    async def __call__(self, scope, receive, send):
        with contextlib.suppress(ClientDisconnect, OSError):
            # The events may not have begun, and would then close nothing.
            async with (
                contextlib.aclosing(self._source),
                contextlib.aclosing(self._events),
            ):
                await _while_connected(receive, self._tell(send))

    async def _tell(self, send):
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        try:
            await self._in_time(self._tell_events(send))
            last = "[DONE]"
        except (OSError, ClientDisconnect):
            raise
        except Exception as error:
            last = json.dumps(self._refusal(error).body)
        await _tell_line(send, last)
        await send({"type": "http.response.body", "body": b""})

    async def _tell_events(self, send):
        async for event in self._events:
            await _tell_line(send, json.dumps(event, allow_nan=False))


async def _tell_line(send, data):
    body = f"data: {data}\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})


class _Service:
    """The handlers of the routes; for the arguments see `openai_routes`."""

    def __init__(
        self, find_backend, list_models, max_choices, max_parallel, deadline_s
    ):
        self._find_backend = find_backend
        self._list_models = list_models
        self._max_choices = max_choices
        self._max_parallel = max_parallel
        self._deadline_s = deadline_s
        self._names = weakref.WeakKeyDictionary()

    async def chat(self, request, fields):
        if fields["top_logprobs"] and not fields["logprobs"]:
            raise BadRequest("needs logprobs: true", param="top_logprobs")
        backend = self._find_backend(fields["model"])
        messages = [_message(message) for message in fields["messages"]]
        _require_encodable(
            backend, "messages", [one["content"] for one in messages]
        )
        prompt = Prompt(tuple(await backend.encode_chat(messages)))
        form = ChatForm(self._names_of(backend), fields)
        return await self._answer(
            request,
            fields,
            backend,
            [prompt],
            form,
            _num_new_tokens(
                backend, [prompt], fields, default=backend.max_new_tokens
            ),
        )

    async def complete(self, request, fields):
        if fields["best_of"] not in (None, fields["n"]):
            raise BadRequest("must equal n", param="best_of")
        backend = self._find_backend(fields["model"])
        prompts = await self._prompts(backend, fields)
        num_choices = len(prompts) * fields["n"]
        if num_choices > self._max_choices:
            raise BadRequest(
                f"{len(prompts)} prompts with n={fields['n']} are "
                f"{num_choices} answers; at most {self._max_choices}",
                param="n",
            )
        num_new_tokens = _num_new_tokens(backend, prompts, fields, default=16)
        form = CompletionForm(self._names_of(backend), fields)
        if fields["echo"] and form.has_entries:
            prompts = await _scored(backend, prompts)
        return await self._answer(
            request, fields, backend, prompts, form, num_new_tokens
        )

    async def _prompts(self, backend, fields):
        """Returns the Prompts of a completion, without entries."""
        given = fields["prompt"]
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            given = [given]
        if isinstance(given[0], str):
            _require_encodable(backend, "prompt", given)
            first = backend.landmarks["document_id"]
            rows = [[first, *row] for row in await backend.encode(given)]
            echoes = given
        else:
            rows = given
            for index, row in enumerate(rows):
                _require_known(backend, f"prompt[{index}]", row)
                _require_room(backend, len(row), 0)
            echoes = await backend.decode(rows) if fields["echo"] else ()
        if not fields["echo"]:
            echoes = [""] * len(rows)
        return [
            Prompt(tuple(row), echo)
            for row, echo in zip(rows, echoes, strict=True)
        ]

    async def _answer(
        self, request, fields, backend, prompts, form, num_new_tokens
    ):
        """Returns the response that continues each of the prompts n times."""
        stops = fields["stop"] or ()
        stops = (stops,) if isinstance(stops, str) else tuple(stops)
        seed = fields["seed"]
        if seed is None:
            seed = secrets.randbelow(2**31)
        choices = [prompt for prompt in prompts for _ in range(fields["n"])]
        generators = [
            answer_pieces(
                backend,
                _generation(
                    backend,
                    prompt,
                    fields,
                    num_new_tokens,
                    seed + index % fields["n"],
                    self._deadline_s,
                ),
                stops,
                has_entries=form.has_entries,
                is_streamed=fields["stream"],
            )
            if num_new_tokens
            else no_pieces()
            for index, prompt in enumerate(choices)
        ]
        arrivals = merged(generators, self._max_parallel)
        head = {
            "id": form.id_prefix + uuid.uuid4().hex,
            "object": form.chunk_object
            if fields["stream"]
            else form.whole_object,
            "created": int(time.time()),
            "model": fields["model"] or "default",
        }
        usage = Usage(prompts, request.scope.get("request_log", {}))
        if not fields["stream"]:
            return JSONResponse(
                await told_at_once(arrivals, choices, form, head, usage)
            )
        # What is refused at once is refused with a status of its own.
        first = await anext(arrivals)
        options = fields["stream_options"] or {}
        events = told_by_and_by(
            first,
            arrivals,
            choices,
            form,
            head,
            usage,
            has_usage=bool(options.get("include_usage")),
        )
        return _EventStream(events, arrivals)

    def _names_of(self, backend):
        # Names hold no backend: one that is retired is not kept alive.
        return TokenNames(backend, self._names.setdefault(backend, {}))

    async def models(self, request):
        return JSONResponse(
            {
                "object": "list",
                "data": [
                    {
                        "id": name,
                        "object": "model",
                        "created": int(created_s),
                        "owned_by": "kerasgpt",
                    }
                    for name, created_s in self._list_models()
                ],
            }
        )

    async def tokenize(self, request, fields):
        backend = self._find_backend(fields["model"])
        (token_ids,) = await backend.encode([fields["prompt"]])
        if fields["add_special_tokens"]:
            token_ids = [backend.landmarks["document_id"], *token_ids]
        return JSONResponse(
            {
                "tokens": token_ids,
                "count": len(token_ids),
                "max_model_len": backend.context_length,
            }
        )

    async def detokenize(self, request, fields):
        backend = self._find_backend(fields["model"])
        _require_known(backend, "tokens", fields["tokens"])
        (text,) = await backend.decode([fields["tokens"]])
        return JSONResponse({"prompt": text})

    async def tokenizer_info(self, request):
        backend = self._find_backend(request.query_params.get("model"))
        told = {"model_max_length": backend.context_length}
        names = {i: name for name, i in backend.control_ids.items()}
        for name, token_id in (
            ("bos", backend.landmarks["document_id"]),
            ("eos", backend.landmarks["document_end_id"]),
            ("pad", backend.control_ids.get("<|pad|>")),
        ):
            if token_id is not None:
                told[f"{name}_token_id"] = token_id
            if token_id in names:
                told[f"{name}_token"] = names[token_id]
        return JSONResponse(told)


async def _document(document, request):
    return JSONResponse(document)


def _message(message):
    """Returns a message with one text and a role of ours."""
    role, content = message["role"], message["content"]
    if not isinstance(content, str):
        content = "".join(part["text"] for part in content)
    return {
        "role": "system" if role == "developer" else role,
        "content": content,
    }


def _require_encodable(backend, param, texts):
    longest = backend.context_length * _MAX_TOKEN_CHARACTERS
    for text in texts:
        if len(text) > longest:
            raise BadRequest(
                f"a text of {len(text)} characters cannot fit the context of "
                f"{backend.context_length} tokens",
                param=param,
                code="context_length_exceeded",
            )


def _require_known(backend, param, token_ids):
    for index, token_id in enumerate(token_ids):
        if token_id >= backend.vocabulary_size:
            raise BadRequest(
                f"must be less than {backend.vocabulary_size}, the size of "
                f"the vocabulary; received {token_id}",
                param=f"{param}[{index}]",
            )


def _require_room(backend, num_prompt_tokens, num_new_tokens):
    if num_prompt_tokens + num_new_tokens > backend.context_length:
        raise BadRequest(
            f"the model's context is {backend.context_length} tokens; asked "
            f"for are {num_prompt_tokens + num_new_tokens}: "
            f"{num_prompt_tokens} of the prompt and {num_new_tokens} new ones",
            code="context_length_exceeded",
        )


def _num_new_tokens(backend, prompts, fields, *, default):
    """Returns how many tokens each answer may have.

    Raises:
        BadRequest: if they are too many, or do not fit the context.
    """
    asked = fields["max_tokens"]
    also_asked = fields["max_completion_tokens"]
    if None not in (asked, also_asked) and asked != also_asked:
        raise BadRequest(
            "differs from max_tokens", param="max_completion_tokens"
        )
    asked = also_asked if asked is None else asked
    longest = max(len(prompt.token_ids) for prompt in prompts)
    if asked is None:
        _require_room(backend, longest, 1)
        room = backend.context_length - longest
        return min(default, backend.max_new_tokens, room)
    if asked > backend.max_new_tokens:
        raise BadRequest(
            f"at most {backend.max_new_tokens} tokens are generated at a "
            f"time; received {asked}",
            param="max_tokens",
        )
    _require_room(backend, longest, asked)
    return asked


def _generation(backend, prompt, fields, num_new_tokens, seed, deadline_s):
    """Returns the GenerationRequest of an answer."""
    return GenerationRequest(
        token_ids=prompt.token_ids,
        max_new_tokens=num_new_tokens,
        stop_id=backend.stop_id(prompt.token_ids),
        # A seed is 32 bits wide to the model.
        seed=(seed + 2**31) % 2**32 - 2**31,
        deadline_s=deadline_s,
        wants_top=fields["logprobs"] not in (None, False),
        **{name: fields[name] for name in _SAMPLING},
    )


async def _scored(backend, prompts):
    """Returns the prompts with an entry for each of their tokens."""
    scores = await backend.score([list(one.token_ids) for one in prompts])
    scored = []
    for prompt, row in zip(prompts, scores, strict=True):
        offsets = await character_offsets(
            backend.decode, list(prompt.token_ids), prompt.echo
        )
        entries = [
            Entry(offset, token_id, score.log_probability, score.top)
            for offset, token_id, score in zip(
                offsets, prompt.token_ids, row, strict=True
            )
        ]
        scored.append(prompt._replace(entries=tuple(entries)))
    return scored
