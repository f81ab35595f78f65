import asyncio
import contextlib
import copy
import itertools
import json
import random

import httpx
import pytest
from starlette.applications import Starlette

from kerasgpt.config import InputError
from kerasgpt.serving.backend import DeadlineExceeded, QueueFull, Unavailable
from kerasgpt.serving.limits import LimitsConfig, with_limits
from kerasgpt.serving.openai import UnknownModel, openai_routes
from tests.serving.fake_backend import FIRST_BYTE, FakeBackend

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = {"model": "shop", "messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"model": "shop", "prompt": "Hi", "max_tokens": 100}


def application(backend, **limits):
    def find_backend(name):
        if name not in (None, "shop", "shop@7"):
            raise UnknownModel(f"there is no model {name}")
        return backend

    return Starlette(
        routes=openai_routes(
            find_backend, lambda: [("shop", 12.5), ("shop@7", 12.5)], **limits
        )
    )


def call(backend, method, path, body=None, **limits):
    """Returns the httpx response to one request."""
    content = {"content": body} if isinstance(body, bytes) else {"json": body}

    async def run():
        transport = httpx.ASGITransport(application(backend, **limits))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test"
        ) as client:
            return await client.request(
                method,
                path,
                headers={"content-type": "application/json"},
                **(content if method == "POST" else {}),
            )

    response = asyncio.run(run())
    assert backend.num_open == 0
    return response


def post(path, body, backend=None, **limits):
    response = call(backend or FakeBackend(), "POST", path, body, **limits)
    assert response.status_code == 200, response.text
    return response.json()


def refused(path, body, backend=None, **limits):
    """Returns (status, error) of a request that must fail in OpenAI's way."""
    response = call(backend or FakeBackend(), "POST", path, body, **limits)
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return response.status_code, error


def stream(path, body, backend=None, **limits):
    """Returns the chunks of a streamed answer."""
    response = call(
        backend or FakeBackend(),
        "POST",
        path,
        {**body, "stream": True},
        **limits,
    )
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events.pop() == ""
    assert events.pop() == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_chat_answers_in_the_documented_form():
    backend = FakeBackend()
    answer = post(CHAT, HELLO, backend)
    assert answer.pop("id").startswith("chatcmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "chat.completion",
        "model": "shop",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Yes, we do."},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 6,
            "completion_tokens": 11,
            "total_tokens": 17,
        },
    }
    (request,) = backend.requests
    assert request.stop_id == backend.control_ids["<|end_of_turn|>"]
    assert (request.temperature, request.top_p) == (1.0, 1.0)
    assert request.max_new_tokens == backend.max_new_tokens


def test_sampling_settings_reach_the_model():
    settings = {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 3,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "frequency_penalty": -1,
        "presence_penalty": 2,
    }
    for path, body in ((CHAT, HELLO), (COMPLETIONS, TEXT)):
        backend = FakeBackend()
        post(path, {**body, **settings, "seed": 5, "max_tokens": 9}, backend)
        (request,) = backend.requests
        for name, value in settings.items():
            assert getattr(request, name) == value
        assert (request.seed, request.max_new_tokens) == (5, 9)


def test_roles_and_parts_of_a_message():
    backend = FakeBackend()
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "A"}] * 2},
        {"role": "assistant", "content": "B", "refusal": None},
        {"role": "tool", "content": "C", "tool_call_id": "1"},
    ]
    post(CHAT, {"messages": messages}, backend)
    (expected,) = asyncio.run(asyncio.wait_for(_chat_ids(backend), timeout=5))
    assert list(backend.requests[0].token_ids) == expected


async def _chat_ids(backend):
    return [
        await backend.encode_chat(
            [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "AA"},
                {"role": "assistant", "content": "B"},
                {"role": "tool", "content": "C"},
            ]
        )
    ]


def test_a_reply_is_cut_by_length_and_by_stop_strings():
    answer = post(CHAT, {**HELLO, "max_completion_tokens": 3})
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == "Yes"
    assert choice["finish_reason"] == "length"
    answer = post(CHAT, {**HELLO, "stop": "do"})
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == "Yes, we "
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len("Yes, we do")
    answer = post(CHAT, {**HELLO, "stop": ["xx", ",", "we", "do"]})
    assert answer["choices"][0]["message"]["content"] == "Yes"


