import asyncio
import contextlib
import json
import math

import httpx
import numpy as np
import pytest
import tensorflow as tf

from kerasgpt.config import InputError
from kerasgpt.generation import Generator
from kerasgpt.models import GPTCausalLM, GPTConfig
from kerasgpt.serving.backend import (
    DeadlineExceeded,
    GenerationRequest,
    QueueFull,
    Unavailable,
)
from kerasgpt.serving.saved_model import export_saved_model
from kerasgpt.serving.upstream import Upstream
from kerasgpt.tokenizers import CONTROL_TOKENS, ByteTokenizer, ChatTemplate

URL = "http://models.test:8501"
CONTEXT, CAP = 40, 12
END_OF_DOCUMENT = CONTROL_TOKENS.index("<|end_of_document|>")
ASSISTANT = CONTROL_TOKENS.index("<|assistant|>")
END_OF_TURN = CONTROL_TOKENS.index("<|end_of_turn|>")
SIZES = {
    "context_length": CONTEXT,
    "max_new_tokens": CAP,
    "vocabulary_size": 265,
}


class FakeServing:
    """Stands for TF Serving: its routes over a model that only counts.

    The next id depends on seed and position; ids of 100 and more are
    followed by a stop where `stop_after` says so.
    """

    def __init__(self, *versions, stop_after=None):
        self.versions = list(versions) or [1]
        self.stop_after = stop_after
        self.calls = []
        self.faults = []

    async def __call__(self, request):
        path = request.url.path
        body = json.loads(request.content or b"null")
        self.calls.append((path, body))
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, httpx.Response):
                return fault
            if fault is not None:
                raise fault
        if request.method == "GET":
            states = [
                {"version": str(one), "state": "AVAILABLE"}
                for one in self.versions
            ]
            ended = {"version": "99", "state": "END"}
            return httpx.Response(
                200, json={"model_version_status": [ended, *states]}
            )
        return await self.predict(path, body)

    async def predict(self, path, body):
        name, _, version = path.removesuffix(":predict").partition("/versions/")
        version = int(version or max(self.versions))
        if name != "/v1/models/shop" or version not in self.versions:
            message = f"Servable not found for request: Specific({name})"
            return httpx.Response(404, json={"error": message})
        signature = getattr(self, body["signature_name"])
        outputs = signature(version, **body["inputs"])
        return httpx.Response(200, json={"outputs": outputs})

    def describe(self, version, key):
        controls = {name: index for index, name in enumerate(CONTROL_TOKENS)}
        landmarks = {
            "document_id": controls["<|document|>"],
            "document_end_id": controls["<|end_of_document|>"],
            "end_id": controls["<|end_of_turn|>"],
            "chat_id": controls["<|assistant|>"],
        }
        return [{**SIZES, **landmarks, **controls}[one] for one in key]

    def generate_ids(
        self, version, token_ids, length, max_new_tokens, seed, **sampling
    ):
        (row,), (count,), (limit,), (seed,) = (
            token_ids,
            length,
            max_new_tokens,
            seed,
        )
        assert count == len(row) and 1 <= limit <= CAP
        assert {name: len(value) for name, value in sampling.items()} == {
            "temperature": 1,
            "top_k": 1,
            "top_p": 1,
        }
        new_ids, reason = [], "length"
        while len(new_ids) < min(limit, CONTEXT - count):
            position = count + len(new_ids)
            if position == self.stop_after:
                reason = "stop"
                break
            new_ids.append(100 * version + seed + position)
        return {
            "token_ids": [new_ids],
            "length": [len(new_ids)],
            "log_probabilities": [
                [-float(one) for one in new_ids] + [-0.5] * (reason == "stop")
            ],
            "finish_reason": [reason],
        }

    def score_ids(self, version, token_ids, length):
        top = [[[7, 8, 9, 10, 11] for _ in row] for row in token_ids]
        return {
            "log_probabilities": [
                [-float(one) for one in row] for row in token_ids
            ],
            "is_greedy": [[False for _ in row] for row in token_ids],
            "top_token_ids": top,
            "top_log_probabilities": top,
        }

    def tokenize(self, version, text):
        assert all(text)
        rows = [[ord(letter) for letter in one] for one in text]
        width = max(map(len, rows))
        return {
            "token_ids": [row + [0] * (width - len(row)) for row in rows],
            "length": [len(row) for row in rows],
        }

    def tokenize_chat(self, version, roles, contents):
        text = "".join(
            f"{role}:{content};"
            for role, content in zip(roles[0], contents[0], strict=True)
        )
        return self.tokenize(version, [text])

    def detokenize(self, version, token_ids, length):
        assert min(length) > 0
        text = [
            "".join(map(chr, row[:count]))
            for row, count in zip(token_ids, length, strict=True)
        ]
        return {"text": text, "text_bytes": text}

    def named(self, signature):
        return [
            (path, body["inputs"])
            for path, body in self.calls
            if body and body["signature_name"] == signature
        ]


