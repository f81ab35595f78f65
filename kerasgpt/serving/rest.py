"""Owns TensorFlow Serving's REST routes. Not: its JSON (tensor_json.py)."""

import asyncio
import concurrent.futures
import json
import logging
import re
import threading
import time
import urllib.parse

import tensorflow as tf
from google.protobuf import json_format
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from tensorflow.core.protobuf import error_codes_pb2

from kerasgpt.serving import tensor_json

# Matched whole; the name and the label are percent-decoded afterwards.
_MODEL = r"([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?"
_PREDICTION_PATH = re.compile(
    rf"/v1/models/{_MODEL}:(predict|classify|regress)", re.IGNORECASE
)
_STATUS_PATH = re.compile(
    rf"/v1/models(?:/{_MODEL})?(?:/(metadata))?", re.IGNORECASE
)
_HTTP_STATUS = {
    tf.errors.CANCELLED: 499,
    tf.errors.INVALID_ARGUMENT: 400,
    tf.errors.DEADLINE_EXCEEDED: 504,
    tf.errors.NOT_FOUND: 404,
    tf.errors.ALREADY_EXISTS: 409,
    tf.errors.PERMISSION_DENIED: 403,
    tf.errors.UNAUTHENTICATED: 401,
    tf.errors.RESOURCE_EXHAUSTED: 429,
    tf.errors.FAILED_PRECONDITION: 400,
    tf.errors.ABORTED: 409,
    tf.errors.OUT_OF_RANGE: 400,
    tf.errors.UNIMPLEMENTED: 501,
    tf.errors.UNAVAILABLE: 503,
}
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
_NOT_FOUND_PAGE = (
    "<html><head>\n<title>404 Not Found</title>\n</head><body>\n"
    "<h1>Not Found</h1>\n</body></html>\n"
)
_TASKS = {"classify": "classification", "regress": "regression"}
_MAX_VERSION = 2**63 - 1
_LOG = logging.getLogger(__name__)


# Of a request to an export of ours, which keeps a cache for each row: 1 MiB
# of one-letter texts would be 200,000 of them.
MAX_ROWS = 256