def test_a_stop_string_ends_the_work():
    backend = FakeBackend("a.b", hangs_after=2)
    answer = post(COMPLETIONS, {**TEXT, "stop": "."}, backend)
    assert answer["choices"][0]["text"] == "a"


def test_several_answers_have_seeds_that_count_up():
    body = {**HELLO, "n": 3, "seed": 40}
    answer = post(CHAT, body, FakeBackend("seed {seed}"))
    texts = [one["message"]["content"] for one in answer["choices"]]
    assert texts == ["seed 40", "seed 41", "seed 42"]
    assert [one["index"] for one in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 21
    assert answer["usage"]["prompt_tokens"] == 6
    backend = FakeBackend()
    post(CHAT, {**HELLO, "n": 2, "seed": 2**63 - 1}, backend)
    assert [one.seed for one in backend.requests] == [-1, 0]


def test_without_a_seed_answers_differ():
    texts = {
        post(CHAT, HELLO, FakeBackend("{seed}"))["choices"][0]["message"][
            "content"
        ]
        for _ in range(3)
    }
    assert len(texts) > 1


def test_chat_streams_role_text_and_end():
    chunks = stream(CHAT, HELLO, FakeBackend("你好😀!"))
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert not any("usage" in chunk for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"content": "你"},
        {"content": "好"},
        {"content": "😀"},
        {"content": "!"},
        {},
    ]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * 5 + ["stop"]


def test_usage_comes_last_if_asked_for():
    body = {**HELLO, "stream_options": {"include_usage": True}}
    *chunks, last = stream(CHAT, body)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 6,
        "completion_tokens": 11,
        "total_tokens": 17,
    }


@pytest.mark.parametrize("batch_tokens", [1, 2, 5, 100])
@pytest.mark.parametrize("stop", [None, "好", ["do", "we d"]])
def test_what_is_streamed_is_what_is_told_at_once(batch_tokens, stop):
    for reply in ("Yes, we do.", "你好😀"):
        backend = FakeBackend(reply, batch_tokens=batch_tokens)
        body = {**TEXT, "stop": stop, "logprobs": 2, "echo": True, "n": 2}
        whole = post(COMPLETIONS, body, backend)
        chunks = stream(COMPLETIONS, body, backend)
        for choice in whole["choices"]:
            parts = [
                part
                for chunk in chunks
                for part in chunk["choices"]
                if part["index"] == choice["index"]
            ]
            assert "".join(part["text"] for part in parts) == choice["text"]
            assert parts[-1]["finish_reason"] == choice["finish_reason"]
            for name in choice["logprobs"]:
                told = [p["logprobs"][name] for p in parts if p["logprobs"]]
                assert [*itertools.chain(*told)] == choice["logprobs"][name]


def test_prompts_of_all_four_forms():
    ids = [FIRST_BYTE + byte for byte in b"Hi"]
    for prompt, num_choices in (
        ("Hi", 1),
        (["Hi", "Ho"], 2),
        (ids, 1),
        ([ids, ids, ids], 3),
    ):
        backend = FakeBackend("{seed}")
        body = {**TEXT, "prompt": prompt, "echo": True, "seed": 1, "n": 2}
        choices = post(COMPLETIONS, body, backend)["choices"]
        assert len(choices) == 2 * num_choices
        assert [one["text"] for one in choices[:2]] == ["Hi1", "Hi2"]
        given = backend.requests[0].token_ids
        first = [backend.control_ids["<|document|>"]]
        is_text = isinstance(prompt, str) or isinstance(prompt[0], str)
        assert list(given) == (first + ids if is_text else ids)
        stop_id = backend.control_ids["<|end_of_document|>"]
        assert backend.requests[0].stop_id == stop_id


def test_ids_of_a_conversation_end_with_the_turn():
    backend = FakeBackend()
    assistant = backend.control_ids["<|assistant|>"]
    post(COMPLETIONS, {"prompt": [2, 5, 74, 8, assistant]}, backend)
    stop_id = backend.control_ids["<|end_of_turn|>"]
    assert backend.requests[0].stop_id == stop_id