def request(*token_ids, **changes):
    values = {"max_new_tokens": 10, "stop_id": END_OF_DOCUMENT, **changes}
    return GenerationRequest(token_ids=token_ids, **values)


@contextlib.asynccontextmanager
async def opened(serving, **options):
    upstream = Upstream(
        URL, "shop", transport=httpx.MockTransport(serving), **options
    )
    await upstream.open()
    yield upstream
    await upstream.close()


def use(serving, function, **options):
    """Returns what an async function of an open `Upstream` returns."""

    async def run():
        async with opened(serving, **options) as upstream:
            return await function(upstream)

    return asyncio.run(asyncio.wait_for(run(), timeout=20))


async def collect(upstream, wanted):
    return [entries async for entries in upstream.generate(wanted)]


def generate(serving, wanted, **options):
    """Returns the chunks of an answer."""
    return use(serving, lambda up: collect(up, wanted), **options)


def ids(chunks):
    return [entry.token_id for chunk in chunks for entry in chunk]


def test_opening_learns_the_sizes_and_control_ids():
    async def read(upstream):
        return upstream

    upstream = use(FakeServing(), read)
    assert upstream.context_length == CONTEXT
    assert upstream.max_new_tokens == CAP
    assert upstream.vocabulary_size == 265
    assert upstream.control_ids["<|end_of_turn|>"] == END_OF_TURN
    assert set(upstream.control_ids) == set(CONTROL_TOKENS)


def test_a_server_of_another_tokenizer_tells_its_landmarks():
    class Foreign(FakeServing):
        async def predict(self, path, body):
            if CONTROL_TOKENS[0] in body["inputs"].get("key", ()):
                return httpx.Response(400, json={"error": "key must be one"})
            return await super().predict(path, body)

        def describe(self, version, key):
            landmarks = {
                "document_id": 50,
                "document_end_id": 50,
                "end_id": 52,
                "chat_id": 51,
            }
            return [{**SIZES, **landmarks}[one] for one in key]

    async def read(upstream):
        return upstream

    upstream = use(Foreign(), read)
    assert upstream.control_ids == {}
    assert upstream.stop_id([1, 51, 2]) == 52
    assert upstream.stop_id([1, 2]) == 50


def test_an_answer_comes_in_calls_that_continue_each_other():
    serving = FakeServing()
    chunks = generate(
        serving,
        request(1, 2, 3, seed=5, temperature=0.5, top_k=7, top_p=0.9),
        tokens_per_call=4,
        first_call_tokens=2,
    )
    assert ids(chunks) == [105 + position for position in range(3, 13)]
    assert [len(chunk) for chunk in chunks] == [2, 4, 4]
    reasons = [entry.finish_reason for chunk in chunks for entry in chunk]
    assert reasons == [None] * 9 + ["length"]
    assert [entry.log_probability for entry in chunks[0]] == [-108.0, -109.0]
    calls = [inputs for _, inputs in serving.named("generate_ids")]
    assert [call["max_new_tokens"] for call in calls] == [[2], [4], [4]]
    assert calls[1]["token_ids"] == [[1, 2, 3, 108, 109]]
    assert calls[1]["length"] == [5]
    for call in calls:
        assert call["seed"] == [5] and call["temperature"] == [0.5]
        assert call["top_k"] == [7] and call["top_p"] == [0.9]


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5, 6])
def test_a_stop_ends_the_answer_with_an_entry_of_its_own(stop_after):
    serving = FakeServing(stop_after=stop_after)
    chunks = generate(
        serving, request(1), tokens_per_call=4, first_call_tokens=1
    )
    entries = [entry for chunk in chunks for entry in chunk]
    assert len(entries) == stop_after
    assert all(chunk for chunk in chunks)
    assert entries[-1] == (END_OF_DOCUMENT, -0.5, (), "stop")
    assert all(entry.finish_reason is None for entry in entries[:-1])


