import asyncio
import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.request

import grpc
import httpx
import pytest

from kerasgpt.config import InputError
from kerasgpt.files import write_manifest
from kerasgpt.serving import model_store
from kerasgpt.serving.metrics import Metrics
from kerasgpt.serving.model_store import ModelConfig, ModelStore
from kerasgpt.serving.openai import UnknownModel
from kerasgpt.serving.server import (
    ServeConfig,
    StoreBackends,
    UpstreamBackends,
    _bound,
    build_app,
    config_files,
    docker_command,
    serve,
)
from tests.serving.fake_backend import FakeBackend
from tests.serving.toy_models import save_arithmetic

ROOT = pathlib.Path(__file__).resolve().parents[2]
PREDICT = ("POST", "/v1/models/toy:predict")
WAIT_S = 60


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """A folder of versions 1 and 2, that add 1 and 2."""
    base_path = tmp_path_factory.mktemp("models")
    for version in (1, 2):
        save_arithmetic(base_path, version, addend=float(version))
    return base_path


@pytest.fixture
def folder(versions, tmp_path):
    """A folder named toy with version 1."""
    shutil.copytree(versions / "1", tmp_path / "toy" / "1")
    return tmp_path / "toy"


def put(versions, folder, version):
    shutil.copytree(versions / "2", folder / ".copy")
    write_manifest(folder / ".copy")
    (folder / ".copy").rename(folder / str(version))


class Backend(FakeBackend):
    is_closed = False

    def load(self):
        return 1, 7

    def close(self):
        self.is_closed = True


@contextlib.contextmanager
def running(folder, *, backends=None, **flags):
    """Gives a function that asks an application: an httpx.Response."""
    paths = {"metrics_path": flags.pop("metrics_path", None)}
    config = ServeConfig(folder=str(folder), **flags)
    policy = {"policy": "all"}
    store = ModelStore(
        [ModelConfig("toy", folder, **policy)],
        poll_seconds=0,
        make_backend=lambda module, path: Backend(),
    )
    store.start()
    app, api = build_app(
        config, store, backends or StoreBackends(store), **paths
    )
    with contextlib.closing(api), contextlib.closing(store):

        def ask(method, path, body=None, **options):
            return asyncio.run(asked(app, method, path, body, **options))

        ask.app, ask.store = app, store
        yield ask


async def asked(app, method, path, body=None, **options):
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://server"
    ) as client:
        if isinstance(body, dict):
            options["json"] = body
        else:
            options["content"] = body
        return await client.request(method, path, **options)


@pytest.fixture
def chatting(folder, monkeypatch):
    """Every toy counts as an export of ours."""
    monkeypatch.setattr(model_store, "_BACKEND_SIGNATURE", "repeat")
    write_manifest(folder / "1")


# Flags.


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, "received none"),
        ({"folder": "a", "model_base_path": "b"}, "folder and model_base_path"),
        ({"upstream": "http://x"}, "needs the model's --model_name"),
        ({"folder": "a", "rest_api_port": 70_000}, "from 0 to 65535"),
        ({"folder": "a", "port": -1}, "from 0 to 65535"),
        ({"folder": "a", "rest_api_timeout_in_ms": 0}, "at least 1"),
        ({"folder": "a", "max_body_bytes": 0}, "at least 1"),
        ({"folder": "a", "shutdown_seconds": -1}, "at least 0"),
        (
            {"folder": "a", "file_system_poll_wait_seconds": float("nan")},
            "at least 0",
        ),
        ({"folder": "a", "host": "0.0.0.0"}, "give a key"),
        ({"folder": "a", "host": "shop.example"}, "give a key"),
    ],
)
def test_bad_flags_are_refused(flags, words):
    with pytest.raises(InputError, match=words):
        ServeConfig(**flags)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_key_and_others_may_have_one(host):
    assert ServeConfig(folder="a", host=host).api_key == ""
    assert ServeConfig(folder="a", host="0.0.0.0", api_key="k").api_key == "k"


def test_models_are_found(folder, tmp_path):
    (model,) = ServeConfig(folder=str(folder)).models()
    assert (model.name, model.base_path) == ("toy", folder)
    flags = {"model_base_path": str(folder), "model_name": "other"}
    (model,) = ServeConfig(**flags).models()
    assert (model.name, model.base_path) == ("other", folder)
    file = tmp_path / "model.config"
    file.write_text(
        f'model_config_list {{ config {{ name: "b" base_path: "{folder}" }} }}'
    )
    (model,) = ServeConfig(model_config_file=str(file)).models()
    assert model.name == "b"


