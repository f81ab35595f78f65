import contextlib
import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from kerasgpt.config import InputError
from kerasgpt.generation import Generator
from kerasgpt.models import GPTCausalLM, GPTConfig
from kerasgpt.serving.client import GrpcClient, ServerError
from kerasgpt.serving.grpc_server import serve_grpc
from kerasgpt.serving.model_store import ModelConfig, ModelStore
from kerasgpt.serving.saved_model import export_saved_model
from kerasgpt.tokenizers import ByteTokenizer

LIMIT = 1 << 16


class Halves(tf.Module):
    """The model of TensorFlow Serving's own examples, and its faults."""

    def __init__(self, offset):
        super().__init__()
        self.offset = tf.Variable(offset)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def half(self, x):
        with tf.control_dependencies(
            [tf.debugging.Assert(tf.reduce_all(x < 1e6), ["x is too large"])]
        ):
            return {"y": x / 2 + self.offset, "x_again": tf.identity(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def echo(self, text):
        return {"text": text, "text_bytes": text}


@pytest.fixture(scope="module")
def model():
    model = GPTCausalLM(
        GPTConfig.from_depth(1, vocabulary_size=265, context_length=64)
    )
    model.build()
    return model


@pytest.fixture(scope="module")
def store(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for version, offset in ((3, 3.0), (5, 5.0)):
        module = Halves(offset)
        tf.saved_model.save(
            module,
            str(folder / "halves" / str(version)),
            signatures={"serving_default": module.half, "echo": module.echo},
        )
    export_saved_model(
        model, ByteTokenizer(), folder / "shop", max_new_tokens=16
    )
    store = ModelStore(
        [
            ModelConfig(
                "halves",
                folder / "halves",
                policy="all",
                labels={"stable": 3},
            ),
            ModelConfig("shop", folder / "shop"),
        ],
        poll_seconds=0,
    )
    store.start()
    yield store
    store.close()


@contextlib.contextmanager
def running(store, **options):
    server = serve_grpc(store, "127.0.0.1:0", **options)
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        server.stop()


@pytest.fixture(scope="module")
def address(store):
    with running(store, max_message_bytes=LIMIT) as address:
        yield address


@pytest.fixture(scope="module")
def stubs(address):
    with grpc.insecure_channel(address) as channel:
        yield (
            prediction_service_pb2_grpc.PredictionServiceStub(channel),
            model_service_pb2_grpc.ModelServiceStub(channel),
        )


def predict_request(name="halves", signature="", **inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return request


def refused(method, request):
    """Returns the status code and text of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=20)
    return caught.value.code(), caught.value.details()


def test_predictions_of_versions_and_labels(address):
    for options, offset in (
        ({}, 5.0),
        ({"version": 3}, 3.0),
        ({"label": "stable"}, 3.0),
    ):
        with GrpcClient(address, "halves", **options) as client:
            reply = client.predict("serving_default", {"x": [2.0, 4.0]})
        assert reply == {
            "y": [1 + offset, 2 + offset],
            "x_again": [2.0, 4.0],
        }


def test_texts_and_bytes(address):
    with GrpcClient(address, "halves") as client:
        assert client.predict("echo", {"text": ["你好", "a\x00"]}) == {
            "text": ["你好", "a\x00"],
            "text_bytes": ["你好".encode(), b"a\x00"],
        }


def test_the_reply_names_model_version_and_signature(stubs):
    predictions, _ = stubs
    request = predict_request(x=np.float32([2]))
    request.output_filter.append("y")
    reply = predictions.Predict(request)
    assert reply.model_spec.name == "halves"
    assert reply.model_spec.version.value == 5
    assert reply.model_spec.signature_name == "serving_default"
    assert list(reply.outputs) == ["y"]
    assert tf.make_ndarray(reply.outputs["y"]).tolist() == [6.0]


def test_a_chat_model_answers_as_in_process(model, address):
    generator = Generator(model, ByteTokenizer(), jit_compile=False)
    conversation = [{"role": "user", "content": "你好"}]
    with GrpcClient(address, "shop") as client:
        options = {"max_new_tokens": 9, "temperature": 1.5, "seed": 3}
        assert client.chat([conversation] * 2, **options) == generator.reply(
            [conversation] * 2, **options
        )
        assert client.generate(["ab"], max_new_tokens=9) == (
            generator.complete(["ab"], max_new_tokens=9)
        )
        ((log_likelihood, num_tokens),) = client.score(["ab"])
        assert num_tokens == 2 and log_likelihood < 0
        assert client.status() == {1: "AVAILABLE"}
        inputs = client.metadata()["score"]["inputs"]
        assert inputs["text"]["dtype"] == "DT_STRING"


def test_metadata_is_that_of_the_file(stubs, store):
    predictions, _ = stubs
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "halves"
    request.model_spec.version.value = 3
    request.metadata_field.append("signature_def")
    reply = predictions.GetModelMetadata(request)
    assert reply.model_spec.name == "halves"
    assert reply.model_spec.version.value == 3
    told = get_model_metadata_pb2.SignatureDefMap()
    assert reply.metadata["signature_def"].Unpack(told)
    with store.lease("halves", version=3) as served:
        assert set(told.signature_def) == set(served.signatures)
        for name, signature in served.signatures.items():
            assert told.signature_def[name] == signature.definition


def test_the_status_of_versions(stubs):
    _, models = stubs
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "halves"
    found = models.GetModelStatus(request).model_version_status
    assert [one.version for one in found] == [5, 3]
    request.model_spec.version.value = 3
    (one,) = models.GetModelStatus(request).model_version_status
    assert one.State.Name(one.state) == "AVAILABLE"
    assert (one.status.error_code, one.status.error_message) == (0, "")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"name": "none"}, "Latest(none)"),
        ({"name": "halves", "version": {"value": 4}}, "Specific(halves, 4)"),
    ],
)
def test_unknown_models_are_not_found(stubs, spec, text):
    predictions, models = stubs
    missing = (
        grpc.StatusCode.NOT_FOUND,
        f"Servable not found for request: {text}",
    )
    request = predict_pb2.PredictRequest(model_spec=spec)
    assert refused(predictions.Predict, request) == missing
    request = get_model_metadata_pb2.GetModelMetadataRequest(
        model_spec=spec, metadata_field=["signature_def"]
    )
    assert refused(predictions.GetModelMetadata, request) == missing
    request = get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
    code, told = refused(models.GetModelStatus, request)
    assert code == grpc.StatusCode.NOT_FOUND
    assert told in (
        "Could not find any versions of model none",
        "Could not find version 4 of model halves",
    )


def changed(request, **fields):
    request.MergeFrom(predict_pb2.PredictRequest(**fields))
    return request


INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (predict_pb2.PredictRequest(), INVALID, "Missing ModelSpec"),
        (predict_request(""), INVALID, "ModelSpec has no name specified."),
        (
            changed(predict_request(), model_spec={"version_label": "new"}),
            INVALID,
            "Unrecognized servable version label: new",
        ),
        (
            predict_request(signature="sums"),
            grpc.StatusCode.FAILED_PRECONDITION,
            'Serving signature key "sums" not found.',
        ),
        (
            predict_request(z=[1.0]),
            INVALID,
            "Sent extra: {z}. Missing but required: {x}.",
        ),
        (predict_request(x=[1]), INVALID, "int32"),
        (predict_request(x=[1e9]), INVALID, "x is too large"),
        (
            changed(predict_request(x=[1.0]), output_filter=["z"]),
            INVALID,
            "output tensor alias not found in signature: z Outputs expected "
            "to be in the set {x_again,y}.",
        ),
        (
            changed(predict_request(x=[1.0]), output_filter=["y", "y"]),
            INVALID,
            "duplicate output tensor alias: y",
        ),
    ],
)
def test_what_predict_refuses(stubs, request_, code, text):
    predictions, _ = stubs
    received, told = refused(predictions.Predict, request_)
    assert received == code
    assert text in told
    assert "\n" not in told


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": "DT_FLOAT", "float_val": [1], "dims": [1 << 40]},
        {"dtype": "DT_FLOAT", "float_val": [1], "dims": [1 << 62, 1 << 62]},
        {"dtype": "DT_STRING", "string_val": [b"a"], "dims": [LIMIT + 1]},
        {"dtype": "DT_FLOAT", "float_val": [1], "dims": [-1]},
        {"dtype": "DT_FLOAT", "float_val": [1, 2], "dims": [1]},
        {"dtype": "DT_FLOAT", "tensor_content": b"abc", "dims": [1]},
        {"dtype": "DT_FLOAT", "float_val": [1], "unknown_rank": True},
        {"dtype": "DT_RESOURCE", "dims": [1]},
        {"dtype": "DT_INVALID", "dims": [1]},
        {"dtype": "DT_HALF", "half_val": [-1], "dims": [1]},
        {"dtype": "DT_FLOAT", "dims": [1] * 300, "float_val": [1]},
    ],
)
def test_tensors_that_are_none_are_refused(stubs, fields):
    predictions, _ = stubs
    fields = dict(fields)
    dims = [{"size": size} for size in fields.pop("dims", [])]
    is_unknown = fields.pop("unknown_rank", False)
    request = predict_pb2.PredictRequest(
        model_spec={"name": "halves"},
        inputs={
            "x": {
                **fields,
                "tensor_shape": {"dim": dims, "unknown_rank": is_unknown},
            }
        },
    )
    assert refused(predictions.Predict, request) == (
        INVALID,
        "tensor parsing error: x",
    )


def test_what_metadata_and_status_refuse(stubs):
    predictions, models = stubs
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    assert refused(predictions.GetModelMetadata, request) == (
        INVALID,
        "Missing ModelSpec",
    )
    request.model_spec.name = "halves"
    assert refused(predictions.GetModelMetadata, request) == (
        INVALID,
        "GetModelMetadataRequest must specify at least one metadata_field",
    )
    request.metadata_field.append("weights")
    assert refused(predictions.GetModelMetadata, request) == (
        INVALID,
        "Metadata field weights is not supported",
    )
    request = get_model_status_pb2.GetModelStatusRequest()
    assert refused(models.GetModelStatus, request) == (
        INVALID,
        "Missing ModelSpec",
    )


def test_calls_that_do_not_exist_are_unimplemented(stubs):
    predictions, _ = stubs
    request = classification_pb2.ClassificationRequest()
    code, _ = refused(predictions.Classify, request)
    assert code == grpc.StatusCode.UNIMPLEMENTED


def test_large_messages_are_refused_and_the_next_is_served(stubs):
    predictions, _ = stubs
    # No input of that name: it is refused before anyone looks.
    request = predict_request(z=np.zeros(LIMIT, np.float32))
    code, _ = refused(predictions.Predict, request)
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert predictions.Predict(predict_request(x=[1.0])).outputs


class HeldVersion:
    """Stands for a ServedVersion that answers when it is let go."""

    name, version = "held", 1

    def __init__(self, store):
        self.signatures = store.signatures
        self.store = store

    def run(self, signature_name, inputs):
        self.store.started.set()
        self.store.gate.wait(20)
        if self.store.error:
            raise self.store.error
        return {"y": inputs["x"]}


class HeldStore:
    def __init__(self, store):
        with store.lease("halves") as served:
            self.signatures = {
                "serving_default": served.signatures["serving_default"]
            }
        self.started = threading.Event()
        self.gate = threading.Event()
        self.error = None

    @contextlib.contextmanager
    def lease(self, name, *, version=None, label=None):
        yield HeldVersion(self)


@pytest.fixture
def held(store):
    return HeldStore(store)


def held_request():
    request = predict_request("held", x=[1.0])
    request.output_filter.append("y")
    return request


def test_the_queue_is_bounded(held):
    with (
        running(held, max_calls=1, max_waiting=0) as address,
        grpc.insecure_channel(address) as channel,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        first = stub.Predict.future(held_request(), timeout=20)
        assert held.started.wait(20)
        code, _ = refused(stub.Predict, held_request())
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        held.gate.set()
        assert first.result().outputs


def test_stopping_lets_running_calls_end(held):
    server = serve_grpc(held, "127.0.0.1:0")
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        first = stub.Predict.future(held_request(), timeout=20)
        assert held.started.wait(20)
        stopping = threading.Thread(target=server.stop, args=(20,))
        stopping.start()
        code = None
        while code != grpc.StatusCode.UNAVAILABLE:
            with pytest.raises(grpc.RpcError) as caught:
                stub.Predict(held_request(), timeout=0.05)
            code = caught.value.code()
        held.gate.set()
        assert first.result().outputs
        stopping.join(20)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (
            tf.errors.DeadlineExceededError(None, None, "too slow"),
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "too slow",
        ),
        (
            tf.errors.UnavailableError(None, None, "a" * 2000),
            grpc.StatusCode.UNAVAILABLE,
            "a" * 1024 + "...TRUNCATED",
        ),
        (
            ZeroDivisionError("a secret"),
            grpc.StatusCode.INTERNAL,
            "internal error",
        ),
    ],
)
def test_errors_become_their_status(held, error, code, text):
    held.gate.set()
    held.error = error
    with (
        running(held) as address,
        grpc.insecure_channel(address) as channel,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        assert refused(stub.Predict, held_request()) == (code, text)
        held.error = None
        assert stub.Predict(held_request()).outputs


def test_a_key_is_asked_for_everywhere(store):
    with running(store, api_key="secret") as address:
        for key in (None, "wrong", "secret2"):
            with GrpcClient(address, "halves", api_key=key) as client:
                for call in (
                    client.status,
                    client.metadata,
                    lambda client=client: client.predict("echo", {}),
                ):
                    with pytest.raises(
                        ServerError, match="UNAUTHENTICATED: the bearer token"
                    ):
                        call()
        with GrpcClient(address, "halves", api_key="secret") as client:
            assert client.status() == {5: "AVAILABLE", 3: "AVAILABLE"}


def test_an_address_that_cannot_be_had_is_refused(store, address):
    with pytest.raises(InputError, match=f"{address}: cannot listen there"):
        serve_grpc(store, address)
