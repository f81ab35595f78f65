"""Owns the server: flags -> models -> one ASGI application -> a socket.

Not: what any of its routes answers.
"""

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import ipaddress
import logging
import mimetypes
import pathlib
import re
import signal
import socket
import time

import tensorflow as tf
import uvicorn
from google.protobuf import text_format
from starlette.applications import Starlette
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.config import model_server_config_pb2

from kerasgpt.config import InputError
from kerasgpt.console import Interrupted
from kerasgpt.serving.backend import DeadlineExceeded, Unavailable
from kerasgpt.serving.engine import load_engine
from kerasgpt.serving.grpc_server import serve_grpc
from kerasgpt.serving.limits import LimitsConfig, with_limits, write_log_line
from kerasgpt.serving.metrics import Metrics
from kerasgpt.serving.model_store import (
    ModelConfig,
    ModelStore,
    read_model_config,
)
from kerasgpt.serving.openai import UnknownModel, openai_routes
from kerasgpt.serving.rest import RestAPI
from kerasgpt.serving.upstream import Upstream

PAGE = pathlib.Path(__file__).with_name("page")
# Nothing but the page's own files and this server; no inline script or style,
# and with trusted types no text that becomes HTML.
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; "
        "connect-src 'self'; img-src 'self' data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # A new version of this package brings a new page.
    "Cache-Control": "no-cache",
}
_HEALTH_PATHS = ("/healthz", "/readyz")
_METRICS_PATH = "/monitoring/prometheus/metrics"
# With the model's rows of fewest padding, and a wait that nobody notices.
_BATCHING = """\
max_batch_size { value: 8 }
allowed_batch_sizes: 1
allowed_batch_sizes: 2
allowed_batch_sizes: 4
allowed_batch_sizes: 8
batch_timeout_micros { value: 5000 }
max_enqueued_batches { value: 64 }
num_batch_threads { value: 2 }
"""


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """The flags of `kerasgpt serve`.

    Those that tensorflow_model_server has, too, have its names and units.

    Attributes:
        folder: str. A model: a folder of versions, and by its own name the
            model's. Instead of `model_base_path` and `model_config_file`.
        host: str. The address to listen at.
        rest_api_port: int. Of all HTTP routes; 0 = any free one.
        port: int, of gRPC; 0 = none.
        model_name: str. "" = the folder's name.
        model_base_path: str. As `folder`.
        model_config_file: str. Several models, their versions and labels.
        rest_api_timeout_in_ms: int.
        file_system_poll_wait_seconds: float. 0 = look for versions only once.
        allow_version_labels_for_unavailable_models: bool.
        rest_api_enable_cors_support: bool. Let pages of other origins ask.
        monitoring_config_file: str. Says that and where metrics are served.
        metrics: bool. Serve them, without such a file.
        upstream: str. URL of a TensorFlow Serving that runs the model, in
            whose front this server is put.
        api_key: str. Asked for as bearer token; "" = by nobody.
        max_body_bytes: int.
        requests_per_minute: int, of a client's address; 0 = any number.
        log_texts: bool. Write the bodies of requests to the log, too.
        shutdown_seconds: int. How long running answers may take when the
            server is stopped.
    """

    folder: str = ""
    host: str = "127.0.0.1"
    rest_api_port: int = 8501
    port: int = 0
    model_name: str = ""
    model_base_path: str = ""
    model_config_file: str = ""
    rest_api_timeout_in_ms: int = 30_000
    file_system_poll_wait_seconds: float = 1.0
    allow_version_labels_for_unavailable_models: bool = False
    rest_api_enable_cors_support: bool = False
    monitoring_config_file: str = ""
    metrics: bool = False
    upstream: str = ""
    api_key: str = ""
    max_body_bytes: int = 1 << 20
    requests_per_minute: int = 0
    log_texts: bool = False
    shutdown_seconds: int = 30

    def __post_init__(self):
        sources = ("folder", "model_base_path", "model_config_file", "upstream")
        given = [name for name in sources if getattr(self, name)]
        if len(given) != 1:
            raise InputError(
                f"give one of FOLDER, --model_base_path, --model_config_file "
                f"and --upstream; received {' and '.join(given) or 'none'}."
            )
        if self.upstream and not self.model_name:
            raise InputError("--upstream needs the model's --model_name there.")
        for name in ("rest_api_port", "port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise InputError(
                    f"--{name}={getattr(self, name)}: must be from 0 to 65535."
                )
        for name, least in (
            ("rest_api_timeout_in_ms", 1),
            ("file_system_poll_wait_seconds", 0),
            ("max_body_bytes", 1),
            ("requests_per_minute", 0),
            ("shutdown_seconds", 0),
        ):
            # Neither is nan at least anything.
            if not least <= getattr(self, name) < 2**31:
                raise InputError(
                    f"--{name}={getattr(self, name)}: must be at least {least}."
                )
        if not self.api_key and not _is_loopback(self.host):
            raise InputError(
                f"--host={self.host} lets others in: give a key, by --api-key "
                f"or in KERASGPT_API_KEY."
            )

    def models(self):
        """Returns a ModelConfig for each model.

        Raises:
            InputError: if there is no such folder or file.
        """
        if self.model_config_file:
            return read_model_config(self.model_config_file)
        if self.upstream:
            return []
        folder = pathlib.Path(self.folder or self.model_base_path)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder.")
        if (folder / "saved_model.pb").exists():
            raise InputError(
                f"{folder}: is a version; give the folder that holds it, "
                f"{folder.resolve().parent}."
            )
        name = self.model_name or folder.resolve().name
        return [ModelConfig(name, folder.resolve())]

    def metrics_path(self):
        """Returns the path at which metrics are served, None = nowhere.

        Raises:
            InputError: if the file that says so cannot be read.
        """
        path = _METRICS_PATH if self.metrics else None
        if not self.monitoring_config_file:
            return path
        try:
            text = pathlib.Path(self.monitoring_config_file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{self.monitoring_config_file}: cannot be read: {error}."
            ) from error
        # The package of TensorFlow Serving's messages lacks this one.
        if not re.match(r"\s*prometheus_config\s*:?\s*\{", text):
            raise InputError(
                f"{self.monitoring_config_file}: must hold "
                f"prometheus_config {{ enable: true }}."
            )
        if not re.search(r"\benable\s*:\s*true\b", text):
            return path
        named = re.search(r"\bpath\s*:\s*[\"'](/[^\"']*)[\"']", text)
        return named[1] if named else _METRICS_PATH