def test_folders_that_are_none_are_refused(folder):
    with pytest.raises(InputError, match="no such folder"):
        ServeConfig(folder=str(folder / "none")).models()
    with pytest.raises(InputError, match="is a version; give the folder"):
        ServeConfig(folder=str(folder / "1")).models()


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (
            "prometheus_config { enable: true }",
            "/monitoring/prometheus/metrics",
        ),
        ('prometheus_config: {\n  enable: true, path: "/m" }', "/m"),
        ("prometheus_config { enable: false }", None),
        ("prometheus_config { }", None),
    ],
)
def test_the_monitoring_file_says_where_metrics_are(tmp_path, text, path):
    file = tmp_path / "monitoring.config"
    file.write_text(text)
    config = ServeConfig(folder="a", monitoring_config_file=str(file))
    assert config.metrics_path() == path


def test_a_bad_monitoring_file_is_refused(tmp_path):
    file = tmp_path / "monitoring.config"
    config = ServeConfig(folder="a", monitoring_config_file=str(file))
    with pytest.raises(InputError, match="cannot be read"):
        config.metrics_path()
    file.write_text("enable: true")
    with pytest.raises(InputError, match="must hold prometheus_config"):
        config.metrics_path()
    assert ServeConfig(folder="a").metrics_path() is None
    assert ServeConfig(folder="a", metrics=True).metrics_path()


@pytest.mark.parametrize("what", ["empty", "broken", "taken", "upstream"])
def test_what_cannot_be_served_is_told_in_a_line(folder, what):
    flags = {"folder": str(folder), "rest_api_port": 0}
    with socket.create_server(("127.0.0.1", 0)) as other:
        if what == "empty":
            shutil.rmtree(folder / "1")
        elif what == "broken":
            (folder / "1" / "saved_model.pb").unlink()
        elif what == "taken":
            flags["rest_api_port"] = other.getsockname()[1]
        else:
            port = other.getsockname()[1]
            other.close()
            url = f"http://127.0.0.1:{port}"
            flags |= {"folder": "", "upstream": url, "model_name": "toy"}
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(InputError) as caught:
            serve(ServeConfig(**flags))
    assert "\n" not in str(caught.value)
    assert signal.getsignal(signal.SIGTERM) is before