def test_a_top_p_of_nothing_is_sent_as_very_little():
    serving = FakeServing()
    generate(serving, request(1, top_p=0.0, max_new_tokens=1))
    ((_, inputs),) = serving.named("generate_ids")
    assert 0 < inputs["top_p"][0] < 1e-6


def test_an_export_need_not_tell_how_likely_the_stop_id_was():
    class Silent(FakeServing):
        def generate_ids(self, *arguments, **inputs):
            reply = super().generate_ids(*arguments, **inputs)
            (scores,), (length,) = reply["log_probabilities"], reply["length"]
            return {**reply, "log_probabilities": [scores[:length]]}

    (first, last) = generate(Silent(stop_after=2), request(1))
    assert first[0].log_probability == -101.0
    assert last == [(END_OF_DOCUMENT, -math.inf, (), "stop")]


def test_an_answer_ends_where_the_context_is_full():
    serving = FakeServing()
    wanted = request(*[1] * (CONTEXT - 3), max_new_tokens=50)
    chunks = generate(serving, wanted)
    assert len(ids(chunks)) == 3
    assert chunks[-1][-1].finish_reason == "length"


def test_an_answer_may_be_longer_than_one_call_can_be():
    chunks = generate(
        FakeServing(), request(1, max_new_tokens=30), tokens_per_call=50
    )
    assert [len(chunk) for chunk in chunks] == [1, CAP, CAP, 5]


@pytest.mark.parametrize(
    ("token_ids", "right", "wrong"),
    [
        ((1, 2), END_OF_DOCUMENT, END_OF_TURN),
        ((1, ASSISTANT), END_OF_TURN, END_OF_DOCUMENT),
    ],
)
def test_a_stop_id_that_the_server_does_not_use_is_refused(
    token_ids, right, wrong
):
    assert ids(generate(FakeServing(), request(*token_ids, stop_id=right)))
    with pytest.raises(InputError, match=f"stop_id={wrong}: "):
        generate(FakeServing(), request(*token_ids, stop_id=wrong))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_p", 0.1),
        ("repetition_penalty", 1.1),
        ("frequency_penalty", -0.5),
        ("presence_penalty", 0.5),
    ],
)
def test_settings_that_the_server_lacks_are_refused_by_name(name, value):
    serving = FakeServing()
    with pytest.raises(InputError, match=f"{name}={value}: .*leave it at"):
        generate(serving, request(1, **{name: value}))
    assert not serving.named("generate_ids")


def test_an_answer_stays_with_the_version_it_began_with():
    serving = FakeServing(3)

    async def run(upstream):
        answer = upstream.generate(request(1))
        chunks = [await anext(answer)]
        serving.versions = [3, 4]
        chunks += [chunk async for chunk in answer]
        later = await collect(upstream, request(1))
        return chunks, later

    chunks, later = use(serving, run)
    assert ids(chunks) == [301 + index for index in range(10)]
    assert ids(later) == [401 + index for index in range(10)]
    described = [path for path, _ in serving.named("describe")]
    assert described == [
        f"/v1/models/shop/versions/{version}:predict"
        for version in (3, 3, 4, 4)
    ]


def test_a_version_retired_during_an_answer_is_told():
    serving = FakeServing(3)

    async def run(upstream):
        answer = upstream.generate(request(1))
        await anext(answer)
        serving.versions = [4]
        with pytest.raises(Unavailable, match="404: Servable not found"):
            await anext(answer)
        return await collect(upstream, request(1))

    assert ids(use(serving, run))[0] == 401


def test_a_given_version_is_kept():
    serving = FakeServing(3, 4)
    chunks = generate(serving, request(1), version=3)
    assert ids(chunks)[0] == 301
    assert all(path.endswith(":predict") for path, _ in serving.calls)


