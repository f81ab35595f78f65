"""Owns models and their versions: find, verify, load, serve, retire.

Not: HTTP, and how a version makes tokens (engine.py).
"""

import contextlib
import dataclasses
import logging
import pathlib
import re
import threading
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401 (registers the ops of our exports)
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import error_codes_pb2, saved_model_pb2
from tensorflow_serving.config import model_server_config_pb2

from kerasgpt.config import InputError
from kerasgpt.files import MANIFEST, read_manifest
from kerasgpt.serving.scan import check_ops
from kerasgpt.serving.warmup import replay_warmup

# As TensorFlow Serving retries a version that does not load.
_NUM_RETRIES = 5
_RETRY_SECONDS = 60.0
# Only an export of ours has it.
_BACKEND_SIGNATURE = "generate_ids"
_MAX_VERSION = 2**63 - 1
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A model to serve: where its versions are and which of them count.

    Attributes:
        name: str.
        base_path: pathlib.Path. Holds a folder for each version.
        policy: "latest", "specific" or "all".
        num_versions: int. How many "latest" serves.
        versions: tuple of int. Those that "specific" serves.
        labels: dict from a label to a version.
    """

    name: str
    base_path: pathlib.Path
    policy: str = "latest"
    num_versions: int = 1
    versions: tuple = ()
    labels: dict = dataclasses.field(default_factory=dict)

    def wanted(self, found):
        """Returns which of the versions found are to be served, as a set."""
        if self.policy == "specific":
            return set(found) & set(self.versions)
        if self.policy == "all":
            return set(found)
        return set(sorted(found)[-self.num_versions :])


def read_model_config(path):
    """Returns the models of a `--model_config_file` of TensorFlow Serving.

    Returns:
        list of ModelConfig.

    Raises:
        InputError: if the file is unreadable or asks for what is not there.
    """
    message = model_server_config_pb2.ModelServerConfig()
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
        text_format.Parse(text, message)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise InputError(f"{path}: cannot be read: {error}.") from error
    models = [
        _model_config(path, one) for one in message.model_config_list.config
    ]
    if not models:
        raise InputError(f"{path}: names no model in model_config_list.")
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: names the model {name} twice.")
    return models


def _model_config(path, message):
    if not message.name or not message.base_path:
        raise InputError(f"{path}: every model needs a name and a base_path.")
    if message.model_platform not in ("", "tensorflow"):
        raise InputError(
            f"{path}: {message.name}: model_platform "
            f"{message.model_platform!r} is not served, only tensorflow."
        )
    policy = message.model_version_policy
    kind = policy.WhichOneof("policy_choice") or "latest"
    return ModelConfig(
        name=message.name,
        base_path=pathlib.Path(message.base_path),
        policy=kind,
        num_versions=policy.latest.num_versions or 1,
        versions=tuple(policy.specific.versions),
        labels=dict(message.version_labels),
    )


class Signature(NamedTuple):
    """A signature of a SavedModel.

    Attributes:
        definition: SignatureDef.
        function: takes the inputs by name and returns a dict of tensors;
            None for a signature that is no such function.
    """

    definition: object
    function: object

    @property
    def dtypes(self):
        """A dict from the name of an input to its tf.DType."""
        return {
            name: tf.as_dtype(info.dtype)
            for name, info in self.definition.inputs.items()
        }


class ServedVersion:
    """A loaded version of a model.

    Attributes:
        name: str, of the model.
        version: int.
        path: pathlib.Path.
        created: int, seconds since 1970.
        module: the object that `tf.saved_model.load` returned.
        signatures: dict from name to Signature; all that the file lists.
        backend: kerasgpt.serving.backend.Backend, or None where the model is
            no export of ours.

    Raises:
        InputError: if the folder holds no SavedModel for serving, a file is
            not the one in its manifest, an op is not allowed, or a warm-up
            request fails.
    """

    def __init__(self, name, version, path, *, make_backend=None):
        self.name = name
        self.version = version
        self.path = path
        self.created = int(path.stat().st_mtime)
        is_verified = (path / MANIFEST).exists()
        if is_verified:
            read_manifest(path)
        check_ops(path)
        definitions = _signature_definitions(path)
        self.module = tf.saved_model.load(str(path))
        self.signatures = {
            key: Signature(definition, self.module.signatures.get(key))
            for key, definition in definitions.items()
        }
        replay_warmup(self.module, path)
        self.backend = None
        is_ours = is_verified and _BACKEND_SIGNATURE in self.signatures
        if make_backend and is_ours:
            self.backend = make_backend(self.module, path)

    def signature(self, name):
        """Returns the Signature of that name.

        Raises:
            tf.errors.InvalidArgumentError: if there is none to call.
        """
        if name not in self.signatures:
            raise _invalid(
                f'Serving signature name: "{name}" not found in signature def'
            )
        signature = self.signatures[name]
        if not signature.definition.inputs or signature.function is None:
            raise _invalid(f"Failed to get input map for signature: {name}")
        return signature

    def run(self, signature_name, inputs):
        """Calls a signature; from any thread, several at a time.

        Like TensorFlow Serving it leaves shapes to the ops: a vector is taken
        where a signature declares [None, 1], if the graph computes with it.

        Args:
            signature_name: str.
            inputs: dict from name to array, strings as bytes in object arrays.

        Returns:
            dict from name to array.

        Raises:
            tf.errors.OpError: if the inputs are not those of the signature, or
                the graph refuses them; in one line.
        """
        signature = self.signature(signature_name)
        dtypes = signature.dtypes
        extra, missing = set(inputs) - set(dtypes), set(dtypes) - set(inputs)
        if extra or missing:
            raise _invalid(
                f"input size does not match signature: "
                f"{len(inputs)}!={len(dtypes)}. Sent extra: "
                f"{{{','.join(sorted(extra))}}}. Missing but required: "
                f"{{{','.join(sorted(missing))}}}."
            )
        tensors = {}
        for name, value in inputs.items():
            received = tf.as_dtype(value.dtype)
            if received != dtypes[name]:
                raise _invalid(
                    f"Expects {name} to be {dtypes[name].name} but "
                    f"{received.name} is provided"
                )
            tensors[name] = tf.constant(value, received)
        try:
            outputs = signature.function(**tensors)
        except tf.errors.OpError as error:
            raise type(error)(None, None, _one_line(error.message)) from error
        return {name: _as_array(value) for name, value in outputs.items()}

    def close(self):
        """Ends the backend; the version answers no more."""
        if self.backend is not None:
            self.backend.close()


def _signature_definitions(path):
    try:
        content = (path / "saved_model.pb").read_bytes()
        message = saved_model_pb2.SavedModel.FromString(content)
    except (OSError, DecodeError) as error:
        raise InputError(f"{path}: holds no SavedModel: {error}.") from error
    for graph in message.meta_graphs:
        if "serve" in graph.meta_info_def.tags:
            return dict(graph.signature_def)
    raise InputError(f"{path}: its SavedModel has no graph tagged serve.")


def _as_array(value):
    array = value.numpy()
    # A scalar string comes as bytes.
    return np.array(array, object) if isinstance(array, bytes) else array


def _one_line(message):
    """Returns the rule that a graph's error tells, without its graph names."""
    if rule := re.search(r"assertion failed: \[(.*?)\]\n", message, re.DOTALL):
        return rule[1]
    lines = (
        line.strip()
        for line in re.sub(r"\s*\[(\[.*?\]|Op:.*?)\]", "", message).splitlines()
    )
    noise = ("Graph execution error", "Detected at", "<stack traces")
    return " ".join(
        line for line in lines if line and not line.startswith(noise)
    )