def _is_loopback(host):
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(config, *, make_backend=load_engine, write=print):
    """Serves until a signal comes, then finishes what runs.

    Args:
        config: ServeConfig.
        make_backend: see `ModelStore`.
        write: function of a line, told what to do next.

    Raises:
        InputError: if there is nothing to serve, or the port is taken.
        Interrupted: by SIGTERM.
        KeyboardInterrupt: by SIGINT.
    """
    _log_to_stderr()
    metrics_path = config.metrics_path()
    store = ModelStore(
        config.models(),
        poll_seconds=config.file_system_poll_wait_seconds,
        make_backend=make_backend,
        allow_labels_for_unavailable=(
            config.allow_version_labels_for_unavailable_models
        ),
    )
    previous = signal.signal(signal.SIGTERM, _terminate)
    # The port is taken before the models are loaded, which takes longer.
    try:
        with _bound(config) as listener, contextlib.closing(store):
            store.start()
            asyncio.run(_serve(config, store, listener, metrics_path, write))
    finally:
        signal.signal(signal.SIGTERM, previous)


def _log_to_stderr():
    # Ours alone: httpx and uvicorn tell of every request.
    logger = logging.getLogger("kerasgpt")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())


def _terminate(signal_number, _):
    raise Interrupted(signal_number, "stopped.")


def _bound(config):
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # asyncio sends small packets at once only where the protocol is named;
    # without it every answer on an open connection waited 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.rest_api_port))
    except OSError as error:
        listener.close()
        raise InputError(
            f"{config.host}:{config.rest_api_port}: cannot listen there: "
            f"{error.strerror}; --rest_api_port chooses another port."
        ) from error
    return listener


async def _serve(config, store, listener, metrics_path, write):
    async with contextlib.AsyncExitStack() as stack:
        backends = StoreBackends(store)
        if config.upstream:
            backends = await _open_upstream(config, stack)
        server = None
        app, api = build_app(
            config,
            store,
            backends,
            metrics_path=metrics_path,
            is_draining=lambda: server.should_exit,
        )
        stack.callback(api.close)
        if not config.api_key:
            # No page of another name that was made to point here may ask.
            app = TrustedHostMiddleware(app, [*_LOOPBACK_NAMES, config.host])
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=config.shutdown_seconds,
            )
        )
        if config.port:
            grpc = serve_grpc(
                store,
                f"{config.host}:{config.port}",
                max_message_bytes=config.max_body_bytes,
                api_key=config.api_key or None,
            )
            stack.callback(grpc.stop, config.shutdown_seconds)
        listener.listen(2048)
        for line in _next_steps(config, store, listener.getsockname()[1]):
            write(line)
        await server.serve(sockets=[listener])


async def _open_upstream(config, stack):
    upstream = Upstream(
        config.upstream,
        config.model_name,
        call_timeout_s=config.rest_api_timeout_in_ms / 1000,
    )
    stack.push_async_callback(upstream.close)
    try:
        await upstream.open()
    except (DeadlineExceeded, Unavailable) as error:
        raise InputError(f"--upstream {config.upstream}: {error}.") from error
    return UpstreamBackends(config.model_name, upstream)


