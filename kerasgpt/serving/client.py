"""Owns asking a server over REST, gRPC or OpenAI's API. Not: answering.

Importing it loads no TensorFlow; only `GrpcClient` needs that.
"""

import abc
import json
import urllib.parse

import httpx
import numpy as np

from kerasgpt.config import InputError

_SIGNATURES = "signature_def"
# More of an error's text than this does not help.
_TOLD_LETTERS = 500


class ServerError(InputError):
    """A server is away or refused; the text says which and why.

    Args:
        message: str.
        status: int, HTTP's. `None` = no answer, or one of gRPC.
    """

    def __init__(self, message, status=None):
        super().__init__(message)
        self.status = status


class _SignatureClient(abc.ABC):
    """Calls of an export's signatures, by whatever way they travel."""

    @abc.abstractmethod
    def predict(self, signature, inputs):
        pass

    def generate(self, prompts, **sampling):
        """Returns how the model continues each text.

        Args:
            prompts: list of str.
            **sampling: max_new_tokens (128), temperature (0.0), top_k (0),
                top_p (1.0), seed (0), which counts up from row to row.

        Returns:
            list of str.
        """
        inputs = {"prompt": list(prompts)}
        inputs |= _sampling_inputs(len(inputs["prompt"]), **sampling)
        return self.predict("generate", inputs)["text"]

    def chat(self, conversations, **sampling):
        """Returns the assistant's next turn in each conversation.

        Args:
            conversations: list of lists of {"role", "content"} messages.
            **sampling: see `generate`.

        Returns:
            list of str.
        """
        num_turns = max(map(len, conversations), default=0)

        def column(name):
            return [
                [message[name] for message in messages]
                + [""] * (num_turns - len(messages))
                for messages in conversations
            ]

        inputs = {"roles": column("role"), "contents": column("content")}
        inputs |= _sampling_inputs(len(conversations), **sampling)
        return self.predict("chat", inputs)["text"]

    def score(self, texts):
        """Returns (log-likelihood, number of tokens) of each text.

        Args:
            texts: list of str.

        Returns:
            list of (float, int). Natural logarithms.
        """
        reply = self.predict("score", {"text": list(texts)})
        pairs = zip(reply["log_likelihood"], reply["num_tokens"], strict=True)
        return list(pairs)


def _sampling_inputs(
    num_rows,
    *,
    max_new_tokens=128,
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    seed=0,
):
    return {
        "max_new_tokens": [max_new_tokens] * num_rows,
        "temperature": [float(temperature)] * num_rows,
        "top_k": [top_k] * num_rows,
        "top_p": [float(top_p)] * num_rows,
        "seed": [seed + row for row in range(num_rows)],
    }


class _HttpClient:
    """JSON to and from one server; what fails is a `ServerError`."""

    def __init__(self, url, *, api_key=None, timeout_s=60.0, transport=None):
        if not url.startswith(("http://", "https://")):
            raise InputError(f"{url}: must begin with http:// or https://.")
        if api_key and not api_key.isascii():
            raise InputError("the API key must be of ASCII characters.")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = url.rstrip("/")
        try:
            self._client = httpx.Client(
                base_url=self.url,
                headers=headers,
                timeout=timeout_s,
                transport=transport,
            )
        except httpx.InvalidURL as error:
            raise InputError(f"{url}: {error}.") from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Closes the connections."""
        self._client.close()

    def _ask(self, method, path, body=None, *, pick):
        """Returns what `pick` takes from the answer's JSON."""
        try:
            reply = self._client.request(method, path, **self._sent(body))
        except httpx.HTTPError as error:
            raise self._away(error) from error
        self._require_success(reply)
        return self._picked(reply.content, pick)

    def _sent(self, body):
        if body is None:
            return {}
        try:
            content = json.dumps(body, allow_nan=False).encode()
        except ValueError as error:
            raise InputError(f"{self.url}: cannot be asked: {error}.") from (
                error
            )
        return {
            "content": content,
            "headers": {"Content-Type": "application/json"},
        }

    def _picked(self, content, pick):
        try:
            return pick(json.loads(content))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ServerError(
                f"{self.url}: the answer is not one of this API."
            ) from error

    def _away(self, error):
        reason = str(error) or type(error).__name__
        return ServerError(f"{self.url}: no answer: {reason}.")

    def _require_success(self, reply):
        if reply.is_success:
            return
        try:
            message = reply.json()["error"]
            # OpenAI's errors are objects, TF Serving's are texts.
            if isinstance(message, dict):
                message = message["message"]
        except (ValueError, KeyError, TypeError):
            message = reply.reason_phrase
        raise ServerError(
            f"{self.url}: {reply.status_code}: {_one_line(message)}",
            reply.status_code,
        )


def _one_line(message):
    return " ".join(str(message).split())[:_TOLD_LETTERS]