def test_texts_and_ids():
    async def run(upstream):
        messages = [
            {"role": "user", "content": "你"},
            {"role": "assistant", "content": ""},
        ]
        return (
            await upstream.encode(["ab", "", "c"]),
            await upstream.encode([""]) + await upstream.decode([[]]),
            await upstream.encode_chat(messages),
            await upstream.decode([[97, 98], [], [99]]),
        )

    texts, blanks, chat, decoded = use(FakeServing(), run)
    assert texts == [[97, 98], [], [99]]
    assert blanks == [[], ""]
    assert "".join(map(chr, chat)) == "user:你;assistant:;"
    assert decoded == ["ab", "", "c"]


def test_scores_of_rows_of_any_length():
    serving = FakeServing()
    rows = [[1, 2, 3], [4], list(range(40)) * 60, [5, 6]]

    async def run(upstream):
        return await upstream.score(rows)

    scores = use(serving, run)
    assert [len(row) for row in scores] == [3, 1, 2400, 2]
    assert scores[1] == [(None, ())]
    first, second, _ = scores[0]
    assert first == (None, ())
    assert second.log_probability == -2.0
    assert second.top == tuple((one, one) for one in range(7, 12))
    # One call would hold 4 x 2400 padded tokens.
    calls = [inputs["length"] for _, inputs in serving.named("score_ids")]
    assert calls == [[3, 1], [2400], [2]]


def error(status, message="says no"):
    return httpx.Response(status, json={"error": message})


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (error(400, "bad\n value"), InputError, "400: bad value$"),
        (error(400, "x" * 999), InputError, "400: " + "x" * 500 + "$"),
        (error(404), Unavailable, "404: says no"),
        (error(429), QueueFull, "busy"),
        (error(500), Unavailable, "500: says no"),
        (error(503), Unavailable, "503: says no"),
        (error(504), DeadlineExceeded, "504: says no"),
        (httpx.Response(502, text="<html>"), Unavailable, "502: Bad Gateway"),
        (httpx.Response(200, text="<html>"), Unavailable, "no TF Serving"),
        (httpx.Response(200, json=[]), Unavailable, "no TF Serving"),
        (httpx.ConnectError("refused"), Unavailable, "refused"),
        (httpx.ConnectTimeout("slow"), Unavailable, "slow"),
        (httpx.ReadTimeout("slow"), DeadlineExceeded, "in time"),
    ],
)
def test_failures_are_told_apart_and_the_next_answer_comes(fault, kind, words):
    serving = FakeServing()

    async def run(upstream):
        calls = len(serving.calls)
        serving.faults = [None, fault]
        with pytest.raises(kind, match=words):
            await collect(upstream, request(1))
        assert len(serving.calls) == calls + 2
        return await collect(upstream, request(1))

    assert len(ids(use(serving, run))) == 10


@pytest.mark.parametrize(
    "broken",
    [
        httpx.ReadError("reset"),
        httpx.WriteError("reset"),
        httpx.RemoteProtocolError("disconnected"),
    ],
)
def test_a_broken_connection_is_tried_once_more(broken):
    serving = FakeServing()

    async def run(upstream):
        serving.faults = [None, broken]
        chunks = await collect(upstream, request(1))
        serving.faults = [broken, broken]
        with pytest.raises(Unavailable, match=str(broken)):
            await collect(upstream, request(1))
        return chunks

    assert ids(use(serving, run)) == [101 + index for index in range(10)]