def _next_steps(config, store, port):
    host = f"[{config.host}]" if ":" in config.host else config.host
    url = f"http://{host}:{port}"
    key = ' -H "Authorization: Bearer $KERASGPT_API_KEY"'
    yield f"{url}/ is ready; to chat, open it in a browser, or"
    for name in store.models:
        yield f"  curl{key if config.api_key else ''} {_curl(url, name)}"
    yield f'  openai.OpenAI(base_url="{url}/v1", api_key="…")'


def _curl(url, name):
    body = '\'{"instances": ["Do you ship on Sunday?"]}\''
    return f"-d {body} {url}/v1/models/{name}:predict"


def build_app(
    config, store, backends, *, metrics_path=None, is_draining=lambda: False
):
    """Returns the ASGI application of all routes.

    Args:
        config: ServeConfig.
        store: ModelStore.
        backends: StoreBackends or UpstreamBackends.
        metrics_path: str, or None.
        is_draining: function that tells whether the server is about to stop.

    Returns:
        the application, and its RestAPI, which is to be closed.
    """
    metrics = Metrics()
    api = RestAPI(
        store,
        metrics=metrics,
        timeout_s=config.rest_api_timeout_in_ms / 1000,
        has_cors=config.rest_api_enable_cors_support,
    )
    page = {
        f"/{file.name}": file
        for file in sorted(PAGE.iterdir())
        if file.is_file()
    }
    page["/"] = PAGE / "index.html"
    routes = [
        Route("/healthz", _health),
        Route("/readyz", functools.partial(_ready, store, is_draining)),
        *(Route(path, _file_endpoint(file)) for path, file in page.items()),
        *openai_routes(backends.find, backends.list, is_draining=is_draining),
    ]
    if metrics_path:
        routes.append(
            Route(metrics_path, lambda _: PlainTextResponse(metrics.text()))
        )
    # Whatever is left is TensorFlow Serving's, errors included.
    routes.append(Route("/{path:path}", api))
    limits = LimitsConfig(
        max_body_bytes=config.max_body_bytes,
        api_key=config.api_key or None,
        open_paths=(*_HEALTH_PATHS, *page),
        requests_per_minute=config.requests_per_minute,
        log=write_log_line,
        has_log_texts=config.log_texts,
    )
    app = backends.during_requests(Starlette(routes=routes), metrics)
    return with_limits(app, limits), api


async def _health(_):
    return JSONResponse({"status": "ok"})


async def _ready(store, is_draining, _):
    if is_draining():
        return JSONResponse({"status": "stopping"}, 503)
    if not store.is_ready():
        return JSONResponse({"status": "loading"}, 503)
    return JSONResponse({"status": "ready"})


def _file_endpoint(file):
    content = file.read_bytes()
    media_type = mimetypes.guess_type(file.name)[0] or "text/plain"

    async def endpoint(_):
        return Response(content, 200, _PAGE_HEADERS, media_type)

    return endpoint


_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1", "[::1]")
# The versions that a request uses, kept until it is answered.
_LEASES = contextvars.ContextVar("leases")


class StoreBackends:
    """Finds backends in a store; each stays while its request is answered.

    Args:
        store: ModelStore.
    """

    def __init__(self, store):
        self._store = store

    def during_requests(self, app, metrics):
        """Returns `app` with leases that end when a request is answered.

        Args:
            app: ASGI application.
            metrics: Metrics, that get requests, tokens and queues of backends.
        """
        metrics.watch_queue("engine", self._num_waiting)

        async def leasing(scope, receive, send):
            start = time.monotonic()
            with contextlib.ExitStack() as stack:
                found = []
                _LEASES.set((stack, found))
                try:
                    await app(scope, receive, send)
                finally:
                    record = scope.get("request_log", {})
                    for served in found[:1]:
                        _count(metrics, served, record, scope, start)

        return leasing

    def find(self, model):
        """Returns the backend of "NAME", "NAME@VERSION", or None = the first.

        Raises:
            UnknownModel: if there is none.
        """
        name, version = model, None
        if model is None:
            name = next((name for name, _ in self.list()), "")
        elif model not in self._store.models:
            name, _, digits = model.rpartition("@")
            if not re.fullmatch("[0-9]{1,19}", digits):
                raise self._unknown(model)
            version = int(digits)
        stack, found = _LEASES.get()
        try:
            served = stack.enter_context(
                self._store.lease(name, version=version)
            )
        except tf.errors.NotFoundError as error:
            raise self._unknown(model) from error
        if served.backend is None:
            raise self._unknown(model)
        found.append(served)
        return served.backend

    def list(self):
        """Returns (name, seconds since 1970) of each model and version."""
        models = []
        for name in self._store.models:
            versions = self._store.versions(name)
            wanted = [(name, None)]
            if len(versions) > 1:
                wanted += [(f"{name}@{one}", one) for one in versions[::-1]]
            for label, version in wanted:
                with (
                    contextlib.suppress(tf.errors.NotFoundError),
                    self._store.lease(name, version=version) as served,
                ):
                    if served.backend is not None:
                        models.append((label, served.created))
        return models

    def _num_waiting(self):
        number = 0
        for name in self._store.models:
            with (
                contextlib.suppress(tf.errors.NotFoundError),
                self._store.lease(name) as served,
            ):
                if served.backend is not None:
                    number += served.backend.load()[1]
        return number

    def _unknown(self, model):
        known = ", ".join(name for name, _ in self.list()) or "none"
        asked = "any model" if model is None else f"the model {model}"
        return UnknownModel(f"{asked} does not chat here; known: {known}")