class RestClient(_HttpClient, _SignatureClient):
    """A model behind TF Serving's REST API, ours or the stock one.

    Args:
        url: str, such as "http://127.0.0.1:8501".
        model: str.
        version: int. `None` = the latest.
        label: str, instead of a version.
        api_key: str, the server's bearer token.
        timeout_s: float, seconds without an answer.
        transport: httpx.BaseTransport. `None` = the network.

    Raises:
        InputError: if the URL is none.
        ServerError: from every method: no server, or it refuses.

    Example:
        >>> def answer(request):
        ...     return httpx.Response(200, json={"predictions": ["Yes."]})
        >>> transport = httpx.MockTransport(answer)
        >>> client = RestClient("http://shop", "chat", transport=transport)
        >>> client.predict_rows("serving_default", ["Do you ship today?"])
        ['Yes.']
    """

    def __init__(self, url, model, *, version=None, label=None, **options):
        super().__init__(url, **options)
        self._model_path = f"/v1/models/{urllib.parse.quote(model, safe='')}"
        self._path = self._model_path
        if version is not None:
            self._path += f"/versions/{version}"
        elif label is not None:
            self._path += f"/labels/{urllib.parse.quote(label, safe='')}"

    def predict(self, signature, inputs):
        """Runs a signature on columns.

        Args:
            signature: str.
            inputs: dict from name to nested lists.

        Returns:
            dict from name to nested lists, or the one output's nested list.
        """
        body = {"signature_name": signature, "inputs": inputs}
        return self._ask(
            "POST",
            f"{self._path}:predict",
            body,
            pick=lambda reply: reply["outputs"],
        )

    def predict_rows(self, signature, instances):
        """Runs a signature on rows.

        Args:
            signature: str.
            instances: list of values, if there is one input, or of dicts.

        Returns:
            list of values, if there is one output, or of dicts.
        """
        body = {"signature_name": signature, "instances": instances}
        return self._ask(
            "POST",
            f"{self._path}:predict",
            body,
            pick=lambda reply: reply["predictions"],
        )

    def status(self):
        """Returns dict from version to state, such as {1: "AVAILABLE"}."""
        return self._ask(
            "GET",
            self._path,
            pick=lambda reply: {
                int(one["version"]): one["state"]
                for one in reply["model_version_status"]
            },
        )

    def metadata(self):
        """Returns dict from signature to its inputs and outputs, as JSON."""
        return self._ask(
            "GET",
            f"{self._path}/metadata",
            pick=lambda reply: reply["metadata"][_SIGNATURES][_SIGNATURES],
        )