def harness_request(rows, **others):
    """Returns what lm-evaluation-harness' local-completions sends."""
    return {
        "model": "shop",
        "prompt": rows,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
        **others,
    }


@pytest.mark.parametrize("reply", ["!", ""])
def test_the_harness_scores_prompts_exactly(reply):
    backend = FakeBackend(reply)
    rows = [
        [2, *(FIRST_BYTE + byte for byte in "价 x".encode())],
        [FIRST_BYTE + 65, FIRST_BYTE + 66],
    ]
    choices = post(COMPLETIONS, harness_request(rows), backend)["choices"]
    assert [one["index"] for one in choices] == [0, 1]
    for row, choice in zip(rows, choices, strict=True):
        told = choice["logprobs"]
        # The prompt and exactly one token, also where that one is the end.
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert len(told[name]) == len(row) + 1
        assert told["token_logprobs"][0] is None
        assert told["top_logprobs"][0] is None
        for index in range(1, len(row)):
            _, top = backend.scored(row[index - 1], row[index])
            expected = dict(top)[row[index]]
            assert told["token_logprobs"][index] == expected
            # As the harness finds out whether a token is the likeliest.
            is_greedy = expected == max(told["top_logprobs"][index].values())
            assert is_greedy == (top[0][0] == row[index])
    assert choices[0]["text"] == "价 x" + reply
    assert choices[0]["logprobs"]["text_offset"] == [0, 0, 0, 0, 1, 2, 3]


def test_the_last_token_scored_may_be_the_last_of_the_context():
    backend = FakeBackend(context_length=8)
    rows = [[FIRST_BYTE + 65] * 7]
    (choice,) = post(COMPLETIONS, harness_request(rows), backend)["choices"]
    assert len(choice["logprobs"]["tokens"]) == 8
    rows = [[FIRST_BYTE + 65] * 8]
    body = harness_request(rows, max_tokens=0)
    (choice,) = post(COMPLETIONS, body, backend)["choices"]
    assert len(choice["logprobs"]["tokens"]) == 8
    assert choice["text"] == "A" * 8
    assert choice["finish_reason"] == "length"
    assert not backend.requests[1:]


def test_names_of_tokens_never_collide():
    backend = FakeBackend()
    # Every half character decodes to U+FFFD, every control id to nothing.
    rows = [[*range(backend.vocabulary_size)][start::3] for start in range(3)]
    body = harness_request(rows, max_tokens=0, logprobs=5)
    names = {}
    for row, choice in zip(
        rows, post(COMPLETIONS, body, backend)["choices"], strict=True
    ):
        told = choice["logprobs"]
        names.update(zip(told["tokens"], row, strict=True))
        for index in range(1, len(row)):
            _, top = backend.scored(row[index - 1], row[index])
            assert len(told["top_logprobs"][index]) == len(top)
    assert len(names) == backend.vocabulary_size
    assert names["A"] == FIRST_BYTE + 65
    assert names["<|user|>"] == backend.control_ids["<|user|>"]


def test_a_token_beside_the_likeliest_is_added_to_the_map():
    backend = FakeBackend()
    for logprobs in range(6):
        body = harness_request([[9, 10, 11, 12, 13]], logprobs=logprobs)
        told = post(COMPLETIONS, body, backend)["choices"][0]["logprobs"]
        for token, value, top in list(
            zip(*list(told.values())[:3], strict=True)
        )[1:]:
            assert top[token] == value
            assert logprobs <= len(top) <= max(1, logprobs + 1)


def test_unknown_rivals_are_null_and_no_map_of_one():
    backend = FakeBackend(has_top=False)
    body = harness_request([[9, 10, 11]])
    told = post(COMPLETIONS, body, backend)["choices"][0]["logprobs"]
    assert told["top_logprobs"] == [None] * 4
    assert told["token_logprobs"][1] is not None