def _count(metrics, served, record, scope, start):
    status = record.get("status", 0)
    metrics.count_request(
        served.name,
        served.version,
        "OK" if status == 200 else status,
        seconds=time.monotonic() - start,
        api=scope["path"].removeprefix("/v1").strip("/"),
    )
    for kind in ("prompt_tokens", "completion_tokens"):
        metrics.count_tokens(served.name, kind, record.get(kind, 0))


class UpstreamBackends:
    """The one model of another server.

    Args:
        name: str, of the model.
        upstream: Upstream.
    """

    def __init__(self, name, upstream):
        self._name = name
        self._upstream = upstream
        self._created = int(time.time())

    def during_requests(self, app, metrics):
        """Returns `app`: nothing is to be kept."""
        del metrics
        return app

    def find(self, model):
        """Returns the backend, if `model` is its name or None."""
        if model not in (None, self._name):
            raise UnknownModel(
                f"the model {model} does not chat here; known: {self._name}"
            )
        return self._upstream

    def list(self):
        """Returns its name and when the server was started."""
        return [(self._name, self._created)]


def docker_command(config):
    """Returns lines that serve the model in TensorFlow Serving's container.

    Raises:
        InputError: if `config` names no model, or several.
    """
    models = config.models()
    if len(models) != 1:
        raise InputError(
            "--print-docker is for one model; --print-config writes a "
            "--model_config_file for several."
        )
    (model,) = models
    version = _tensorflow_version(model.base_path)
    minor = ".".join(version.split(".")[:2])
    url = f"http://127.0.0.1:{config.rest_api_port}"
    yield "docker run --rm --read-only --tmpfs /tmp \\"
    yield f"    -p 127.0.0.1:{config.rest_api_port}:8501 \\"
    yield f"    -e MODEL_NAME={model.name} \\"
    yield f'    -v "{model.base_path}:/models/{model.name}:ro" \\'
    yield f"    tensorflow/serving:{minor}.0 \\"
    yield f"    --rest_api_timeout_in_ms={config.rest_api_timeout_in_ms}"
    yield ""
    yield f"# The export was written by TensorFlow {version}: take an image of"
    yield f"# {minor} or newer; where there is none yet, the newest. The server"
    yield "# has no key and no limits: leave it at 127.0.0.1 and put"
    yield f"#   kerasgpt serve --upstream {url} --model_name {model.name} \\"
    yield "#       --rest_api_port 8080"
    yield "# in front of it, which also chats and streams."
    yield f"curl {_curl(url, model.name)}"


def _tensorflow_version(base_path):
    files = sorted(
        base_path.glob("[0-9]*/saved_model.pb"),
        key=lambda file: int(re.match("[0-9]+", file.parent.name)[0]),
    )
    if not files:
        raise InputError(f"{base_path}: holds no version to serve.")
    message = saved_model_pb2.SavedModel.FromString(files[-1].read_bytes())
    return message.meta_graphs[0].meta_info_def.tensorflow_version


def config_files(config):
    """Returns the lines of a model.config and of a batching file.

    Raises:
        InputError: if `config` names no model.
    """
    message = model_server_config_pb2.ModelServerConfig()
    for model in config.models():
        one = message.model_config_list.config.add(
            name=model.name,
            base_path=f"/models/{model.name}",
            model_platform="tensorflow",
        )
        policy = one.model_version_policy
        if model.policy == "specific":
            policy.specific.versions.extend(model.versions)
        elif model.policy == "all":
            policy.all.SetInParent()
        else:
            policy.latest.num_versions = model.num_versions
        one.version_labels.update(model.labels)
    yield "# model.config, for --model_config_file"
    yield from text_format.MessageToString(message).splitlines()
    yield ""
    yield "# batching.config, for --enable_batching --batching_parameters_file"
    yield from _BATCHING.splitlines()
