import json
import socket
import subprocess
import sys
import threading

import httpx
import pytest

from kerasgpt.config import InputError
from kerasgpt.serving.client import (
    GrpcClient,
    OpenAIClient,
    RestClient,
    ServerError,
)

URL = "http://shop.test:8501"


class Server:
    """Answers with what it was given, in order, and keeps the requests."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return answer
        return httpx.Response(200, json=answer)

    @property
    def sent(self):
        return [json.loads(request.content) for request in self.requests]

    @property
    def paths(self):
        return [request.url.raw_path.decode() for request in self.requests]


def rest(server, model="shop", **options):
    transport = httpx.MockTransport(server)
    return RestClient(URL, model, transport=transport, **options)


def openai(server, url=URL, **options):
    return OpenAIClient(url, transport=httpx.MockTransport(server), **options)


def user(content):
    return {"role": "user", "content": content}


def test_importing_the_client_loads_no_tensorflow():
    code = (
        "import sys, kerasgpt.serving.client as client\n"
        "client.RestClient('http://a', 'b'); client.OpenAIClient('http://a')\n"
        "print([name for name in ('tensorflow', 'keras', 'grpc')"
        " if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_columns_and_rows_are_sent_as_the_contract_says():
    server = Server({"outputs": {"y": [1]}}, {"predictions": [2]})
    client = rest(server)
    assert client.predict("sums", {"x": [[1, 2]]}) == {"y": [1]}
    assert client.predict_rows("sums", [[1, 2]]) == [2]
    assert server.paths == ["/v1/models/shop:predict"] * 2
    assert server.sent == [
        {"signature_name": "sums", "inputs": {"x": [[1, 2]]}},
        {"signature_name": "sums", "instances": [[1, 2]]},
    ]


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({}, "/v1/models/a%2Fb"),
        ({"version": 3}, "/v1/models/a%2Fb/versions/3"),
        ({"label": "best one"}, "/v1/models/a%2Fb/labels/best%20one"),
    ],
)
def test_version_and_label_are_part_of_the_path(options, path):
    state = {"version": "3", "state": "AVAILABLE"}
    definitions = {"signature_def": {"signature_def": {"sums": {}}}}
    server = Server(
        {"outputs": 1},
        {"model_version_status": [state]},
        {"metadata": definitions},
    )
    client = rest(server, "a/b", **options)
    assert client.predict("sums", {}) == 1
    assert client.status() == {3: "AVAILABLE"}
    assert client.metadata() == {"sums": {}}
    assert server.paths == [f"{path}:predict", path, f"{path}/metadata"]


def test_texts_conversations_and_scores():
    server = Server(
        {"outputs": {"text": ["a", "b"], "num_tokens": [1, 1]}},
        {"outputs": {"text": ["c", "d"]}},
        {"outputs": {"log_likelihood": [-1.5], "num_tokens": [3]}},
    )
    client = rest(server)
    sampling = {"max_new_tokens": 5, "temperature": 1, "top_k": 4, "seed": 7}
    assert client.generate(["x", "y"], **sampling) == ["a", "b"]
    system = {"role": "system", "content": "Be kind."}
    assert client.chat([[user("你好")], [system, user("")]]) == ["c", "d"]
    assert client.score(["x"]) == [(-1.5, 3)]
    generate, chat, score = server.sent
    assert generate == {
        "signature_name": "generate",
        "inputs": {
            "prompt": ["x", "y"],
            "max_new_tokens": [5, 5],
            "temperature": [1.0, 1.0],
            "top_k": [4, 4],
            "top_p": [1.0, 1.0],
            "seed": [7, 8],
        },
    }
    assert chat["inputs"]["roles"] == [["user", ""], ["system", "user"]]
    assert chat["inputs"]["contents"] == [["你好", ""], ["Be kind.", ""]]
    assert chat["inputs"]["temperature"] == [0.0, 0.0]
    assert score == {"signature_name": "score", "inputs": {"text": ["x"]}}


def test_the_key_travels_as_bearer_token():
    server = Server({"data": []}, {"data": []})
    openai(server, api_key="secret").models()
    openai(server).models()
    with_key, without = server.requests
    assert with_key.headers["authorization"] == "Bearer secret"
    assert "authorization" not in without.headers


@pytest.mark.parametrize("url", [URL, f"{URL}/", f"{URL}/v1", f"{URL}/v1/"])
def test_openai_calls(url):
    message = {"role": "assistant", "content": "Yes."}
    server = Server(
        {"data": [{"id": "shop"}, {"id": "other"}]},
        {"choices": [{"message": message}]},
        {"choices": [{"text": " more"}]},
        {"model_max_length": 64},
        {"tokens": [97, 98]},
    )
    with openai(server, url) as client:
        assert client.models() == ["shop", "other"]
        assert client.chat([user("?")], model="shop", seed=1) == "Yes."
        assert client.complete("a", model="shop", max_tokens=2) == " more"
        assert client.context_length(model="a&b") == 64
        assert client.tokenize("ab", model="shop") == [97, 98]
    assert server.paths == [
        "/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
        "/tokenizer_info?model=a%26b",
        "/tokenize",
    ]
    posted = [one for one in server.requests if one.method == "POST"]
    for one in posted:
        assert one.headers["content-type"] == "application/json"
    bodies = [json.loads(one.content) for one in posted]
    assert bodies == [
        {"model": "shop", "messages": [user("?")], "seed": 1},
        {"model": "shop", "prompt": "a", "max_tokens": 2},
        {"model": "shop", "prompt": "ab"},
    ]


def delta(**values):
    return {"choices": [{"index": 0, "delta": values, "finish_reason": None}]}


def events(*values, end=b"data: [DONE]\n\n", size=7):
    """Returns a streamed reply, cut without regard to what it holds."""
    content = b"".join(
        b"data: %s\n\n" % json.dumps(one, ensure_ascii=False).encode()
        for one in values
    )
    content = b": a comment\n\n" + content + end
    cut = range(0, len(content), size)
    return httpx.Response(200, content=(content[at : at + size] for at in cut))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_streamed_answer_comes_in_its_pieces(size):
    pieces = ["你好", " a\nb", "\u2028\x85 🙂"]
    reply = events(
        delta(role="assistant", content=""),
        *(delta(content=piece) for piece in pieces),
        delta(),
        {"choices": [], "usage": {"total_tokens": 3}},
        size=size,
    )
    server = Server(reply)
    stream = openai(server).stream_chat([user("?")], model="shop", top_p=0.5)
    assert list(stream) == pieces
    assert server.sent == [
        {
            "model": "shop",
            "messages": [user("?")],
            "stream": True,
            "top_p": 0.5,
        }
    ]


def test_a_streamed_answer_with_carriage_returns_is_read():
    content = b'data: {"choices":[{"delta":{"content":"a"}}]}\r\n\r\n'
    reply = httpx.Response(200, content=content + b"data: [DONE]\r\n\r\n")
    assert list(openai(Server(reply)).stream_chat([], model="m")) == ["a"]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (events(delta(content="a"), end=b""), "the answer broke off"),
        (
            events(delta(content="a"), {"error": {"message": "too\nslow"}}),
            "test:8501: too slow",
        ),
        (events(delta(content="a"), {"choices": 3}), "not one of this API"),
        (
            events(delta(content="a"), end=b"data: {oops\n\n"),
            "not one of this API",
        ),
    ],
)
def test_a_streamed_answer_that_fails_is_told_after_its_pieces(reply, words):
    stream = openai(Server(reply)).stream_chat([user("?")], model="shop")
    assert next(stream) == "a"
    with pytest.raises(ServerError, match=words):
        next(stream)


def failure(status, error):
    return httpx.Response(status, json={"error": error})


@pytest.mark.parametrize(
    ("answer", "words", "status"),
    [
        (failure(404, "Servable not\n found"), "404: Servable not found", 404),
        (failure(429, {"message": "busy"}), "429: busy", 429),
        (httpx.Response(502, text="<html>"), "502: Bad Gateway", 502),
        (httpx.Response(400, json={"error": {}}), "400: Bad Request", 400),
        (failure(400, "x" * 9999), "400: " + "x" * 500 + "$", 400),
        (httpx.Response(200, text="<html>"), "not one of this API", None),
        (httpx.Response(200, json=[1]), "not one of this API", None),
        (httpx.ConnectError("refused"), "no answer: refused", None),
        (httpx.ReadTimeout(""), "no answer: ReadTimeout", None),
    ],
)
def test_what_fails_is_told_in_one_line(answer, words, status):
    calls = [
        lambda server: rest(server).status(),
        lambda server: rest(server).predict("a", {}),
        lambda server: openai(server).models(),
        lambda server: openai(server).chat([], model="m"),
    ]
    if status or isinstance(answer, Exception):
        calls.append(
            lambda server: list(openai(server).stream_chat([], model="m"))
        )
    for call in calls:
        with pytest.raises(ServerError, match=words) as caught:
            call(Server(answer))
        assert isinstance(caught.value, InputError)
        assert caught.value.status == status
        assert str(caught.value).startswith(URL)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind", [OpenAIClient, lambda url: RestClient(url, "m")]
)
@pytest.mark.parametrize("url", ["127.0.0.1:8501", "http://a:port", ""])
def test_what_is_no_url_is_refused(kind, url):
    with pytest.raises(InputError, match=f"^{url}: "):
        kind(url)


def test_values_that_json_lacks_are_refused():
    client = openai(Server())
    with pytest.raises(InputError, match=f"^{URL}: cannot be asked: "):
        client.complete("a", model="m", temperature=float("nan"))
    with pytest.raises(InputError, match=f"^{URL}: cannot be asked: "):
        list(client.stream_chat([], model="m", top_p=float("inf")))
    with pytest.raises(InputError, match="must be of ASCII"):
        openai(Server(), api_key="schlüssel")


@pytest.fixture
def closed_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        yield one.getsockname()[1]


def test_no_server_is_told(closed_port):
    client = OpenAIClient(f"http://127.0.0.1:{closed_port}")
    with pytest.raises(ServerError, match=f"{closed_port}: no answer: "):
        client.models()
    with (
        GrpcClient(f"127.0.0.1:{closed_port}", "shop", timeout_s=5) as client,
        pytest.raises(ServerError, match=f"{closed_port}: UNAVAILABLE: "),
    ):
        client.status()


def test_leaving_a_streamed_answer_closes_the_connection():
    """A real socket: the server sees that nobody listens any more."""
    listener = socket.create_server(("127.0.0.1", 0))
    left = threading.Event()

    def serve():
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            body = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + body)
            connection.settimeout(20)
            while connection.recv(65536):
                pass
            left.set()

    thread = threading.Thread(target=serve)
    thread.start()
    port = listener.getsockname()[1]
    with listener, OpenAIClient(f"http://127.0.0.1:{port}") as client:
        stream = client.stream_chat([user("?")], model="m")
        assert next(stream) == "a"
        stream.close()
        thread.join(20)
    assert left.is_set()
