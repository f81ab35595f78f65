"""Owns answers of a stock TF Serving, a few tokens a call. Not: our routes."""

import asyncio
import contextlib
import math
import urllib.parse

import httpx

from kerasgpt.config import InputError
from kerasgpt.serving.backend import (
    Backend,
    DeadlineExceeded,
    GeneratedToken,
    QueueFull,
    TokenScore,
    Unavailable,
)
from kerasgpt.tokenizers.tokenizer import CONTROL_TOKENS

# Its address is no business of those who ask us.
_WHO = "the server behind this one"
# What `generate_ids` has no input for, and the value that changes nothing.
_NEUTRAL = {
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
}
# The signatures that run the model; the others do not queue behind them.
_HEAVY = ("generate_ids", "score_ids")
_BROKEN = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
_SIZES = ("context_length", "max_new_tokens", "vocabulary_size")
_LANDMARKS = ("document_id", "document_end_id", "end_id", "chat_id")
_LEAST_TOP_P = 1e-9
# More of an error's text than this does not help.
_TOLD_LETTERS = 500
# The logits of so many padded tokens are one tensor in the other server.
_SCORED_TOKENS = 4096


class Upstream(Backend):
    """A model in another server, asked over TF Serving's REST contract.

    That server cannot stream: an answer is a series of short calls of
    `generate_ids`, each of which gets the prompt and all that came before.
    Randomness depends on the seed and the token's position alone, so the
    answer equals that of one long call. An answer stays with the version it
    began with; all versions of a model must have one tokenizer.

    Calls wait in line for a free slot, each call of an answer anew, so that a
    long answer does not hold up a short one. Who finds `max_waiting` requests
    beyond the slots is turned away at once.

    Args:
        url: str, such as "http://127.0.0.1:8501".
        model: str, its name there.
        version: int. `None` = the latest at the beginning of each answer.
        tokens_per_call: int. More are faster, fewer come more smoothly.
        first_call_tokens: int. Few, so that the first token comes soon.
        max_calls: int, calls of the model at a time.
        max_waiting: int, requests.
        call_timeout_s: float, seconds.
        transport: httpx.AsyncBaseTransport. `None` = the network.

    Raises:
        InputError: if the URL is none, or a count is less than 1.
    """

    def __init__(
        self,
        url,
        model,
        *,
        version=None,
        tokens_per_call=8,
        first_call_tokens=1,
        max_calls=4,
        max_waiting=32,
        call_timeout_s=30.0,
        transport=None,
    ):
        counts = {
            "tokens_per_call": tokens_per_call,
            "first_call_tokens": first_call_tokens,
            "max_calls": max_calls,
        }
        for name, count in counts.items():
            if count < 1:
                raise InputError(f"{name}={count}: must be at least 1.")
        if not url.startswith(("http://", "https://")):
            raise InputError(f"{url}: must begin with http:// or https://.")
        self.url = url.rstrip("/")
        self.model = model
        self._path = f"/v1/models/{urllib.parse.quote(model, safe='')}"
        self._fixed_version = version
        self._described_version = None
        self._tokens_per_call = tokens_per_call
        self._first_call_tokens = first_call_tokens
        self._max_open = max_calls + max_waiting
        self._num_open = 0
        self._slots = asyncio.Semaphore(max_calls)
        self._light_slots = asyncio.Semaphore(max_calls)
        try:
            self._client = httpx.AsyncClient(
                base_url=self.url,
                timeout=call_timeout_s,
                # As many as both semaphores let through.
                limits=httpx.Limits(max_connections=2 * max_calls),
                transport=transport,
                # A neighbour is not reached through the proxy of a company.
                trust_env=False,
            )
        except httpx.InvalidURL as error:
            raise InputError(f"{url}: {error}.") from error

    async def open(self):
        """Learns the sizes of the model; must be called before all else.

        Raises:
            InputError: if the model has no signatures of ours.
            DeadlineExceeded, Unavailable: as for every call.
        """
        await self._pin()

    async def close(self):
        """Closes the connections."""
        await self._client.aclose()

    async def encode(self, texts):
        some = [text for text in texts if text]
        if not some:
            return [[] for _ in texts]
        with self._place():
            reply = await self._predict("tokenize", {"text": some})
        return _with_blanks(texts, _rows(reply), [])

    async def encode_chat(self, messages):
        inputs = {
            "roles": [[message["role"] for message in messages]],
            "contents": [[message["content"] for message in messages]],
        }
        with self._place():
            reply = await self._predict("tokenize_chat", inputs)
        return _rows(reply)[0]

    async def decode(self, rows):
        some = [row for row in rows if row]
        if not some:
            return ["" for _ in rows]
        # Belongs to an answer under way: is never turned away.
        reply = await self._predict("detokenize", _padded(some))
        return _with_blanks(rows, reply["text"], "")

    async def generate(self, request):
        _require_neutral(request)
        deadline = None
        if request.deadline_s is not None:
            deadline = asyncio.get_running_loop().time() + request.deadline_s
        with self._place():
            version = await self._pin(deadline)
            self._require_stop(request)
            token_ids = list(request.token_ids)
            left = min(
                request.max_new_tokens, self.context_length - len(token_ids)
            )
            # Another answer may learn those of another version meanwhile.
            most = self.max_new_tokens
            num_tokens = self._first_call_tokens
            while left:
                num_tokens = min(num_tokens, left, most)
                inputs = _continuation(token_ids, num_tokens, request)
                reply = await self._predict(
                    "generate_ids", inputs, version, deadline
                )
                entries = _entries(reply, request.stop_id)
                new_ids = _rows(reply)[0]
                token_ids += new_ids
                left -= len(new_ids)
                if not entries[-1].finish_reason and not left:
                    entries[-1] = entries[-1]._replace(finish_reason="length")
                num_tokens = self._tokens_per_call
                yield entries
                if entries[-1].finish_reason:
                    return

    async def score(self, rows):
        scores = []
        with self._place():
            version = await self._pin()
            for group in _groups(rows):
                reply = await self._predict(
                    "score_ids", _padded(group), version
                )
                scores += [
                    _row_scores(reply, index, len(row))
                    for index, row in enumerate(group)
                ]
        return scores

    @contextlib.contextmanager
    def _place(self):
        if self._num_open >= self._max_open:
            raise QueueFull(retry_after_s=1.0)
        self._num_open += 1
        try:
            yield
        finally:
            self._num_open -= 1

    def _require_stop(self, request):
        stop_id = self.stop_id(request.token_ids)
        if request.stop_id != stop_id:
            raise InputError(
                f"stop_id={request.stop_id}: {_WHO} ends the answer to such a "
                f"prompt at {stop_id}."
            )

    async def _pin(self, deadline=None):
        """Returns the version of an answer, whose sizes are then known."""
        version = self._fixed_version
        if version is None:
            version = await self._latest_version(deadline)
        if version != self._described_version:
            known = await self._describe(
                [*_SIZES, *_LANDMARKS], version, deadline
            )
            try:
                self.control_ids = await self._describe(
                    [*CONTROL_TOKENS], version, deadline
                )
            except InputError:
                # Those of another tokenizer, which cannot be guessed.
                self.control_ids = {}
            for name in _SIZES:
                setattr(self, name, known.pop(name))
            self.landmarks = known
            self._described_version = version
        return version

    async def _describe(self, keys, version, deadline):
        values = await self._predict(
            "describe", {"key": keys}, version, deadline
        )
        return dict(zip(keys, values, strict=True))

    async def _latest_version(self, deadline):
        states = await self._ask(
            "GET", self._path, key="model_version_status", deadline=deadline
        )
        versions = [
            int(one["version"]) for one in states if one["state"] == "AVAILABLE"
        ]
        if not versions:
            raise Unavailable(f"{_WHO}: no version of {self.model} is up")
        return max(versions)

    async def _predict(self, signature, inputs, version=None, deadline=None):
        pinned = "" if version is None else f"/versions/{version}"
        return await self._ask(
            "POST",
            f"{self._path}{pinned}:predict",
            {"signature_name": signature, "inputs": inputs},
            key="outputs",
            deadline=deadline,
            slots=self._slots if signature in _HEAVY else self._light_slots,
        )

    async def _ask(
        self, method, path, body=None, *, key, deadline=None, slots=None
    ):
        """Returns a value of the answer's JSON.

        A broken connection is tried once more, which does no harm: equal
        calls have equal answers.
        """
        slots = slots or self._light_slots
        try:
            async with asyncio.timeout_at(deadline), slots:
                try:
                    reply = await self._client.request(method, path, json=body)
                except _BROKEN:
                    reply = await self._client.request(method, path, json=body)
        except (TimeoutError, httpx.ReadTimeout) as error:
            raise DeadlineExceeded(f"{_WHO}: no answer in time") from error
        except httpx.HTTPError as error:
            raise Unavailable(f"{_WHO}: {error}") from error
        if reply.is_success:
            try:
                return reply.json()[key]
            except (ValueError, KeyError, TypeError) as error:
                raise Unavailable(f"{_WHO} is no TF Serving") from error
        message = f"{_WHO}: {reply.status_code}: {_told(reply)}"
        if reply.status_code == 400:
            raise InputError(message)
        if reply.status_code == 429:
            raise QueueFull(retry_after_s=1.0)
        if reply.status_code == 504:
            raise DeadlineExceeded(message)
        raise Unavailable(message)