def test_small_answers_do_not_wait_for_more_to_send():
    # asyncio looks at the protocol before it switches Nagle's algorithm off.
    with _bound(ServeConfig(folder="a", rest_api_port=0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP


# Routes.


def test_health_page_and_tensorflow_serving_live_at_one_port(folder):
    with running(folder) as ask:
        assert ask("GET", "/healthz").json() == {"status": "ok"}
        assert ask("GET", "/readyz").json() == {"status": "ready"}
        page = ask("GET", "/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        for name, kind in (("page.js", "javascript"), ("page.css", "css")):
            file = ask("GET", f"/{name}")
            assert file.status_code == 200
            assert kind in file.headers["content-type"]
            assert file.headers["x-content-type-options"] == "nosniff"
        answer = ask(*PREDICT, '{"instances": [1.0]}')
        assert answer.json() == {"predictions": [1.5]}
        assert ask("GET", "/v1/models/toy").status_code == 200
        assert ask("GET", "/v1/models").json()["data"] == []
        assert ask("GET", "/v1/nothing").json() == {
            "error": "Malformed request: GET /v1/nothing"
        }
        for path in ("/nothing", "/page/../server.py", "/..%2fserver.py"):
            assert ask("GET", path).status_code == 404


def test_readiness_ends_with_the_models(folder):
    with running(folder) as ask:
        ask.store.close()
        assert ask("GET", "/readyz").status_code == 503
        assert ask("GET", "/healthz").status_code == 200


def test_limits_stand_before_all_routes(folder):
    with running(folder, api_key="secret", max_body_bytes=100) as ask:
        for path in ("/", "/page.js", "/healthz", "/readyz"):
            assert ask("GET", path).status_code == 200
        assert ask("GET", "/v1/models/toy").status_code == 401
        assert ask(*PREDICT, '{"instances": [1.0]}').status_code == 401
        key = {"headers": {"Authorization": "Bearer secret"}}
        body = '{"instances": [1.0]}'
        assert ask(*PREDICT, body, **key).status_code == 200
        assert ask(*PREDICT, body + " " * 100, **key).status_code == 413
        deep = '{"instances": ' + "[" * 20 + "]" * 20 + "}"
        assert ask(*PREDICT, deep, **key).status_code == 400


def test_metrics_are_served_where_asked(folder):
    with running(folder) as ask:
        path = "/monitoring/prometheus/metrics"
        assert ask("GET", path).status_code == 404
    with running(folder, metrics_path="/m") as ask:
        ask(*PREDICT, '{"instances": [1.0]}')
        told = ask("GET", "/m")
        assert told.headers["content-type"].startswith("text/plain")
        assert 'model_name="toy",model_version="1",status="OK"} 1' in told.text


def chat(model=None, **fields):
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    if model:
        body["model"] = model
    return ("POST", "/v1/chat/completions", body)


def test_openai_s_routes_ask_the_backends_of_the_store(
    chatting, versions, folder
):
    put(versions, folder, 2)
    with running(folder, metrics_path="/m") as ask:
        with ask.store.lease("toy", version=1) as served:
            served.backend.reply = "the old one"
        names = [one["id"] for one in ask("GET", "/v1/models").json()["data"]]
        assert names == ["toy", "toy@2", "toy@1"]
        for model, reply in (
            (None, "Yes, we do."),
            ("toy", "Yes, we do."),
            ("toy@2", "Yes, we do."),
            ("toy@1", "the old one"),
        ):
            answer = ask(*chat(model, max_tokens=20)).json()
            assert answer["choices"][0]["message"]["content"] == reply
        for model in ("none", "toy@3", "toy@x", f"toy@{'9' * 30}", "@1"):
            answer = ask(*chat(model))
            assert answer.status_code == 404
            assert "known: toy, toy@2, toy@1" in answer.text
        metrics = ask("GET", "/m").text
        labels = 'model_name="toy",model_version="2",status="OK"'
        assert f"request_count{{{labels}}} 3" in metrics
        kind = 'model_name="toy",kind="completion_tokens"'
        assert f"kerasgpt_tokens_total{{{kind}}} 44" in metrics
        assert 'kerasgpt_queue_depth{queue="engine"} 7' in metrics


def test_a_version_stays_until_its_stream_ends(chatting, versions, folder):
    """A new version comes while an answer of the old one is streamed."""
    with running(folder) as ask:
        ask.store.models["toy"] = ModelConfig("toy", folder)
        with ask.store.lease("toy") as served:
            old = served.backend
        seen = []

        async def reply():
            chunks = []

            async def send(message):
                chunks.append(message.get("body", b""))
                if len(chunks) == 3:
                    put(versions, folder, 2)
                    ask.store.poll()
                    ask.store.poll()
                    seen.append((ask.store.versions("toy"), old.is_closed))

            body = json.dumps(chat(stream=True)[2]).encode()
            given = [{"type": "http.request", "body": body}]
            left = asyncio.Event()

            async def receive():
                if given:
                    return given.pop()
                await left.wait()

            headers = [(b"content-type", b"application/json")]
            scope = {
                "type": "http",
                "http_version": "1.1",
                "method": "POST",
                "path": "/v1/chat/completions",
                "raw_path": b"/v1/chat/completions",
                "root_path": "",
                "scheme": "http",
                "query_string": b"",
                "headers": [
                    *headers,
                    (b"content-length", str(len(body)).encode()),
                ],
                "client": ("127.0.0.1", 1),
                "server": ("server", 80),
            }
            await ask.app(scope, receive, send)
            return b"".join(chunks)

        text = asyncio.run(reply())
        assert seen == [([2], False)]
        assert b"data: [DONE]" in text
        ask.store.poll()
        assert old.is_closed


def test_models_without_our_signatures_do_not_chat(folder):
    with running(folder) as ask:
        answer = ask(*chat("toy"))
        assert answer.status_code == 404
        assert "known: none" in answer.text
        assert "any model does not chat here" in ask(*chat()).text


def test_another_server_s_model_is_found_by_its_name(folder):
    backend = FakeBackend("from afar")
    backends = UpstreamBackends("far", backend)
    with running(folder, backends=backends) as ask:
        answer = ask(*chat("far", max_tokens=20)).json()
        assert answer["choices"][0]["message"]["content"] == "from afar"
        (model,) = ask("GET", "/v1/models").json()["data"]
        assert model["id"] == "far"
        assert ask(*chat("toy")).status_code == 404
    with pytest.raises(UnknownModel):
        backends.find("other")
    assert backends.find(None) is backend


def test_leases_end_when_a_request_fails(chatting, folder):
    store = ModelStore(
        [ModelConfig("toy", folder)],
        poll_seconds=0,
        make_backend=lambda module, path: Backend(),
    )
    store.start()
    backends = StoreBackends(store)

    async def app(scope, receive, send):
        backends.find("toy")
        raise ValueError("a fault")

    scope = {"path": "/v1/completions"}
    with pytest.raises(ValueError, match="a fault"):
        asyncio.run(backends.during_requests(app, Metrics())(scope, None, None))
    with store.lease("toy") as served:
        old = served.backend
    shutil.rmtree(folder / "1")
    store.poll()
    store.poll()
    assert old.is_closed


# What is printed for TensorFlow Serving.


def test_the_docker_command_names_model_folder_and_image(folder):
    lines = list(docker_command(ServeConfig(folder=str(folder))))
    text = "\n".join(lines)
    assert "MODEL_NAME=toy" in text
    assert f'"{folder}:/models/toy:ro"' in text
    assert "tensorflow/serving:2." in text
    assert lines[-1].startswith("curl -d ")
    assert "/v1/models/toy:predict" in lines[-1]
    # A shell would take what stands beside the command as one of its own.
    end = lines.index("")
    assert all(line.endswith("\\") for line in lines[: end - 1])
    assert all(line[0] == "#" for line in lines[end + 1 : -1])


def test_the_docker_command_is_for_one_model(folder, tmp_path):
    shutil.rmtree(folder / "1")
    with pytest.raises(InputError, match="no version"):
        list(docker_command(ServeConfig(folder=str(folder))))


def test_the_printed_config_is_read_back(folder, tmp_path):
    file = tmp_path / "model.config"
    file.write_text(
        f"""model_config_list {{
          config {{ name: "a" base_path: "{folder}"
            model_version_policy {{ specific {{ versions: 1 }} }}
            version_labels {{ key: "stable" value: 1 }} }}
          config {{ name: "b" base_path: "{folder}"
            model_version_policy {{ all {{}} }} }} }}"""
    )
    config = ServeConfig(model_config_file=str(file))
    text = "\n".join(config_files(config))
    printed, batching = text.split("# batching.config")
    again = tmp_path / "again.config"
    again.write_text(printed)
    a, b = model_store.read_model_config(again)
    assert (a.name, a.policy, a.versions) == ("a", "specific", (1,))
    assert a.labels == {"stable": 1}
    assert (b.policy, b.base_path) == ("all", pathlib.Path("/models/b"))
    sizes = [
        int(line.split()[-1])
        for line in batching.splitlines()
        if line.startswith("allowed_batch_sizes")
    ]
    assert sizes == sorted(sizes)
    assert f"max_batch_size {{ value: {sizes[-1]} }}" in batching


# The real process.


@pytest.fixture
def process(folder):
    """A server on free ports: its process, its places, its log."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        grpc_port = free.getsockname()[1]
    command = [sys.executable, "-m", "kerasgpt.cli", "serve", str(folder)]
    flags = ["--rest_api_port=0", "--file_system_poll_wait_seconds=0.05"]
    log = folder.parent / "log"
    with (
        open(log, "w") as file,
        subprocess.Popen(
            [*command, *flags, f"--port={grpc_port}"],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        ) as process,
    ):
        try:
            first = process.stdout.readline()
            assert first.startswith("http://127.0.0.1:"), first
            place = first.split("/")[2]
            yield types.SimpleNamespace(
                process=process,
                place=place,
                grpc_place=f"127.0.0.1:{grpc_port}",
                log=log,
            )
        finally:
            process.kill()


def predict(place, body='{"instances": [1.0]}'):
    url = f"http://{place}/v1/models/toy:predict"
    with urllib.request.urlopen(url, body.encode(), timeout=WAIT_S) as reply:
        return json.load(reply)["predictions"][0]


def test_a_server_swaps_versions_under_load_and_ends_gracefully(
    process, versions, folder
):
    place = process.place
    stop, answers, failures = threading.Event(), [], []

    def ask():
        while not stop.is_set():
            try:
                answers.append(predict(place))
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    put(versions, folder, 2)
    wait_for(lambda: 2.5 in answers or failures)
    broken = shutil.copytree(versions / "1", folder / ".copy")
    (broken / "saved_model.pb").write_bytes(b"half a cop")
    broken.rename(folder / "3")
    wait_for(lambda: state(place, 3) == "END" or failures)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert set(answers) == {1.5, 2.5}
    assert predict(place) == 2.5
    with grpc.insecure_channel(process.grpc_place) as channel:
        grpc.channel_ready_future(channel).result(WAIT_S)

    # A connection that the server knows, and a request that takes a while.
    connection = http.client.HTTPConnection(place, timeout=WAIT_S)
    connection.request("GET", "/readyz")
    assert connection.getresponse().read() == b'{"status":"ready"}'
    body = '{"signature_name": "spin", "inputs": [20000]}'
    connection.request(*PREDICT, body)
    process.process.send_signal(signal.SIGTERM)
    assert connection.getresponse().status == 200
    assert process.process.wait(WAIT_S) == 143
    with pytest.raises(urllib.error.URLError):
        predict(place)
    lines = process.process.stdout.read().splitlines()
    assert lines[0].startswith("  curl -d ")
    assert f'base_url="http://{place}/v1"' in lines[1]
    log = process.log.read_text()
    assert "toy version 2 is served" in log
    assert "toy version 3 is refused: " in log
    assert '"path": "/v1/models/toy:predict"' in log
    assert log.splitlines()[-1] == "stopped."


def state(place, version):
    url = f"http://{place}/v1/models/toy"
    with urllib.request.urlopen(url, timeout=WAIT_S) as reply:
        told = json.load(reply)["model_version_status"]
    return {int(one["version"]): one["state"] for one in told}.get(version)


def wait_for(condition):
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