class GrpcClient(_SignatureClient):
    """A model behind TF Serving's gRPC API, ours or the stock one.

    Args:
        address: str, such as "127.0.0.1:8500".
        model: str.
        version: int. `None` = the latest.
        label: str, instead of a version.
        api_key: str, the server's bearer token.
        timeout_s: float, seconds a call may take.

    Raises:
        ServerError: from every method: no server, or it refuses.
    """

    def __init__(
        self,
        address,
        model,
        *,
        version=None,
        label=None,
        api_key=None,
        timeout_s=60.0,
    ):
        # The messages load all of TensorFlow, hence imports in functions.
        import grpc
        from tensorflow_serving.apis import (
            model_pb2,
            model_service_pb2_grpc,
            prediction_service_pb2_grpc,
        )

        self.address = address
        self._options = {"timeout": timeout_s}
        if api_key:
            header = ("authorization", f"Bearer {api_key}")
            self._options["metadata"] = [header]
        self._channel = grpc.insecure_channel(address)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(
            self._channel
        )
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._spec = model_pb2.ModelSpec(name=model)
        if version is not None:
            self._spec.version.value = version
        elif label is not None:
            self._spec.version_label = label

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Closes the connection."""
        self._channel.close()

    def predict(self, signature, inputs):
        """Runs a signature.

        Args:
            signature: str.
            inputs: dict from name to nested lists or arrays; Python's int and
                float go as int32 and float32.

        Returns:
            dict from name to nested lists; strings as str, but as bytes if
            the name ends in "_bytes".
        """
        from tensorflow import make_ndarray, make_tensor_proto
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest(model_spec=self._spec)
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(make_tensor_proto(value))
        reply = self._ask(self._predictions.Predict, request)
        return {
            name: _plain(make_ndarray(value), name.endswith("_bytes"))
            for name, value in reply.outputs.items()
        }

    def status(self):
        """Returns dict from version to state, such as {1: "AVAILABLE"}."""
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest(
            model_spec=self._spec
        )
        states = self._ask(self._models.GetModelStatus, request)
        return {
            one.version: one.State.Name(one.state)
            for one in states.model_version_status
        }

    def metadata(self):
        """Returns dict from signature to its inputs and outputs, as JSON."""
        from google.protobuf.json_format import MessageToDict
        from tensorflow_serving.apis import get_model_metadata_pb2

        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._spec, metadata_field=[_SIGNATURES]
        )
        reply = self._ask(self._predictions.GetModelMetadata, request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        reply.metadata[_SIGNATURES].Unpack(signatures)
        fields = MessageToDict(signatures, preserving_proto_field_name=True)
        return fields[_SIGNATURES]

    def _ask(self, method, request):
        import grpc

        try:
            return method(request, **self._options)
        except grpc.RpcError as error:
            raise ServerError(
                f"{self.address}: {error.code().name}: "
                f"{_one_line(error.details())}"
            ) from error


def _plain(array, is_bytes):
    if array.dtype == object and not is_bytes:
        array = np.frompyfunc(lambda one: one.decode(errors="replace"), 1, 1)(
            array
        )
    return array.tolist()


class OpenAIClient(_HttpClient):
    """A server that speaks OpenAI's API, ours or another one.

    Args:
        url: str, such as "http://127.0.0.1:8501", with or without "/v1".
        api_key: str, the server's bearer token.
        timeout_s: float, seconds without an answer.
        transport: httpx.BaseTransport. `None` = the network.

    Raises:
        InputError: if the URL is none.
        ServerError: from every method: no server, or it refuses.

    Example:
        >>> def answer(request):
        ...     message = {"role": "assistant", "content": "Yes."}
        ...     return httpx.Response(200, json={"choices": [
        ...         {"message": message}]})
        >>> transport = httpx.MockTransport(answer)
        >>> client = OpenAIClient("http://shop", transport=transport)
        >>> client.chat([{"role": "user", "content": "?"}], model="shop_chat")
        'Yes.'
    """

    def __init__(self, url, **options):
        super().__init__(url.rstrip("/").removesuffix("/v1"), **options)

    def models(self):
        """Returns the names of the models."""
        return self._ask(
            "GET",
            "/v1/models",
            pick=lambda reply: [one["id"] for one in reply["data"]],
        )

    def context_length(self, *, model):
        """Returns how many tokens prompt and answer may have; ours only."""
        name = urllib.parse.quote(model, safe="")
        return self._ask(
            "GET",
            f"/tokenizer_info?model={name}",
            pick=lambda reply: int(reply["model_max_length"]),
        )

    def tokenize(self, text, *, model):
        """Returns the ids of a text, a list of int; ours only."""
        return self._ask(
            "POST",
            "/tokenize",
            {"model": model, "prompt": text},
            pick=lambda reply: reply["tokens"],
        )

    def complete(self, prompt, *, model, **options):
        """Returns how a model continues a text.

        Args:
            prompt: str or list of int.
            model: str.
            **options: of the request: max_tokens, temperature, seed and so on.
        """
        body = {"model": model, "prompt": prompt, **options}
        return self._ask(
            "POST",
            "/v1/completions",
            body,
            pick=lambda reply: reply["choices"][0]["text"],
        )

    def chat(self, messages, *, model, **options):
        """Returns the assistant's next turn.

        Args:
            messages: list of {"role", "content"}.
            model: str.
            **options: see `complete`.
        """
        body = {"model": model, "messages": messages, **options}
        return self._ask(
            "POST",
            "/v1/chat/completions",
            body,
            pick=lambda reply: reply["choices"][0]["message"]["content"],
        )

    def stream_chat(self, messages, *, model, **options):
        """Yields the assistant's next turn piece by piece.

        Closing the generator tells the server to stop.

        Args:
            messages, model, **options: see `chat`.

        Yields:
            str.
        """
        body = {"model": model, "messages": messages, "stream": True, **options}
        try:
            with self._client.stream(
                "POST", "/v1/chat/completions", **self._sent(body)
            ) as reply:
                if not reply.is_success:
                    reply.read()
                self._require_success(reply)
                for data in _event_data(reply.iter_bytes()):
                    if data == b"[DONE]":
                        return
                    piece = self._picked(data, self._piece)
                    if piece:
                        yield piece
        except httpx.HTTPError as error:
            raise self._away(error) from error
        raise ServerError(f"{self.url}: the answer broke off.")

    def _piece(self, event):
        if "error" in event:
            message = _one_line(event["error"]["message"])
            raise ServerError(f"{self.url}: {message}")
        # The event of the usage has no choice, the first and last no text.
        choices = event["choices"]
        return choices[0]["delta"].get("content") if choices else None


def _event_data(chunks):
    """Yields the data of each event of one line."""
    rest = b""
    for chunk in chunks:
        # Lines of bytes: as text, U+2028 within a value would end one too.
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            name, _, value = line.partition(b":")
            if name == b"data":
                yield value.strip()
