import asyncio
import itertools
import json

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasgpt.serving.limits import LimitsConfig, with_limits

CHAT = "/v1/chat/completions"
PREDICT = "/v1/models/shop:predict"


class Echo:
    """An application that answers with what it was sent."""

    def __init__(self):
        self.bodies = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, scope, receive, send):
        message = await receive()
        assert not message["more_body"]
        self.bodies.append(message["body"])
        await self.gate.wait()
        scope["request_log"]["completion_tokens"] = 3
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"text/plain")],
            }
        )
        await send({"type": "http.response.body", "body": message["body"]})


def run(requests, app=None, **config):
    """Returns the responses to (method, path, options), one after another."""
    config = LimitsConfig(**{"log": None, **config})
    guarded = with_limits(app or Echo(), config)

    async def all_responses():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(guarded), base_url="http://test"
        ) as client:
            return [
                await client.request(method, path, **options)
                for method, path, options in requests
            ]

    return asyncio.run(all_responses())


def one(method, path, app=None, config=None, **options):
    (response,) = run([(method, path, options)], app, **(config or {}))
    return response


def test_what_is_within_the_limits_passes_as_it_is():
    app = Echo()
    body = b'{"a": [1, {"b": "[[[[[[[[[[[["}]}'
    response = one("POST", CHAT, app, content=body)
    assert (response.status_code, response.content) == (200, body)
    assert one("GET", "/", app).status_code == 200
    assert app.bodies == [body, b""]


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/tokenize"])
def test_errors_on_openai_paths_have_its_form(path):
    response = one(
        "POST", path, content=b"x" * 20, config={"max_body_bytes": 9}
    )
    assert response.status_code == 413
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "9 bytes" in error["message"]


@pytest.mark.parametrize("path", [PREDICT, "/v1/models/a/versions/1", "/x"])
def test_other_errors_have_the_form_of_tf_serving(path):
    response = one(
        "POST", path, content=b"x" * 20, config={"max_body_bytes": 9}
    )
    assert response.status_code == 413
    assert isinstance(response.json()["error"], str)


def test_a_body_is_counted_whatever_its_header_says():
    async def chunks():
        for _ in range(10):
            yield b"12"

    for content in (b"1" * 20, chunks()):
        app = Echo()
        response = one(
            "POST", CHAT, app, content=content, config={"max_body_bytes": 19}
        )
        assert response.status_code == 413
        assert not app.bodies
    response = one(
        "POST", CHAT, content=b"1" * 19, config={"max_body_bytes": 19}
    )
    assert response.status_code == 200


def test_a_length_that_lies_is_no_way_in():
    async def call(length, body):
        scope = {
            "type": "http",
            "method": "POST",
            "path": CHAT,
            "headers": [(b"content-length", length)],
        }
        sent = []

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        guarded = with_limits(Echo(), LimitsConfig(log=None, max_body_bytes=9))
        await guarded(scope, receive, send)
        return sent[0]["status"]

    assert asyncio.run(call(b"3", b"x" * 20)) == 413
    assert asyncio.run(call(b"9" * 30, b"x")) == 413
    assert asyncio.run(call(b"-1", b"x")) == 413
    assert asyncio.run(call(b"3", b"xyz")) == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
def test_methods_without_a_body_take_none(method):
    app = Echo()
    assert one(method, "/v1/models", app, content=b"x").status_code == 400
    assert not app.bodies


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP, identity"])
def test_compressed_bodies_are_refused(encoding):
    app = Echo()
    response = one(
        "POST",
        PREDICT,
        app,
        content=b"\x1f\x8b",
        headers={"content-encoding": encoding},
    )
    assert response.status_code == 415
    assert not app.bodies


