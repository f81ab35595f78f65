"""Owns TF Serving's gRPC services over a model store. Not: HTTP (rest.py)."""

import concurrent.futures
import contextlib
import hmac
import logging
import math

import grpc
import tensorflow as tf
from tensorflow.core.protobuf import error_codes_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from kerasgpt.config import InputError
from kerasgpt.serving.tensor_json import DEFAULT_SIGNATURE

_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}
# As TF Serving cuts messages: they travel in a header.
_MESSAGE_LETTERS = 1024
_SIGNATURES = "signature_def"
# What reading a tensor that is none may raise.
_NO_TENSOR = (ValueError, TypeError, KeyError, OverflowError)
_LOG = logging.getLogger(__name__)


class GrpcServer:
    """A running server.

    Attributes:
        port: int.
    """

    def __init__(self, server, port):
        self._server = server
        self.port = port

    def stop(self, grace=None):
        """Refuses new calls and returns when the running ones are done.

        Args:
            grace: float, seconds until those are cut off. `None` = at once.
        """
        self._server.stop(grace).wait()


def serve_grpc(
    store,
    address,
    *,
    max_message_bytes=4 << 20,
    max_calls=4,
    max_waiting=32,
    api_key=None,
):
    """Starts PredictionService and ModelService and returns at once.

    Of PredictionService it has Predict and GetModelMetadata, of ModelService
    GetModelStatus; the other calls are UNIMPLEMENTED.

    Args:
        store: ModelStore.
        address: str, such as "127.0.0.1:8500"; port 0 = any free one.
        max_message_bytes: int. Larger requests, and tensors of more elements,
            are RESOURCE_EXHAUSTED or INVALID_ARGUMENT.
        max_calls: int, at a time.
        max_waiting: int, calls in line; more are RESOURCE_EXHAUSTED.
        api_key: str. Every call must bring it as bearer token.

    Returns:
        GrpcServer.

    Raises:
        InputError: if nothing can listen there.
    """
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(max_calls, "grpc"),
        interceptors=[_KeyCheck(api_key)] if api_key else [],
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            # Otherwise two servers would share a port without a word.
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=max_calls + max_waiting,
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        _PredictionService(store, max_message_bytes), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(
        _ModelService(store), server
    )
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise InputError(f"{address}: cannot listen there.") from error
    server.start()
    return GrpcServer(server, port)


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, store, max_elements):
        self._store = store
        self._max_elements = max_elements

    def Predict(self, request, context):
        with _told(context), _lease(self._store, request) as served:
            name = request.model_spec.signature_name or DEFAULT_SIGNATURE
            if name not in served.signatures:
                raise tf.errors.FailedPreconditionError(
                    None, None, f'Serving signature key "{name}" not found.'
                )
            wanted = _wanted_outputs(
                served.signatures[name].definition.outputs,
                request.output_filter,
            )
            inputs = {
                key: _array(key, value, self._max_elements)
                for key, value in request.inputs.items()
            }
            outputs = served.run(name, inputs)
            response = predict_pb2.PredictResponse()
            _fill_spec(response.model_spec, served)
            response.model_spec.signature_name = name
            for key in wanted:
                response.outputs[key].CopyFrom(
                    tf.make_tensor_proto(outputs[key])
                )
            return response

    def GetModelMetadata(self, request, context):
        with _told(context):
            _require_spec(request)
            if not request.metadata_field:
                raise _invalid(
                    "GetModelMetadataRequest must specify at least one "
                    "metadata_field"
                )
            for field in request.metadata_field:
                if field != _SIGNATURES:
                    raise _invalid(f"Metadata field {field} is not supported")
            with _lease(self._store, request) as served:
                signatures = get_model_metadata_pb2.SignatureDefMap()
                for name, signature in served.signatures.items():
                    signatures.signature_def[name].CopyFrom(
                        signature.definition
                    )
                response = get_model_metadata_pb2.GetModelMetadataResponse()
                _fill_spec(response.model_spec, served)
                response.metadata[_SIGNATURES].Pack(signatures)
                return response


class _ModelService(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, store):
        self._store = store

    def GetModelStatus(self, request, context):
        with _told(context):
            _require_spec(request)
            spec = request.model_spec
            version = spec.version.value if spec.HasField("version") else None
            response = get_model_status_pb2.GetModelStatusResponse()
            for status in self._store.statuses(spec.name, version):
                one = response.model_version_status.add()
                one.version = status.version
                one.state = one.State.Value(status.state)
                one.status.error_code = error_codes_pb2.Code.Value(
                    status.error_code
                )
                one.status.error_message = status.error_message
            return response


class _KeyCheck(grpc.ServerInterceptor):
    def __init__(self, api_key):
        self._expected = f"Bearer {api_key}".encode()
        self._refuse = grpc.unary_unary_rpc_method_handler(
            lambda _, context: context.abort(
                grpc.StatusCode.UNAUTHENTICATED,
                "the bearer token is missing or wrong",
            )
        )

    def intercept_service(self, continuation, handler_call_details):
        metadata = dict(handler_call_details.invocation_metadata)
        sent = str(metadata.get("authorization", "")).encode()
        if hmac.compare_digest(sent, self._expected):
            return continuation(handler_call_details)
        return self._refuse


@contextlib.contextmanager
def _told(context):
    """Ends the call with the status of an error that the block raises."""
    try:
        yield
    except tf.errors.OpError as error:
        code, message = _STATUS_CODES[error.error_code], error.message
    except Exception:
        _LOG.exception("a call failed")
        code, message = grpc.StatusCode.INTERNAL, "internal error"
    else:
        return
    if len(message) > _MESSAGE_LETTERS:
        message = f"{message[:_MESSAGE_LETTERS]}...TRUNCATED"
    context.abort(code, message)


def _require_spec(request):
    if not request.HasField("model_spec"):
        raise _invalid("Missing ModelSpec")


def _lease(store, request):
    _require_spec(request)
    spec = request.model_spec
    if not spec.name:
        raise _invalid("ModelSpec has no name specified.")
    choice = spec.WhichOneof("version_choice")
    return store.lease(
        spec.name,
        version=spec.version.value if choice == "version" else None,
        label=spec.version_label if choice == "version_label" else None,
    )


def _fill_spec(spec, served):
    spec.name = served.name
    spec.version.value = served.version


def _wanted_outputs(known, output_filter):
    for index, name in enumerate(output_filter):
        if name not in known:
            raise _invalid(
                f"output tensor alias not found in signature: {name} Outputs "
                f"expected to be in the set {{{','.join(sorted(known))}}}."
            )
        if name in output_filter[:index]:
            raise _invalid(f"duplicate output tensor alias: {name}")
    return output_filter or known


def _array(name, value, max_elements):
    # A few bytes may claim any shape: one value stands for all the others.
    dims = [dim.size for dim in value.tensor_shape.dim]
    is_shape = min(dims, default=0) >= 0 and not value.tensor_shape.unknown_rank
    if is_shape and math.prod(dims) <= max_elements:
        with contextlib.suppress(*_NO_TENSOR):
            return tf.make_ndarray(value)
    raise _invalid(f"tensor parsing error: {name}")


def _invalid(message):
    return tf.errors.InvalidArgumentError(None, None, message)