def test_logprobs_of_chat():
    body = {**HELLO, "logprobs": True, "top_logprobs": 2}
    (choice,) = post(CHAT, body, FakeBackend("é!"))["choices"]
    content = choice["logprobs"]["content"]
    assert [one["token"] for one in content] == [
        "token_id:204",
        "token_id:178",
        "!",
    ]
    assert content[0]["bytes"] is None
    assert content[2]["bytes"] == [33]
    for one in content:
        assert len(one["top_logprobs"]) == 2
        values = [top["logprob"] for top in one["top_logprobs"]]
        assert values == sorted(values, reverse=True)
    chunks = stream(CHAT, body, FakeBackend("é!"))
    told = [chunk["choices"][0]["logprobs"] or {} for chunk in chunks]
    parts = [one.get("content", ()) for one in told]
    assert [*itertools.chain(*parts)] == content


def test_models_are_listed():
    response = call(FakeBackend(), "GET", "/v1/models")
    assert response.json() == {
        "object": "list",
        "data": [
            {
                "id": name,
                "object": "model",
                "created": 12,
                "owned_by": "kerasgpt",
            }
            for name in ("shop", "shop@7")
        ],
    }


def test_the_harness_finds_its_tokenizer():
    backend = FakeBackend()
    info = call(backend, "GET", "/tokenizer_info").json()
    assert info["eos_token"] == "<|end_of_document|>"
    assert info["bos_token_id"] == backend.control_ids["<|document|>"]
    assert info["model_max_length"] == backend.context_length
    asked = {"prompt": "<|user|>é", "add_special_tokens": False}
    told = post("/tokenize", asked, backend)
    # Literally: no text is a control token.
    assert min(told["tokens"]) >= FIRST_BYTE
    assert told["count"] == len(told["tokens"]) == 10
    back = post("/detokenize", {"tokens": told["tokens"]}, backend)
    assert back == {"prompt": "<|user|>é"}
    asked["add_special_tokens"] = True
    assert post("/tokenize", asked, backend)["tokens"][0] == 2
    assert post("/detokenize", {"tokens": []}, backend) == {"prompt": ""}


def test_a_version_may_be_asked_for_and_an_unknown_model_is_404():
    assert post(CHAT, {**HELLO, "model": "shop@7"})["model"] == "shop@7"
    for path, body in (
        (CHAT, HELLO),
        (COMPLETIONS, TEXT),
        ("/tokenize", {"prompt": ""}),
        ("/detokenize", {"tokens": []}),
    ):
        status, error = refused(path, {**body, "model": "ghost"})
        assert (status, error["code"]) == (404, "model_not_found")
        assert "ghost" in error["message"]
    response = call(FakeBackend(), "GET", "/tokenizer_info?model=ghost")
    assert response.status_code == 404