def nested(depth, opening="[", closing="]"):
    return (opening * depth + closing * depth).encode()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (nested(8), 200),
        (nested(9), 400),
        (nested(9, '{"a":', "}"), 400),
        (nested(50_000), 400),
        (b"[" * 9, 400),
        (b'"' + b"[" * 9 + b'"', 200),
        (b'"\\"' + b"[" * 9, 200),
        (b'"\\\\"' + b"[" * 9, 400),
        (b"[]" * 1000, 200),
        (b'"' * 1001 + b"[" * 9, 200),
        (b'"\n' + b"[" * 9, 200),
    ],
)
def test_depth_is_counted_outside_of_strings(body, status):
    assert one("POST", PREDICT, content=body).status_code == status


JSON = st.recursive(
    st.none() | st.integers() | st.text('ab"\\[]{}', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text('a"\\[{', max_size=3), inner, max_size=3)
    ),
    max_leaves=9,
)


def depth_of(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


@given(JSON, st.integers(1, 4))
def test_depth_is_that_of_the_parsed_value(value, max_depth):
    response = one(
        "POST",
        PREDICT,
        content=json.dumps(value).encode(),
        config={"max_json_depth": max_depth},
    )
    assert (response.status_code == 200) == (depth_of(value) <= max_depth)


def test_a_body_that_comes_too_slowly_is_given_up():
    async def drip():
        yield b"{"
        await asyncio.Event().wait()

    response = one(
        "POST", CHAT, content=drip(), config={"body_timeout_s": 0.01}
    )
    assert response.status_code == 408


def test_a_client_that_leaves_within_its_body_is_forgotten():
    messages = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def call():
        async def receive():
            return messages.pop(0)

        async def send(message):
            raise AssertionError(message)

        scope = {"type": "http", "method": "POST", "path": "/x", "headers": []}
        app = Echo()
        lines = []
        guarded = with_limits(app, LimitsConfig(log=lines.append))
        await guarded(scope, receive, send)
        assert not app.bodies
        assert json.loads(lines[0])["status"] == 499

    asyncio.run(call())


def test_a_key_is_asked_for():
    config = {"api_key": "sésame"}
    for header, status in (
        (None, 401),
        ("Bearer ", 401),
        ("Bearer wrong", 401),
        ("Basic sésame", 401),
        ("sésame", 401),
        ("Bearer sésame!", 401),
        ("Bearer sésame", 200),
        ("bearer  sésame", 200),
    ):
        headers = {"authorization": header.encode()} if header else {}
        for path in (CHAT, PREDICT, "/metrics"):
            response = one("POST", path, headers=headers, config=config)
            assert response.status_code == status, header
            if status == 401:
                assert response.headers["www-authenticate"] == "Bearer"
                assert "same" not in response.text
    response = one("POST", CHAT, config=config)
    assert response.json()["error"]["code"] == "invalid_api_key"
    # A body is not even read before.
    response = one(
        "POST", CHAT, content=b"x" * 99, config={**config, "max_body_bytes": 9}
    )
    assert response.status_code == 401


def test_health_is_open():
    config = {
        "api_key": "secret",
        "requests_per_minute": 1,
        "burst_requests": 1,
        "open_paths": ("/healthz",),
    }
    responses = run([("GET", "/healthz", {})] * 3, **config)
    assert [one.status_code for one in responses] == [200] * 3
    (response,) = run([("GET", "/healthz/x", {})], **config)
    assert response.status_code == 401


def test_the_rate_is_limited_by_a_bucket_that_fills():
    now = 0.0
    config = {
        "requests_per_minute": 30,
        "burst_requests": 3,
        "clock": lambda: now,
    }
    guarded = with_limits(Echo(), LimitsConfig(log=None, **config))

    async def status(address):
        transport = httpx.ASGITransport(guarded, client=(address, 1))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test"
        ) as client:
            response = await client.post(CHAT)
            return response.status_code, response.headers.get("retry-after")

    async def story():
        nonlocal now
        assert [await status("a") for _ in range(4)] == [
            (200, None),
            (200, None),
            (200, None),
            (429, "2"),
        ]
        # Another address has a bucket of its own.
        assert (await status("b"))[0] == 200
        now += 1
        assert await status("a") == (429, "1")
        now += 1
        assert (await status("a"))[0] == 200
        assert (await status("a"))[0] == 429
        now += 1000
        codes = [(await status("a"))[0] for _ in range(4)]
        assert codes == [200, 200, 200, 429]

    asyncio.run(story())


