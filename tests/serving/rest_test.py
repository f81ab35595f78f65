"""The cases are those of TensorFlow Serving's REST contract."""

import asyncio
import contextlib
import json
import threading

import httpx
import pytest

from kerasgpt.serving.metrics import Metrics
from kerasgpt.serving.model_store import ModelConfig, ModelStore
from kerasgpt.serving.rest import MAX_ROWS, RestAPI
from tests.serving.toy_models import (
    save_arithmetic,
    save_documented_half_plus_two,
)

TOY = "/v1/models/toy"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two versions of a toy, the documented model, and a name with a space."""
    base_path = tmp_path_factory.mktemp("models")
    for version in (1, 123):
        save_arithmetic(base_path / "toy", version)
    save_documented_half_plus_two(base_path / "half_plus_two", 123)
    save_arithmetic(base_path / "a b", 1)
    options = {"policy": "all", "labels": {"stable": 1, "a/b": 123}}
    store = ModelStore(
        [
            ModelConfig("toy", base_path / "toy", **options),
            ModelConfig("half_plus_two", base_path / "half_plus_two"),
            ModelConfig("a b", base_path / "a b"),
        ],
        poll_seconds=0,
    )
    store.start()
    return store


@pytest.fixture
def ask(store):
    """Returns a function that sends a request: (status, JSON, response)."""
    with contextlib.closing(RestAPI(store)) as api:
        yield lambda *request, **options: send(api, *request, **options)


def send(api, method, path, body=None, **options):
    async def request():
        transport = httpx.ASGITransport(api)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://server"
        ) as client:
            return await client.request(method, path, content=body, **options)

    response = asyncio.run(request())
    is_json = response.headers["content-type"] == "application/json"
    told = (
        json.loads(response.content) if is_json and response.content else None
    )
    return response.status_code, told, response


def predict(ask, body, path=TOY, task="predict"):
    body = body if isinstance(body, (str, bytes)) else json.dumps(body)
    status, told, _ = ask("POST", f"{path}:{task}", body)
    return status, told


# Predict.


def test_the_documented_curl_example(ask):
    body = '{"instances": [1.0, 2.0, 5.0]}'
    path = "/v1/models/half_plus_two"
    expected = {"predictions": [2.5, 3.0, 4.5]}
    assert predict(ask, body, path) == (200, expected)


def test_predict_rest_in_row_and_columnar_form(ask):
    values = [2.0, 3.0, 4.0]
    expected = [3.0, 3.5, 4.0]
    for body, key in (
        ({"instances": values}, "predictions"),
        ({"instances": [{"x": value} for value in values]}, "predictions"),
        ({"inputs": values}, "outputs"),
        ({"inputs": {"x": values}, "more": 1}, "outputs"),
    ):
        assert predict(ask, body) == (200, {key: expected})


def test_several_inputs_and_outputs(ask):
    rows = [{"count": 1, "text": "a"}, {"count": 20, "text": {"b64": "Yg=="}}]
    outputs = {"copies": "1a", "copies_bytes": {"b64": "MWE="}, "length": 2}
    body = {"signature_name": "repeat", "instances": rows}
    status, told = predict(ask, body)
    assert (status, told["predictions"][0]) == (200, outputs)
    assert told["predictions"][1]["length"] == 3
    columns = {"count": [1], "text": ["a"]}
    body = {"signature_name": "repeat", "inputs": columns}
    assert predict(ask, body) == (
        200,
        {"outputs": {name: [value] for name, value in outputs.items()}},
    )


@pytest.mark.parametrize(
    "path",
    [
        *(TOY, f"{TOY}/versions/1", f"{TOY}/versions/0123"),
        *(f"{TOY}/labels/stable", f"{TOY}/labels/a%2Fb", "/V1/MODELS/toy"),
        *(f"{TOY}/VERSIONS/1", "/v1/models/t%6fy"),
    ],
)
def test_paths_that_lead_to_the_model(ask, path):
    assert predict(ask, {"instances": [1.0]}, path)[0] == 200
    assert ask("POST", f"{path}:PREDICT?a=b", '{"inputs": [1]}')[0] == 200


def test_a_name_is_percent_decoded(ask):
    body, expected = {"instances": [1.0]}, {"predictions": [2.5]}
    assert predict(ask, body, "/v1/models/a%20b") == (200, expected)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("", 400, "JSON Parse error: The document is empty"),
        ("{", 400, "JSON Parse error: Missing a name for object member. at "
         "offset: 1"),
        ("{}", 400, "Missing 'inputs' or 'instances' key"),
        ({"instances": ["a"]}, 400, "Failed to process element: 0 of "
         "'instances' list. Error: INVALID_ARGUMENT: JSON Value: \"a\" Type: "
         "String is not of expected type: float"),
        ({"signature_name": "none"}, 400, 'Serving signature name: "none" not '
         "found in signature def"),
        ({"signature_name": "sum_up", "instances": [1.0]}, 400,
         "Tensor name: total has no shape information "),
        ({"signature_name": "repeat", "inputs": {"count": [-1], "text": [""]}},
         400, "count must be at least 0"),
    ],
)  # fmt: skip
def test_errors_have_the_words_of_the_contract(ask, body, status, message):
    assert predict(ask, body) == (status, {"error": message})
    assert predict(ask, {"inputs": [1.0]}) == (200, {"outputs": [2.5]})


def test_a_scalar_may_leave_in_columnar_form(ask):
    body = {"signature_name": "sum_up", "inputs": [1.0, 2.0]}
    assert predict(ask, body) == (200, {"outputs": 3.0})


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/v1/models/none", 404, "Servable not found for request: "
         "Latest(none)"),
        (f"{TOY}/versions/7", 404, "Servable not found for request: "
         "Specific(toy, 7)"),
        (f"{TOY}/labels/none", 400, "Unrecognized servable version label: "
         "none"),
        (f"{TOY}/versions/{10**30}", 400, f"Failed to convert version: "
         f"{10**30} to numeric."),
    ],
)  # fmt: skip
def test_no_such_model(ask, path, status, message):
    assert predict(ask, '{"instances": [1]}', path) == (
        status,
        {"error": message},
    )


def test_bad_json_is_told_before_an_unknown_model(ask):
    path = "/v1/models/none"
    assert predict(ask, "[", path)[0] == 400
    assert predict(ask, '{"signature_name": 1}', path)[0] == 400
    # The signature and the values are looked at afterwards.
    assert predict(ask, '{"signature_name": "none"}', path)[0] == 404


@pytest.mark.parametrize(
    ("task", "noun"),
    [("classify", "classification"), ("regress", "regression")],
)
def test_classify_and_regress_need_examples_and_their_signature(
    ask, task, noun
):
    status, told = predict(ask, {"examples": []}, task=task)
    assert (status, "empty array" in told["error"]) == (400, True)
    body = {"examples": [{"age": 20}]}
    assert predict(ask, body, task=task) == (
        400,
        {
            "error": f"Expected {noun} signature method_name to be "
            f"tensorflow/serving/{task}. Was: tensorflow/serving/predict"
        },
    )
    assert predict(ask, body, "/v1/models/none", task)[0] == 404


# Other routes.


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{TOY}:predict"),
        ("POST", TOY),
        ("POST", f"{TOY}:predict/"),
        ("POST", f"{TOY}:generate"),
        ("POST", f"{TOY}/versions/x:predict"),
        ("PUT", f"{TOY}:predict"),
        ("DELETE", TOY),
        ("GET", f"{TOY}/"),
        ("GET", f"{TOY}/versions"),
        ("GET", "/v1/"),
        ("GET", "/v1/other"),
        ("OPTIONS", f"{TOY}:predict"),
    ],
)
def test_malformed_requests(ask, method, path):
    status, told, _ = ask(method, path + "?query=1")
    assert status == 400
    assert told == {"error": f"Malformed request: {method} {path}"}


@pytest.mark.parametrize("path", ["/", "/v2/models/toy", "/v1", "/index.html"])
def test_outside_v1_there_is_the_library_s_page(ask, path):
    status, told, response = ask("GET", path)
    assert (status, told) == (404, None)
    assert "<h1>Not Found</h1>" in response.text


def available(version):
    return {
        "version": str(version),
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }


@pytest.mark.parametrize(
    ("path", "versions"),
    [
        (TOY, [123, 1]),
        (f"{TOY}/versions/1", [1]),
        # A label is read and ignored.
        (f"{TOY}/labels/stable", [123, 1]),
    ],
)
def test_model_status(ask, path, versions):
    status, told, _ = ask("GET", path)
    assert status == 200
    assert told == {
        "model_version_status": [available(version) for version in versions]
    }


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/v1/models", 400, "Missing model name in request."),
        ("/v1/models/none", 404, "Could not find any versions of model none"),
        (f"{TOY}/versions/7", 404, "Could not find version 7 of model toy"),
        ("/v1/models/none/metadata", 404, "Servable not found for request: "
         "Latest(none)"),
        (f"{TOY}/versions/7/metadata", 404, "Servable not found for request: "
         "Specific(toy, 7)"),
    ],
)  # fmt: skip
def test_status_and_metadata_errors(ask, path, status, message):
    assert ask("GET", path)[:2] == (status, {"error": message})


def test_model_metadata(ask):
    status, told, _ = ask("GET", f"{TOY}/versions/1/metadata")
    assert status == 200
    assert told["model_spec"] == {
        "name": "toy",
        "signature_name": "",
        "version": "1",
    }
    signatures = told["metadata"]["signature_def"]["signature_def"]
    assert "__saved_model_init_op" in signatures
    signature = signatures["serving_default"]
    assert signature["inputs"] == {
        "x": {
            "dtype": "DT_FLOAT",
            "tensor_shape": {
                "dim": [{"size": "-1", "name": ""}],
                "unknown_rank": False,
            },
            "name": "serving_default_x:0",
        }
    }
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["defaults"] == {}
    label = f"{TOY}/labels/a%2Fb/metadata"
    assert ask("GET", label)[1]["model_spec"]["version"] == "123"


def test_cors_headers_come_with_the_flag_only(store):
    origin = {"Origin": "https://example.com"}
    for has_cors, value in ((False, None), (True, "*")):
        with contextlib.closing(RestAPI(store, has_cors=has_cors)) as api:
            for method, status in (("OPTIONS", 200), ("GET", 200)):
                response = send(api, method, TOY, headers=origin)[2]
                assert response.status_code == status
                header = response.headers.get("access-control-allow-origin")
                assert header == value
            strange = {"Origin": "file://x"}
            assert send(api, "OPTIONS", TOY, headers=strange)[0] == 400


# Threads.


class Held:
    """A store whose versions answer when they are let go."""

    def __init__(self, store):
        self._store = store
        self.may_go = threading.Event()

    @contextlib.contextmanager
    def lease(self, *which, **options):
        self.may_go.wait()
        with self._store.lease(*which, **options) as served:
            yield served


async def started(api, number):
    """Returns so many requests under way."""

    async def request():
        transport = httpx.ASGITransport(api)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://server"
        ) as client:
            return await client.post(f"{TOY}:predict", content='{"inputs":[1]}')

    tasks = [asyncio.create_task(request()) for _ in range(number)]
    await asyncio.sleep(0)
    return tasks


def test_a_busy_model_does_not_hold_up_the_server_and_its_queue_ends(store):
    held = Held(store)
    metrics = Metrics()
    api = RestAPI(held, num_threads=1, max_waiting=2, metrics=metrics)

    async def run():
        tasks = await started(api, 5)
        done, waiting = await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
        while len(done) < 2:
            more, waiting = await asyncio.wait(
                waiting, return_when="FIRST_COMPLETED"
            )
            done |= more
        refused = [task.result() for task in done]
        depth = metrics.text()
        held.may_go.set()
        return refused, depth, await asyncio.gather(*waiting)

    refused, depth, answered = asyncio.run(run())
    assert [one.status_code for one in refused] == [503, 503]
    assert refused[0].headers["retry-after"] == "1"
    assert "error" in refused[0].json()
    assert 'kerasgpt_queue_depth{queue="predict"} 2' in depth
    assert [one.status_code for one in answered] == [200] * 3
    assert 'status="UNAVAILABLE"} 2' in metrics.text()
    labels = 'model_name="toy",model_version="123",status="OK"'
    assert f"{{{labels}}} 3" in metrics.text()
    api.close()


def test_what_takes_too_long_is_504_and_leaves_its_place_when_done(store):
    held = Held(store)
    api = RestAPI(held, num_threads=1, max_waiting=0, timeout_s=0.05)

    async def run():
        (first,) = await started(api, 1)
        late = await first
        (second,) = await started(api, 1)
        refused = await second
        held.may_go.set()
        while True:
            (third,) = await started(api, 1)
            if (answer := await third).status_code != 503:
                return late, refused, answer

    late, refused, answer = asyncio.run(run())
    assert late.status_code == 504
    assert "--rest_api_timeout_in_ms" in late.json()["error"]
    assert refused.status_code == 503
    assert answer.status_code == 200
    api.close()


def test_a_fault_of_ours_is_500_and_told_to_the_log(store, monkeypatch, caplog):
    with store.lease("toy") as served:
        monkeypatch.setattr(served, "run", lambda *_: 1 / 0)
    api = RestAPI(store)
    status, told, _ = send(api, "POST", f"{TOY}:predict", '{"inputs": [1]}')
    assert status == 500
    assert told == {"error": "The server failed: ZeroDivisionError."}
    assert "division" in caplog.text
    api.close()


def test_an_export_of_ours_takes_no_endless_batch(store, ask, monkeypatch):
    rows = json.dumps({"inputs": [1.0] * (MAX_ROWS + 1)})
    # A model of others has no cache for each row.
    assert ask("POST", f"{TOY}:predict", rows)[0] == 200
    with store.lease("toy") as served:
        monkeypatch.setattr(served, "backend", object())
    status, told, _ = ask("POST", f"{TOY}:predict", rows)
    assert status == 400
    assert f"at most {MAX_ROWS}" in told["error"]
    rows = json.dumps({"inputs": [1.0] * MAX_ROWS})
    assert ask("POST", f"{TOY}:predict", rows)[0] == 200