BAD_FIELDS = [
    (CHAT, {"temperature": 2.5}, "temperature"),
    (CHAT, {"temperature": True}, "temperature"),
    (CHAT, {"temperature": "1"}, "temperature"),
    (CHAT, {"n": 0}, "n"),
    (CHAT, {"n": 129}, "n"),
    (CHAT, {"n": 1.0}, "n"),
    (CHAT, {"max_tokens": 0}, "max_tokens"),
    (CHAT, {"max_tokens": 129}, "max_tokens"),
    (CHAT, {"max_tokens": 9, "max_completion_tokens": 8},
     "max_completion_tokens"),
    (CHAT, {"top_logprobs": 1}, "top_logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 6}, "top_logprobs"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": None}, "messages"),
    (CHAT, {"messages": [{"role": "king", "content": ""}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": None}]},
     "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
     "messages[0].content[0].type"),
    (CHAT, {"messages": [{"role": "user", "content": "", "x": 1}]},
     "messages[0].x"),
    (CHAT, {"stop": ["a"] * 5}, "stop"),
    (CHAT, {"stop": ""}, "stop"),
    (CHAT, {"stop": 7}, "stop"),
    (CHAT, {"tools": [{"type": "function"}]}, "tools"),
    (CHAT, {"response_format": {"type": "json_object"}},
     "response_format.type"),
    (CHAT, {"logit_bias": {"5": 1}}, "logit_bias"),
    (CHAT, {"colour": "red"}, "colour"),
    (CHAT, {"seed": 2**63}, "seed"),
    (COMPLETIONS, {"logprobs": 6}, "logprobs"),
    (COMPLETIONS, {"logprobs": True}, "logprobs"),
    (COMPLETIONS, {"prompt": []}, "prompt"),
    (COMPLETIONS, {"prompt": [[]]}, "prompt[0]"),
    (COMPLETIONS, {"prompt": {}}, "prompt"),
    (COMPLETIONS, {"prompt": None}, "prompt"),
    (COMPLETIONS, {"prompt": [65, -1]}, "prompt[1]"),
    (COMPLETIONS, {"prompt": [65, 265]}, "prompt[0][1]"),
    (COMPLETIONS, {"prompt": [["a"]]}, "prompt[0][0]"),
    (COMPLETIONS, {"prompt": ["a"] * 129}, "prompt"),
    (COMPLETIONS, {"prompt": ["a"] * 2, "n": 65}, "n"),
    (COMPLETIONS, {"best_of": 2}, "best_of"),
    (COMPLETIONS, {"suffix": "x"}, "suffix"),
    (COMPLETIONS, {"max_tokens": -1}, "max_tokens"),
    ("/tokenize", {}, "prompt"),
    ("/detokenize", {"tokens": [265]}, "tokens[0]"),
    ("/detokenize", {"tokens": "A"}, "tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "fields", "param"), BAD_FIELDS)
def test_bad_fields_are_named(path, fields, param):
    base = {CHAT: HELLO, COMPLETIONS: TEXT}.get(path, {})
    backend = FakeBackend()
    status, error = refused(path, {**base, **fields}, backend)
    assert (status, error["param"]) == (400, param)
    assert error["message"].startswith(param)
    assert not backend.requests


@pytest.mark.parametrize(
    ("number", "param"),
    [
        ('"temperature": NaN', "temperature"),
        ('"temperature": -Infinity', "temperature"),
        ('"top_p": 1e999', "top_p"),
        ('"seed": 1' + "0" * 4999, "seed"),
        ('"user": "\\ud800"', "user"),
        ('"\\udc00": 1', "\\udc00"),
        ('"n": 1, "n": 2', "n"),
        ('"n": 1, "\\u006e": 2', "n"),
    ],
)
def test_json_is_read_strictly(number, param):
    body = f'{{"prompt": "Hi", {number}}}'.encode()
    status, error = refused(COMPLETIONS, body)
    assert (status, error["param"]) == (400, param)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"prompt": "Hi"} x',
        b'{"prompt": "\xff"}',
        b'\xef\xbb\xbf{"prompt": "Hi"}',
        '{"prompt": "Hi"}'.encode("utf-16"),
        b'{"prompt": "a\nb"}',
        b"[" * 100_000,
        b'{"prompt": ' * 100_000,
    ],
)
def test_what_is_no_json_object_is_refused(body):
    status, error = refused(COMPLETIONS, body)
    assert (status, error["type"]) == (400, "invalid_request_error")


def test_harmless_standard_fields_are_accepted():
    body = {
        **HELLO,
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "stream_options": None,
        "response_format": {"type": "text"},
        "logit_bias": {},
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "service_tier": "auto",
        "modalities": ["text"],
        "stop": None,
        "temperature": None,
    }
    backend = FakeBackend()
    post(CHAT, body, backend)
    assert backend.requests[0].temperature == 1
    # lm-evaluation-harness adds a type to each message.
    messages = [{"role": "user", "content": "Hi", "type": "text"}]
    post(CHAT, {**HELLO, "messages": messages})
    post(COMPLETIONS, {**TEXT, "best_of": 1, "suffix": ""})


def test_a_prompt_too_long_is_told_with_figures():
    for path, body in (
        (CHAT, {"messages": [{"role": "user", "content": "a" * 252}]}),
        (COMPLETIONS, {"prompt": [65] * 256}),
        (COMPLETIONS, {"prompt": "a" * 250, "max_tokens": 10}),
    ):
        status, error = refused(path, body)
        assert (status, error["code"]) == (400, "context_length_exceeded")
        assert "256" in error["message"]
    long = "a" * 100_000
    backend = FakeBackend()
    backend.encode = None
    status, error = refused(COMPLETIONS, {"prompt": long}, backend)
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert "100000" in error["message"]
    # By default an answer is as long as fits.
    backend = FakeBackend()
    messages = [{"role": "user", "content": "a" * 200}]
    post(CHAT, {"messages": messages}, backend)
    assert backend.requests[0].max_new_tokens == 52