def _require_neutral(request):
    for name, neutral in _NEUTRAL.items():
        value = getattr(request, name)
        if value != neutral:
            raise InputError(
                f"{name}={value}: {_WHO} has no {name}; leave it at {neutral}."
            )


def _told(reply):
    """Returns the message of an error in one line."""
    try:
        message = str(reply.json()["error"])
    except (ValueError, KeyError, TypeError):
        message = reply.reason_phrase
    return " ".join(message.split())[:_TOLD_LETTERS]


def _padded(rows):
    width = max(map(len, rows))
    return {
        "token_ids": [[*row, *[0] * (width - len(row))] for row in rows],
        "length": [len(row) for row in rows],
    }


def _with_blanks(given, results, blank):
    """Returns a result for each of `given`; empty ones were not sent."""
    results = iter(results)
    return [next(results) if one else blank for one in given]


def _rows(reply):
    return [
        ids[:length]
        for ids, length in zip(reply["token_ids"], reply["length"], strict=True)
    ]


def _continuation(token_ids, num_tokens, request):
    return {
        **_padded([token_ids]),
        "max_new_tokens": [num_tokens],
        "temperature": [request.temperature],
        "top_k": [request.top_k],
        # The signature refuses 0, which means as much.
        "top_p": [request.top_p or _LEAST_TOP_P],
        "seed": [request.seed],
    }


def _entries(reply, stop_id):
    """Returns what a call added; its "length" is not the end of the answer."""
    log_probabilities = reply["log_probabilities"][0]
    entries = [
        GeneratedToken(token_id, log_probability, (), None)
        for token_id, log_probability in zip(
            _rows(reply)[0], log_probabilities, strict=False
        )
    ]
    if reply["finish_reason"][0] == "stop":
        # Not every export tells how likely the stop id was.
        (log_probability,) = log_probabilities[len(entries) :] or [-math.inf]
        entries.append(GeneratedToken(stop_id, log_probability, (), "stop"))
    return entries


def _groups(rows):
    """Yields neighbouring rows that are scored in one call."""
    group = []
    for row in rows:
        width = max(map(len, [*group, row]))
        if group and width * (len(group) + 1) > _SCORED_TOKENS:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _row_scores(reply, index, length):
    names = ("log_probabilities", "top_token_ids", "top_log_probabilities")
    columns = zip(*(reply[name][index][:length] for name in names), strict=True)
    scores = [
        TokenScore(log_probability, tuple(zip(ids, values, strict=True)))
        for log_probability, ids, values in columns
    ]
    scores[0] = TokenScore(None, ())
    return scores