class RestAPI:
    """The routes of TensorFlow Serving, as an ASGI application.

    Models run in threads of their own; requests that find all of them taken
    wait in a queue of limited length and are refused beyond it, with 503 as
    TensorFlow Serving's full batching queue does.

    Args:
        store: ModelStore.
        metrics: Metrics, or None.
        timeout_s: float. A request that is not answered by then gets 504; what
            it started ends by itself, and keeps its thread until then.
        has_cors: bool. Send the headers that let pages of other origins in.
        num_threads: int. Requests that run at a time.
        max_waiting: int. Requests that may wait.
    """

    def __init__(
        self,
        store,
        *,
        metrics=None,
        timeout_s=30.0,
        has_cors=False,
        num_threads=4,
        max_waiting=64,
    ):
        self._store = store
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._headers = _CORS if has_cors else {}
        self._max_open = num_threads + max_waiting
        self._num_open = 0
        # Requests are counted in by the event loop, and out by threads.
        self._lock = threading.Lock()
        self._pool = concurrent.futures.ThreadPoolExecutor(
            num_threads, thread_name_prefix="predict"
        )
        if metrics:
            metrics.watch_queue(
                "predict", lambda: max(0, self._num_open - num_threads)
            )

    def close(self):
        """Waits for what still runs and ends the threads."""
        self._pool.shutdown(cancel_futures=True)

    async def __call__(self, scope, receive, send):
        request = Request(scope, receive)
        # As it was sent: the name of a model may hold an escaped slash.
        path = scope.get("raw_path") or scope["path"].encode()
        path = path.partition(b"?")[0].decode("ascii", "replace")
        response = await self._respond(request, path)
        await response(scope, receive, send)

    async def _respond(self, request, path):
        if not path.lower().startswith("/v1/"):
            return HTMLResponse(_NOT_FOUND_PAGE, 404)
        headers = dict(self._headers)
        try:
            body = await self._answer(request, path)
            status = 200
        except tf.errors.OpError as error:
            status = _HTTP_STATUS.get(error.error_code, 500)
            body = tensor_json.error_body(error.message)
            if status == 503:
                headers["Retry-After"] = "1"
        # A fault of the graph's, or of ours: told to the log alone.
        except Exception as error:
            _LOG.exception("%s %s failed", request.method, path)
            status = 500
            body = tensor_json.error_body(
                f"The server failed: {type(error).__name__}."
            )
        return Response(body, status, headers, "application/json")

    async def _answer(self, request, path):
        if request.method == "OPTIONS":
            origin = request.headers.get("origin", "")
            if origin.lower().startswith(("http://", "https://")):
                return b""
        elif request.method == "POST":
            if match := _PREDICTION_PATH.fullmatch(path):
                return await self._predict(request, match)
        elif request.method == "GET" and (
            match := _STATUS_PATH.fullmatch(path)
        ):
            *model, is_metadata = match.groups()
            return self._tell(*_model_spec(*model), is_metadata)
        raise _invalid(f"Malformed request: {request.method} {path}")

    async def _predict(self, request, match):
        start = time.monotonic()
        *model, task = match.groups()
        name, version, label = _model_spec(*model)
        task = task.lower()
        body = await request.body()
        # Until it is known which version answers, and that there is one.
        served = {"model": "", "version": ""}
        code = tf.errors.INTERNAL
        try:
            reply = await self._in_thread(
                self._run, body, task, name, version, label, served
            )
            code = tf.errors.OK
            return reply
        except tf.errors.OpError as error:
            code = error.error_code
            raise
        finally:
            if self._metrics:
                self._metrics.count_request(
                    **served,
                    status=error_codes_pb2.Code.Name(code),
                    seconds=time.monotonic() - start,
                    api=task,
                )

    async def _in_thread(self, function, *arguments):
        if self._num_open >= self._max_open:
            raise tf.errors.UnavailableError(
                None, None, "The server is busy; try again later."
            )
        with self._lock:
            self._num_open += 1
        future = self._pool.submit(function, *arguments)
        future.add_done_callback(self._count_done)
        try:
            # Cancels what still waits; what runs is counted until it ends.
            return await asyncio.wait_for(
                asyncio.wrap_future(future), self._timeout_s
            )
        except TimeoutError as error:
            raise tf.errors.DeadlineExceededError(
                None,
                None,
                f"Timed out after {self._timeout_s * 1000:.0f} ms; ask for "
                f"fewer new tokens, or raise --rest_api_timeout_in_ms.",
            ) from error

    def _count_done(self, _):
        with self._lock:
            self._num_open -= 1

    def _run(self, body, task, name, version, label, told):
        """Returns the body that answers a request; runs in a thread.

        Args:
            told: dict that gets the model and version that answer.
        """
        request = tensor_json.parse_request(body)
        signature_name = tensor_json.signature_name(request)
        if task != "predict":
            tensor_json.check_examples(request)
        with self._store.lease(name, version=version, label=label) as served:
            told.update(model=served.name, version=served.version)
            signature = served.signature(signature_name)
            if task != "predict":
                raise _not_for_examples(task, signature.definition.method_name)
            inputs, form = tensor_json.read_tensors(request, signature.dtypes)
            if served.backend is not None:
                _require_few_rows(inputs)
            outputs = served.run(signature_name, inputs)
        return tensor_json.reply_body(outputs, form)

    def _tell(self, name, version, label, is_metadata):
        if not name:
            raise _invalid("Missing model name in request.")
        if not is_metadata:
            return _as_json(
                {
                    "model_version_status": [
                        {
                            "version": str(one.version),
                            "state": one.state,
                            "status": {
                                "error_code": one.error_code,
                                "error_message": one.error_message,
                            },
                        }
                        for one in self._store.statuses(name, version)
                    ]
                }
            )
        with self._store.lease(name, version=version, label=label) as served:
            definitions = {
                key: json_format.MessageToDict(
                    signature.definition,
                    preserving_proto_field_name=True,
                    always_print_fields_with_no_presence=True,
                )
                for key, signature in served.signatures.items()
            }
            spec = {
                "name": served.name,
                "signature_name": "",
                "version": str(served.version),
            }
        # A map named as its only field.
        metadata = {"signature_def": {"signature_def": definitions}}
        return _as_json({"model_spec": spec, "metadata": metadata})


def _model_spec(name, version, label):
    """Returns the name, version and label that a path's parts mean."""
    if version is not None:
        # A number of thousands of digits has no int.
        digits = version.lstrip("0")[:20] or "0"
        if int(digits) > _MAX_VERSION:
            raise _invalid(f"Failed to convert version: {version} to numeric.")
        version = int(digits)
    return _unquoted(name), version, _unquoted(label)


def _unquoted(text):
    return None if text is None else urllib.parse.unquote(text)


def _not_for_examples(task, method):
    expected = f"tensorflow/serving/{task}"
    if method == expected:
        return tf.errors.UnimplementedError(
            None, None, f"{task} is not implemented here; use :predict."
        )
    return _invalid(
        f"Expected {_TASKS[task]} signature method_name to be {expected}. "
        f"Was: {method}"
    )


def _as_json(value):
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def _require_few_rows(inputs):
    num_rows = max(
        (value.shape[0] for value in inputs.values() if value.ndim), default=0
    )
    if num_rows > MAX_ROWS:
        raise _invalid(
            f"The batch has {num_rows} rows; at most {MAX_ROWS} are taken; "
            f"send several requests."
        )


def _invalid(message):
    return tf.errors.InvalidArgumentError(None, None, message)