FAILURES = [
    (QueueFull(2.4), {}, 429, "server_is_busy"),
    (QueueFull(2.4), {"is_draining": lambda: True}, 503, "server_is_stopping"),
    (Unavailable("the model was retired"), {}, 503, "model_unavailable"),
    (DeadlineExceeded("too late"), {}, 504, "deadline_exceeded"),
    (InputError("min_p=0.5: is not known there"), {}, 400, None),
    (ZeroDivisionError("a bug"), {}, 500, "internal"),
]


@pytest.mark.parametrize(("failure", "limits", "status", "code"), FAILURES)
@pytest.mark.parametrize("streams", [False, True])
def test_failures_of_the_model_have_a_status(
    failure, limits, status, code, streams
):
    body = {**HELLO, "stream": streams, "n": 2}
    backend = FakeBackend(error=failure)
    told, error = refused(CHAT, body, backend, **limits)
    assert (told, error["code"]) == (status, code)
    assert "a bug" not in error["message"]
    response = call(backend, "POST", CHAT, body, **limits)
    has_wait = isinstance(failure, QueueFull)
    assert response.headers.get("retry-after") == ("2" if has_wait else None)


def test_a_failure_on_the_way_ends_the_stream_with_an_error():
    backend = FakeBackend(error=Unavailable("gone"), error_after=3)
    response = call(backend, "POST", CHAT, {**HELLO, "stream": True})
    assert response.status_code == 200
    *_, last, end = response.text.split("\n\n")
    assert end == ""
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["code"] == "model_unavailable"
    assert "[DONE]" not in response.text


@pytest.mark.parametrize("hangs_after", [0, 2])
@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_that_takes_too_long_is_ended(hangs_after, streams):
    backend = FakeBackend(hangs_after=hangs_after)
    response = call(
        backend,
        "POST",
        CHAT,
        {**HELLO, "stream": streams},
        deadline_s=0.05,
    )
    assert "deadline_exceeded" in response.text
    has_begun = streams and hangs_after
    assert response.status_code == (200 if has_begun else 504)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("hangs_after", [0, 2])
def test_the_work_stops_when_the_client_leaves(streams, hangs_after):
    backend = FakeBackend(hangs_after=hangs_after)
    app = application(backend)
    body = json.dumps({**HELLO, "stream": streams, "n": 2}).encode()

    async def run():
        leaves = asyncio.Event()
        messages = [{"type": "http.request", "body": body}]

        async def receive():
            if messages:
                return messages.pop()
            await leaves.wait()
            return {"type": "http.disconnect"}

        sent = []

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": CHAT,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        task = asyncio.ensure_future(app(scope, receive, send))
        while backend.num_open < 2:
            await asyncio.sleep(0)
        leaves.set()
        await asyncio.wait_for(task, timeout=5)
        assert backend.num_open == 0
        # Nothing is left that runs on.
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not any(b"[DONE]" in one.get("body", b"") for one in sent)

    asyncio.run(run())


def test_a_request_runs_a_few_of_its_answers_at_a_time():
    backend = FakeBackend()
    most = 0

    class Counting(FakeBackend):
        async def generate(self, request):
            nonlocal most
            async with contextlib.aclosing(super().generate(request)) as all_:
                async for batch in all_:
                    most = max(most, self.num_open)
                    yield batch

    backend = Counting()
    answer = post(CHAT, {**HELLO, "n": 9}, backend, max_parallel=3)
    assert len(answer["choices"]) == 9
    assert most == 3


def test_other_methods_and_media_types_are_refused():
    for method in ("GET", "PUT", "DELETE"):
        response = call(FakeBackend(), method, CHAT)
        assert response.status_code == 405
        assert response.headers["allow"] == "POST"
        assert set(response.json()) == {"error"}

    async def run():
        transport = httpx.ASGITransport(application(FakeBackend()))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test"
        ) as client:
            # As a form of another site's page could send it.
            return await client.post(
                CHAT,
                content=json.dumps(HELLO),
                headers={"content-type": "text/plain"},
            )

    assert asyncio.run(run()).status_code == 415