class HeldServing(FakeServing):
    """Answers `generate_ids` when it is let go; counts those in work."""

    def __init__(self):
        super().__init__()
        self.gate = asyncio.Event()
        self.in_work = 0
        self.most = 0

    async def predict(self, path, body):
        if body["signature_name"] == "generate_ids":
            self.in_work += 1
            self.most = max(self.most, self.in_work)
            try:
                await self.gate.wait()
                await asyncio.sleep(0)
            finally:
                self.in_work -= 1
        return await super().predict(path, body)


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def test_calls_at_a_time_and_requests_in_line_are_bounded():
    serving = HeldServing()

    async def run(upstream):
        answers = [
            asyncio.create_task(collect(upstream, request(1, seed=seed)))
            for seed in range(5)
        ]
        await until(lambda: serving.in_work == 2)
        for refused in (
            collect(upstream, request(1)),
            upstream.encode(["a"]),
            upstream.encode_chat([{"role": "user", "content": "a"}]),
            upstream.score([[1]]),
        ):
            with pytest.raises(QueueFull) as caught:
                await refused
            assert caught.value.retry_after_s > 0
        # What belongs to an answer under way is served.
        assert await upstream.decode([[97]]) == ["a"]
        serving.gate.set()
        results = await asyncio.gather(*answers)
        assert len(ids(await collect(upstream, request(1)))) == 10
        return results

    results = use(serving, run, max_calls=2, max_waiting=3)
    assert [ids(chunks)[0] for chunks in results] == [101, 102, 103, 104, 105]
    assert all(len(ids(chunks)) == 10 for chunks in results)
    assert serving.most == 2


def test_a_long_answer_does_not_hold_up_a_short_one():
    serving = HeldServing()

    async def run(upstream):
        ended = []

        async def answer(name, max_new_tokens):
            await collect(upstream, request(1, max_new_tokens=max_new_tokens))
            ended.append(name)

        long = asyncio.create_task(answer("long", 30))
        await until(lambda: serving.in_work == 1)
        short = asyncio.create_task(answer("short", 2))
        await until(lambda: upstream._num_open == 2)
        serving.gate.set()
        await asyncio.gather(long, short)
        return ended

    assert use(serving, run, max_calls=1) == ["short", "long"]


def test_a_client_that_leaves_makes_room():
    serving = HeldServing()

    async def run(upstream):
        task = asyncio.create_task(collect(upstream, request(1)))
        await until(lambda: serving.in_work == 1)
        with pytest.raises(QueueFull):
            await collect(upstream, request(1))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        serving.gate.set()
        answer = upstream.generate(request(1))
        await anext(answer)
        await answer.aclose()
        calls = len(serving.named("generate_ids"))
        assert len(ids(await collect(upstream, request(1)))) == 10
        return calls

    assert use(serving, run, max_calls=1, max_waiting=0) == 2


def test_a_deadline_holds_in_line_and_in_work():
    serving = HeldServing()

    async def run(upstream):
        first = asyncio.create_task(
            collect(upstream, request(1, deadline_s=0.02))
        )
        await until(lambda: serving.in_work == 1)
        with pytest.raises(DeadlineExceeded):
            await collect(upstream, request(1, deadline_s=0.01))
        with pytest.raises(DeadlineExceeded):
            await first
        serving.gate.set()
        return await collect(upstream, request(1, deadline_s=20))

    assert len(ids(use(serving, run, max_calls=1))) == 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": "ftp://here"}, "ftp://here: must begin with http://"),
        ({"url": "http://here:port"}, "http://here:port: "),
        ({"tokens_per_call": 0}, "tokens_per_call=0: must be at least 1"),
        ({"first_call_tokens": 0}, "first_call_tokens=0: "),
        ({"max_calls": 0}, "max_calls=0: "),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        Upstream(**{"url": URL, "model": "shop", **changes})


@pytest.fixture(scope="module")
def model():
    config = GPTConfig.from_depth(
        1, vocabulary_size=265, context_length=CONTEXT
    )
    model = GPTCausalLM(config)
    model.build()
    # As initialised, a model repeats its last token whatever it reads.
    random = np.random.default_rng(3)
    for variable in model.trainable_variables:
        if len(variable.shape) == 2:
            variable.assign(0.4 * random.normal(size=variable.shape))
    return model


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    path = export_saved_model(
        model, ByteTokenizer(), folder, max_new_tokens=CAP
    )
    return tf.saved_model.load(str(path)).signatures


class ExportServing(FakeServing):
    """Runs the signatures of a real export in their place."""

    def __init__(self, signatures):
        super().__init__(1)
        self.signatures = signatures

    async def predict(self, path, body):
        signature = self.signatures[body["signature_name"]]
        known = signature.structured_input_signature[1]
        outputs = signature(
            **{
                name: tf.constant(value, known[name].dtype)
                for name, value in body["inputs"].items()
            }
        )
        outputs = {
            name: _plain(value.numpy().tolist())
            for name, value in outputs.items()
        }
        if len(outputs) == 1:
            (outputs,) = outputs.values()
        return httpx.Response(200, json={"outputs": outputs})


