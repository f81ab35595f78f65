"""Owns the requests that a server runs before it serves. Not: a server."""

import concurrent.futures
import contextlib
import os
import pathlib
import re

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from kerasgpt.config import InputError
from kerasgpt.tokenizers.tokenizer import CONTROL_TOKENS

FILE = pathlib.Path("assets.extra", "tf_serving_warmup_requests")
# TensorFlow Serving loads no version that has more.
MAX_RECORDS = 1000
# Control ids of a chat around its content, and the space that SentencePiece
# puts before a text.
_FRAME_TOKENS = 5


def warmup_examples(
    signatures,
    *,
    context_length,
    batch_sizes=(1, 2, 4, 8),
    lengths=(16, 128),
    max_new_tokens=2,
):
    """Returns small requests: every signature, batch size and length.

    A length is one of the text in characters, of which none takes more than
    a token, or of the ids. Where no input says how many tokens to generate, as
    for `serving_default`, one row has to do: it is as long as answers get.

    Args:
        signatures: dict from name to the names of the inputs.
        context_length: int. Longer lengths are cut to what fits.
        batch_sizes: ints.
        lengths: ints.
        max_new_tokens: int. Few, for a quick start.

    Returns:
        list of (signature name, dict of arrays), to be given to
        `write_warmup`.

    Example:
        >>> warmup_examples(
        ...     {"tokenize": ["text"]},
        ...     context_length=64,
        ...     batch_sizes=[2],
        ...     lengths=[3],
        ... )
        [('tokenize', {'text': array([b'aaa', b'aaa'], dtype=object)})]
    """
    room = context_length - max_new_tokens - _FRAME_TOKENS
    examples = []
    for name, inputs in signatures.items():
        is_long = "prompt" in inputs and "max_new_tokens" not in inputs
        is_fixed = is_long or "key" in inputs
        for rows in [1] if is_long else batch_sizes:
            for length in sorted({max(1, min(one, room)) for one in lengths}):
                values = _values(rows, length, max_new_tokens)
                examples.append((name, {one: values[one] for one in inputs}))
                if is_fixed:
                    break
    return examples


def _values(rows, length, max_new_tokens):
    """Returns a value for every input that a signature of ours has."""

    def filled(value, dtype, *shape):
        return np.full((rows, *shape), value, dtype)

    text = b"a" * length
    return {
        "prompt": filled(text, object),
        "text": filled(text, object),
        "roles": filled(b"user", object, 1),
        "contents": filled(text, object, 1),
        # The first id that is an ordinary token in every vocabulary.
        "token_ids": filled(len(CONTROL_TOKENS), np.int32, length),
        "length": filled(length, np.int32),
        "key": filled(b"context_length", object),
        "max_new_tokens": filled(max_new_tokens, np.int32),
        "temperature": filled(0.0, np.float32),
        "top_k": filled(0, np.int32),
        "top_p": filled(1.0, np.float32),
        "seed": filled(0, np.int32),
    }


def write_warmup(path, examples):
    """Writes the requests where TensorFlow Serving looks for them.

    Args:
        path: str or Path. The folder of a version.
        examples: list of (signature name, dict of arrays).

    Raises:
        InputError: if there are too many, or the file cannot be written.
    """
    if len(examples) > MAX_RECORDS:
        raise InputError(
            f"{len(examples)} warm-up records: at most {MAX_RECORDS} are "
            f"allowed."
        )
    file = pathlib.Path(path) / FILE
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for signature_name, inputs in examples:
                writer.write(_record(signature_name, inputs))
        os.replace(temporary, file)
    except (OSError, tf.errors.OpError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InputError(f"{file}: cannot be written: {error}.") from error


def _record(signature_name, inputs):
    # Without the model's name, which no server compares.
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.signature_name = signature_name
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return log.SerializeToString()


def replay_warmup(loaded, path):
    """Runs the requests of a version; without a file it has none.

    Args:
        loaded: what `tf.saved_model.load` returned.
        path: str or Path. The folder of the version.

    Returns:
        int. How many were run.

    Raises:
        InputError: if the file is damaged, or a request fails: then the
            version is not to be served.
    """
    file = pathlib.Path(path) / FILE
    if not file.exists():
        return 0
    number, logs = 0, []
    # A first run is spent on optimising a graph, by one thread.
    pool = concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        for data in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
            number += 1
            if number > MAX_RECORDS:
                raise ValueError(f"at most {MAX_RECORDS} are allowed")
            logs.append(prediction_log_pb2.PredictionLog.FromString(data))
        runs = [pool.submit(_run, loaded.signatures, log) for log in logs]
        number = 0
        for run in runs:
            number += 1
            run.result()
    except (tf.errors.OpError, DecodeError, ValueError, TypeError) as error:
        text = getattr(error, "message", str(error))
        rule = re.search(r"assertion failed: \[(.*?)\]\n", text, re.DOTALL)
        reason = rule[1] if rule else " ".join(text.split())
        raise InputError(
            f"{file}: warm-up record {number} fails: {reason}"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    return number


def _run(signatures, log):
    request = log.predict_log.request
    name = request.model_spec.signature_name or "serving_default"
    if not log.HasField("predict_log"):
        raise ValueError("it is not of a predict request")
    if name not in signatures:
        raise ValueError(f"the model has no signature {name}")
    signatures[name](
        **{
            alias: tf.constant(tf.make_ndarray(tensor))
            for alias, tensor in request.inputs.items()
        }
    )