def test_the_document_describes_what_is_accepted():
    document = call(FakeBackend(), "GET", "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    routes = application(FakeBackend()).routes
    assert set(document["paths"]) == {route.path for route in routes}
    body = document["paths"][COMPLETIONS]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert schema["additionalProperties"] is False
    for name, field in schema["properties"].items():
        # Each bound that is published is the one that is checked.
        for bound, step in (("maximum", 1), ("minimum", -1)):
            if bound in field:
                value = field[bound] + step
                status, error = refused(COMPLETIONS, {**TEXT, name: value})
                assert (status, error["param"]) == (400, name)


def test_tokens_are_counted_for_the_log():
    lines = []
    app = with_limits(
        application(FakeBackend()), LimitsConfig(log=lines.append)
    )

    async def run():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test"
        ) as client:
            for streams in (False, True):
                await client.post(CHAT, json={**HELLO, "stream": streams})

    asyncio.run(run())
    for line in map(json.loads, lines):
        assert (line["prompt_tokens"], line["completion_tokens"]) == (6, 11)
        assert "Hi" not in json.dumps(line)


SEEDS = [
    (CHAT, {**HELLO, "n": 2, "stop": ["e", "."], "logprobs": True}),
    (CHAT, {**HELLO, "stream": True, "top_p": 0.5, "seed": 3}),
    (COMPLETIONS, {**TEXT, "echo": True, "logprobs": 3}),
    (COMPLETIONS, {**TEXT, "prompt": [[74, 75], [76]], "stream": True}),
    ("/tokenize", {"prompt": "Hi", "add_special_tokens": True}),
    ("/detokenize", {"tokens": [74, 75]}),
]
VALUES = [
    None, True, 0, -1, 1, 5, 300, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, "",
    "a", "你😀", "\u0000", [], [[]], [0], ["a"], [None], {}, {"a": {}},
    "a" * 999,
]  # fmt: skip
SNIPPETS = [
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"NaN", b"1e999", b"-",
    b"\xff", b"\\ud800", b"\\u0000", b"true", b"0" * 40, b"\n", b"[" * 20,
]  # fmt: skip


def mutated(rng):
    """Returns (path, body) of a request with something wrong, perhaps."""
    path, value = rng.choice(SEEDS)
    value = json.loads(json.dumps(value))
    for _ in range(rng.randrange(3)):
        holder = value
        while True:
            keys = (
                list(holder)
                if isinstance(holder, dict)
                else list(range(len(holder)))
            )
            key = rng.choice(keys) if keys else None
            if key is None or not isinstance(holder[key], (dict, list)):
                break
            if rng.random() < 0.3:
                break
            holder = holder[key]
        if key is not None:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
        if isinstance(holder, dict) and rng.random() < 0.2:
            name = rng.choice(["x", "model", "n", "echo"])
            holder[name] = copy.deepcopy(rng.choice(VALUES))
    body = bytearray(json.dumps(value).encode())
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        start = rng.randrange(len(body) + 1)
        match rng.randrange(3):
            case 0:
                body[start:start] = rng.choice(SNIPPETS)
            case 1:
                del body[start : start + rng.randrange(1, 9)]
            case 2:
                body[start : start + 1] = bytes([rng.randrange(256)])
    return path, bytes(body)


def test_mutated_bodies_never_break_the_server(caplog):
    backend = FakeBackend("Yes 你")
    app = with_limits(application(backend), LimitsConfig(log=None))
    rng = random.Random(4)
    statuses = {}

    async def run():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test"
        ) as client:
            for _ in range(2000):
                path, body = mutated(rng)
                response = await client.post(
                    path,
                    content=body,
                    headers={"content-type": "application/json"},
                )
                status = response.status_code
                statuses[status] = statuses.get(status, 0) + 1
                assert status in (200, 400, 404), (path, body, response.text)
                if status != 200:
                    assert set(response.json()) == {"error"}
            response = await client.post(CHAT, json=HELLO)
            assert response.status_code == 200

    asyncio.run(run())
    # Both kinds were really tried.
    assert min(statuses[200], statuses[400]) > 200
    assert not caplog.records
    assert backend.num_open == 0