class VersionStatus(NamedTuple):
    """How a version is doing.

    Attributes:
        version: int.
        state: "START", "LOADING", "AVAILABLE", "UNLOADING" or "END".
        error_code: str, a name such as "OK" or "INVALID_ARGUMENT".
        error_message: str.
    """

    version: int
    state: str
    error_code: str
    error_message: str


@dataclasses.dataclass
class _Entry:
    state: str = "START"
    error_code: str = "OK"
    error_message: str = ""
    served: ServedVersion | None = None
    num_leases: int = 0
    num_attempts: int = 0
    # After a failed load: when, and what the folder was like.
    failed_at: float = 0.0
    failed_traces: tuple = ()


class ModelStore:
    """The models of a server, kept as their folders are.

    A round looks at the folders, loads versions that are new and wanted, and
    then retires those that no longer are, each when its last request is done.
    A version that does not load harms none: while no wanted version runs, the
    running ones stay. It is tried again when its folder changes, and 5 times
    a minute apart.

    Args:
        models: list of ModelConfig.
        poll_seconds: float. Between two rounds; 0 = only the first.
        make_backend: function of a loaded module and its folder that returns
            a Backend with a `close()`; called for exports of ours whose files
            were verified, in the loading thread.
        allow_labels_for_unavailable: bool. A label may name a version that
            does not run (yet).
    """

    def __init__(
        self,
        models,
        *,
        poll_seconds=1.0,
        make_backend=None,
        allow_labels_for_unavailable=False,
    ):
        self.models = {model.name: model for model in models}
        self._poll_seconds = poll_seconds
        self._make_backend = make_backend
        self._allow_labels = allow_labels_for_unavailable
        self._entries = {name: {} for name in self.models}
        # Guards states and leases; never held while loading.
        self._lock = threading.Lock()
        self._round = threading.Lock()
        self._stop = threading.Event()
        self._thread = None

    def start(self):
        """Makes the first round, and goes on in a thread.

        Raises:
            InputError: if a model has no version that runs, or a label none.
        """
        self.poll()
        for name, model in self.models.items():
            statuses = self._statuses(name)
            if not self.versions(name):
                reasons = [one.error_message for one in statuses]
                raise InputError(
                    reasons[-1]
                    if reasons
                    else f"{model.base_path}: holds no version to serve; a "
                    f"version is a folder with a number, such as "
                    f"{model.base_path}/1."
                )
            unknown = set(model.labels.values()) - set(self.versions(name))
            if unknown and not self._allow_labels:
                raise InputError(
                    f"{name}: a label names version {min(unknown)}, which is "
                    f"not served."
                )
        if self._poll_seconds:
            self._thread = threading.Thread(
                target=self._keep_polling, name="model_store", daemon=True
            )
            self._thread.start()

    def close(self):
        """Ends the thread and closes every version."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        for entries in self._entries.values():
            for entry in entries.values():
                if entry.served:
                    entry.served.close()
                    entry.served, entry.state = None, "END"

    def versions(self, name):
        """Returns the versions of a model that run, the lowest first."""
        with self._lock:
            return self._available(name)

    def is_ready(self):
        """Tells whether every model has a version that runs."""
        return all(self.versions(name) for name in self.models)

    def statuses(self, name, version=None):
        """Returns the VersionStatus of every version or of one, newest first.

        Raises:
            tf.errors.NotFoundError: if there is none.
        """
        found = [
            status
            for status in self._statuses(name)
            if version in (None, status.version)
        ]
        if not found:
            raise _not_found(
                f"Could not find any versions of model {name}"
                if version is None
                else f"Could not find version {version} of model {name}"
            )
        return found

    @contextlib.contextmanager
    def lease(self, name, *, version=None, label=None):
        """Gives a version that is not retired before the block ends.

        Args:
            name: str.
            version: int. `None` = the highest that runs.
            label: str. Instead of a version.

        Yields:
            ServedVersion.

        Raises:
            tf.errors.NotFoundError: if it does not run.
            tf.errors.InvalidArgumentError: if there is no such label.
        """
        with self._lock:
            entry = self._find(name, version, label)
            entry.num_leases += 1
        try:
            yield entry.served
        finally:
            with self._lock:
                entry.num_leases -= 1

    def poll(self):
        """Makes one round."""
        with self._round:
            for model in self.models.values():
                self._poll_model(model)

    def _keep_polling(self):
        while not self._stop.wait(self._poll_seconds):
            try:
                self.poll()
            except OSError as error:
                _LOG.warning("cannot look for versions: %s", error)

    def _poll_model(self, model):
        found = _versions_in(model.base_path)
        if found is None:
            _LOG.warning("%s: no such folder", model.base_path)
            return
        wanted = model.wanted(found)
        entries = self._entries[model.name]
        for version in sorted(wanted):
            with self._lock:
                entry = entries.setdefault(version, _Entry())
            if entry.state in ("START", "END") and _is_due(
                entry, found[version]
            ):
                self._load(model, version, found[version], entry)
        with self._lock:
            running = set(self._available(model.name))
            if running & wanted or not wanted:
                for version in running - wanted:
                    entries[version].state = "UNLOADING"
            idle = [
                (version, entry)
                for version, entry in entries.items()
                if entry.state == "UNLOADING" and not entry.num_leases
            ]
        for version, entry in idle:
            entry.served.close()
            with self._lock:
                entry.served, entry.state = None, "END"
            _LOG.info("%s version %d is retired", model.name, version)

    def _load(self, model, version, path, entry):
        with self._lock:
            entry.state = "LOADING"
            entry.num_attempts += 1
        traces = _traces(path)
        try:
            served = ServedVersion(
                model.name, version, path, make_backend=self._make_backend
            )
        # Whatever is wrong with a folder, the others are served on.
        except Exception as error:
            message = _one_line(f"{getattr(error, 'message', error)}\n")
            with self._lock:
                entry.state = "END"
                entry.error_code = _error_code(error)
                entry.error_message = message or type(error).__name__
                entry.failed_at = time.monotonic()
                entry.failed_traces = traces
            _LOG.error(
                "%s version %d is refused: %s",
                model.name,
                version,
                entry.error_message,
            )
            return
        with self._lock:
            entry.served, entry.state = served, "AVAILABLE"
            entry.error_code, entry.error_message = "OK", ""
            entry.num_attempts = 0
        _LOG.info("%s version %d is served", model.name, version)

    def _find(self, name, version, label):
        if label is not None:
            labels = self.models[name].labels if name in self.models else {}
            version = labels.get(label)
            if version is None or not (
                self._allow_labels or version in self._available(name)
            ):
                raise _invalid(f"Unrecognized servable version label: {label}")
        running = self._available(name)
        if version is None and running:
            version = running[-1]
        if version not in running:
            wanted = (
                f"Latest({name})"
                if version is None
                else f"Specific({name}, {version})"
            )
            raise _not_found(f"Servable not found for request: {wanted}")
        return self._entries[name][version]

    def _available(self, name):
        entries = self._entries.get(name, {})
        return sorted(
            version
            for version, entry in entries.items()
            if entry.state == "AVAILABLE"
        )

    def _statuses(self, name):
        with self._lock:
            entries = self._entries.get(name, {})
            return [
                VersionStatus(
                    version, one.state, one.error_code, one.error_message
                )
                for version, one in sorted(entries.items(), reverse=True)
            ]


def _versions_in(base_path):
    """Returns a dict from version to its folder, None without `base_path`."""
    if not base_path.is_dir():
        return None
    return {
        int(entry.name): entry
        for entry in base_path.iterdir()
        if entry.name.isascii()
        and entry.name.isdigit()
        and int(entry.name) <= _MAX_VERSION
        and entry.is_dir()
    }


def _is_due(entry, path):
    if entry.error_code == "OK":
        return True
    if entry.failed_traces != _traces(path):
        entry.num_attempts = 0
        return True
    return (
        entry.num_attempts <= _NUM_RETRIES
        and time.monotonic() - entry.failed_at >= _RETRY_SECONDS
    )


def _traces(path):
    """Returns what changes when a file comes, goes or is written."""
    with contextlib.suppress(OSError):
        return tuple(
            sorted(
                (str(file), file.stat().st_size, file.stat().st_mtime_ns)
                for file in path.rglob("*")
            )
        )
    return ()


def _error_code(error):
    if isinstance(error, InputError):
        return "INVALID_ARGUMENT"
    if isinstance(error, tf.errors.OpError):
        return error_codes_pb2.Code.Name(error.error_code)
    return "UNKNOWN"


def _invalid(message):
    return tf.errors.InvalidArgumentError(None, None, message)


def _not_found(message):
    return tf.errors.NotFoundError(None, None, message)