def test_many_addresses_do_not_fill_the_memory():
    guarded = with_limits(Echo(), LimitsConfig(log=None, requests_per_minute=1))
    (rate,) = [
        layer for layer in layers(guarded) if type(layer).__name__ == "_Rate"
    ]
    rate.MAX_ADDRESSES = 10

    async def story():
        for number in range(50):
            transport = httpx.ASGITransport(guarded, client=(str(number), 1))
            async with httpx.AsyncClient(
                transport=transport, base_url="http://test"
            ) as client:
                assert (await client.post(CHAT)).status_code == 200

    asyncio.run(story())
    assert list(rate._buckets) == [str(number) for number in range(40, 50)]


def layers(app):
    while hasattr(app, "_app"):
        yield app
        app = app._app


def test_too_many_at_a_time_are_turned_away():
    async def story():
        app = Echo()
        app.gate.clear()
        guarded = with_limits(app, LimitsConfig(log=None, max_concurrent=2))
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(guarded), base_url="http://test"
        ) as client:
            running = [
                asyncio.ensure_future(client.post(CHAT, content=b"{}"))
                for _ in range(2)
            ]
            while len(app.bodies) < 2:
                await asyncio.sleep(0)
            response = await client.post(CHAT)
            assert response.status_code == 429
            assert response.headers["retry-after"] == "1"
            app.gate.set()
            for response in await asyncio.gather(*running):
                assert response.status_code == 200
            # Their places are free again.
            assert (await client.post(CHAT)).status_code == 200

    asyncio.run(story())


def test_each_request_is_one_line_of_json_without_its_text():
    lines = []
    ticks = itertools.count()
    config = {
        "log": lines.append,
        "clock": lambda: next(ticks) / 4,
        "max_body_bytes": 30,
        "api_key": "secret",
    }
    key = {"authorization": "Bearer secret"}
    run(
        [
            (
                "POST",
                CHAT + "?q=hidden",
                {"content": b'"words"', "headers": key},
            ),
            ("POST", PREDICT, {"content": b"words" * 9, "headers": key}),
            ("GET", "/a%0Ab" + "c" * 999, {}),
        ],
        **config,
    )
    assert not any("\n" in line for line in lines)
    assert not any("words" in line or "secret" in line for line in lines)
    assert not any("hidden" in line for line in lines)
    told = [json.loads(line) for line in lines]
    assert [one["status"] for one in told] == [200, 413, 401]
    assert told[0]["method"] == "POST"
    assert told[0]["path"] == CHAT
    assert told[0]["ms"] == 250
    assert (told[0]["request_bytes"], told[0]["response_bytes"]) == (7, 7)
    assert told[0]["completion_tokens"] == 3
    assert len({one["id"] for one in told}) == 3
    assert len(told[2]["path"]) < 300
    lines.clear()
    run(
        [("POST", CHAT, {"content": b'"words"', "headers": key})],
        **config,
        has_log_texts=True,
    )
    assert json.loads(lines[0])["request"] == '"words"'


def test_a_request_keeps_its_id_or_gets_one():
    lines = []
    for sent, is_kept in (("abc-1.2_X", True), ("a b", False), ("", False)):
        response = one(
            "POST",
            CHAT,
            headers={"x-request-id": sent},
            config={"log": lines.append},
        )
        told = response.headers["x-request-id"]
        assert (told == sent) == is_kept
        assert json.loads(lines[-1])["id"] == told
    refused = one("POST", CHAT, config={"api_key": "k"})
    assert refused.headers["x-request-id"]


def test_the_start_of_the_server_passes():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    config = LimitsConfig(log=None, api_key="k", requests_per_minute=1)
    asyncio.run(with_limits(app, config)({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]


@pytest.mark.parametrize(
    "wrong", [{"max_body_bytes": 0}, {"api_key": ""}, {"max_concurrent": -1}]
)
def test_impossible_limits_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LimitsConfig(**wrong)