def _plain(value):
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.decode() if isinstance(value, bytes) else value


def chat_request(**changes):
    prompt = ChatTemplate(ByteTokenizer()).prompt(
        [{"role": "user", "content": "你好 hi"}]
    )
    return request(
        *prompt, **{"max_new_tokens": 22, "stop_id": END_OF_TURN, **changes}
    )


@pytest.mark.parametrize("tokens_per_call", [1, 3, 50])
@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 1.5, "seed": 4}, {"temperature": 0.7, "top_k": 9}],
)
def test_a_real_export_answers_as_its_model(
    model, exported, sampling, tokens_per_call
):
    generator = Generator(model, ByteTokenizer(), jit_compile=False)
    wanted = chat_request(**sampling)
    chunks = generate(
        ExportServing(exported), wanted, tokens_per_call=tokens_per_call
    )
    (expected,) = generator.generate_ids([wanted.token_ids], 22, **sampling)
    entries = [entry for chunk in chunks for entry in chunk]
    told = [entry for entry in entries if entry.finish_reason != "stop"]
    assert [entry.token_id for entry in told] == expected
    assert len(set(expected)) > 5
    assert all(entry.log_probability < 0 for entry in told)


def test_a_real_export_answers_in_pieces_as_in_one_call(exported):
    serving = ExportServing(exported)
    wanted = chat_request(max_new_tokens=CAP, temperature=1.0, seed=7)
    whole = generate(serving, wanted, first_call_tokens=CAP)
    pieces = generate(serving, wanted, tokens_per_call=3)
    assert len(whole) == 1 and len(pieces) > 3
    assert ids(pieces) == ids(whole)
    np.testing.assert_allclose(
        [entry.log_probability for chunk in pieces for entry in chunk],
        [entry.log_probability for entry in whole[0]],
        # Prompts of unequal length add up in another order.
        rtol=1e-4,
    )


def test_a_real_export_reads_writes_and_scores(model, exported):
    tokenizer = ByteTokenizer()
    messages = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "<|user|> 🙂"},
    ]

    async def run(upstream):
        assert upstream.context_length == CONTEXT
        assert upstream.max_new_tokens == CAP
        assert upstream.control_ids["<|assistant|>"] == ASSISTANT
        rows = await upstream.encode(["你好", "", "<|user|>"])
        chat = await upstream.encode_chat(messages)
        texts = await upstream.decode([rows[0], [], rows[0][:2]])
        scores = await upstream.score([chat, [ASSISTANT]])
        return rows, chat, texts, scores

    rows, chat, texts, scores = use(ExportServing(exported), run)
    assert rows == [tokenizer.encode(text) for text in ("你好", "", "<|user|>")]
    assert chat == ChatTemplate(tokenizer).prompt(messages)
    assert texts == ["你好", "", "\ufffd"]
    logits = model({"token_ids": np.array([chat], "int32")})[0]
    expected = tf.nn.log_softmax(logits).numpy()
    assert scores[1] == [(None, ())]
    assert len(scores[0]) == len(chat)
    for position, score in enumerate(scores[0][1:]):
        before = expected[position]
        likeliest = np.argsort(-before)[:5]
        np.testing.assert_allclose(
            score.log_probability, before[chat[position + 1]], rtol=1e-4
        )
        assert [one for one, _ in score.top] == likeliest.tolist()
        np.testing.assert_allclose(
            [value for _, value in score.top], before[likeliest], rtol=1e-4
        )


def test_a_name_of_a_model_is_no_path():
    paths = []

    def handle(request):
        paths.append(request.url.raw_path)
        return error(404)

    async def run():
        transport = httpx.MockTransport(handle)
        upstream = Upstream(URL, "a/b ü", transport=transport)
        with pytest.raises(Unavailable, match="404"):
            await upstream.open()
        await upstream.close()

    asyncio.run(run())
    assert paths == [b"/v1/models/a%2Fb%20%C3%BC"]
