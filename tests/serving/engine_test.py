import asyncio
import contextlib
import dataclasses
import functools
import os
import random
import threading

import numpy as np
import pytest
import tensorflow as tf

import kerasgpt.serving.batch
import kerasgpt.serving.engine
from kerasgpt.config import InputError
from kerasgpt.generation import Generator
from kerasgpt.generation.samplers import SamplerSettings
from kerasgpt.models import GPTCausalLM, GPTConfig
from kerasgpt.serving.backend import (
    MAX_TOP_TOKENS,
    DeadlineExceeded,
    GenerationRequest,
    QueueFull,
    Unavailable,
)
from kerasgpt.serving.engine import Engine, load_engine
from kerasgpt.serving.saved_model import export_saved_model
from kerasgpt.serving.text_reader import MIN_SHARED_TOKENS
from kerasgpt.tokenizers import CONTROL_TOKENS, ByteTokenizer

CONTEXT = 64
STOP_TOKEN = "<|end_of_turn|>"
STOP = CONTROL_TOKENS.index(STOP_TOKEN)
SAMPLING = (
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 3},
    {"temperature": 1.5, "top_p": 0.6},
    {"temperature": 1.2, "min_p": 0.2},
    {"temperature": 0.9, "repetition_penalty": 1.7},
    {"frequency_penalty": 1.5, "presence_penalty": -0.5},
)


@functools.cache
def build_model():
    config = GPTConfig.from_depth(
        1, vocabulary_size=265, context_length=CONTEXT
    )
    model = GPTCausalLM(config)
    model.build()
    table = next(v for v in model.variables if "token_embedding" in v.path)
    # Sharp distributions, in which one token in a few is the stop id.
    values = np.random.default_rng(0).normal(0, 0.25, table.shape)
    values[STOP] *= 2
    table.assign(values)
    return model


@functools.cache
def build_generator():
    return Generator(build_model(), ByteTokenizer(), jit_compile=False)


def answer_alone(request):
    """Returns the ids of an answer, as the library gives them without us."""
    sampling = {
        name: value
        for name, value in vars(request).items()
        if name in SamplerSettings._fields
    }
    return build_generator().generate_ids(
        [list(request.token_ids)],
        request.max_new_tokens,
        stop_token=CONTROL_TOKENS[request.stop_id],
        **sampling,
    )[0]


def scores_alone(token_ids):
    """Returns log-probabilities (length, vocabulary) after each token."""
    logits = build_model()({"token_ids": np.array([token_ids], np.int32)})
    return tf.nn.log_softmax(logits[0]).numpy()


class PacedEngine(Engine):
    """An engine whose calls wait for the test, where it says so.

    Attributes:
        permits: calls that may be made; None = any number.
        num_calls: int. Calls that were made.
        sizes: list of the batch's size in each call.
        reads: list of (tokens shared, tokens read), for each prompt.
        together: list of how many were read in each call, padding too.
    """

    def __init__(self, row_counts, **settings):
        self.permits = None
        self.num_calls = 0
        self.sizes, self.reads, self.together = [], [], []
        super().__init__(
            build_model(),
            ByteTokenizer(),
            row_counts=row_counts,
            jit_compile=False,
            **settings,
        )
        readers, first = self._reader._readers, self._reader._first_readers
        for length, read in readers.items():
            readers[length] = functools.partial(self._spied, read)
        for length, read in first.items():
            first[length] = functools.partial(self._spied_first, read)

    def renew(self, *, is_paced, max_waiting=64):
        """Forgets what was; an engine is slower to build than to test."""
        self.permits = threading.Semaphore(0) if is_paced else None
        self.max_waiting = max_waiting
        self.num_calls = 0
        self.sizes, self.reads, self.together = [], [], []
        self._reader._kept.clear()

    def _spied(self, read, token_ids, shared, count, *buffers):
        self.reads.append((int(shared), int(count)))
        return read(token_ids, shared, count, *buffers)

    def _spied_first(self, read, token_ids, counts):
        self.reads += [(0, int(count)) for count in counts]
        self.together.append(len(counts))
        return read(token_ids, counts)

    def _step(self):
        while self.permits and not self.permits.acquire(timeout=0.02):
            if self._is_closed:
                return
        self.sizes.append(len(self._batch.jobs))
        super()._step()
        self.num_calls += 1

    async def call(self, count=1):
        """Lets so many calls happen; each makes one token a row."""
        last = self.num_calls + count
        self.permits.release(count)
        await until(lambda: self.num_calls == last)


@pytest.fixture(scope="module", autouse=True)
def small_lanes():
    """Lanes of two rows, on whatever machine, for engines of few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kerasgpt.serving.engine, "LANE_ROWS", 2)
        patch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
        yield


@pytest.fixture(scope="module")
def engines():
    """Returns a function that gives the PacedEngine of some row counts."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def build(row_counts):
            engine = PacedEngine(row_counts)
            stack.callback(engine.close)
            return engine

        yield build


@pytest.fixture
def engine(engines):
    """A PacedEngine that does not wait for the test."""
    engine = engines((1, 2, 4))
    engine.renew(is_paced=False)
    return engine


@pytest.fixture
def paced(engines, monkeypatch):
    """Returns a function that gives a PacedEngine, one token a call."""
    monkeypatch.setattr(kerasgpt.serving.engine, "CALL_SECONDS", 0.0)
    used = []

    def renewed(row_counts=(1,), *, is_paced=True, **settings):
        engine = engines(row_counts)
        engine.renew(is_paced=is_paced, **settings)
        used.append(engine)
        return engine

    yield renewed
    # Whatever a failed test left behind must not reach the next one.
    for engine in used:
        engine.permits = None


@pytest.fixture
def clock(monkeypatch):
    """The engine's time, which stands still but for the test."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(kerasgpt.serving.engine, "time", clock)
    return clock


def run(work):
    """Returns what a coroutine returns; a test that hangs fails."""

    async def in_time():
        async with asyncio.timeout(30):
            return await work

    return asyncio.run(in_time())


async def until(is_true):
    while not is_true():
        await asyncio.sleep(0.001)


def prompt(length, number=0):
    draw = random.Random(1000 * length + number)
    return tuple(draw.randrange(9, 265) for _ in range(length))


def ask(token_ids, max_new_tokens=16, **settings):
    return GenerationRequest(
        tuple(token_ids), max_new_tokens, **{"stop_id": STOP, **settings}
    )


def long_request(number=0, max_new_tokens=40, **settings):
    """Returns a request that no stop id ends early."""
    settings = {"stop_id": 0, "temperature": 1.0, **settings}
    return ask(prompt(10, number), max_new_tokens, **settings)


async def tokens_of(engine, request):
    return [one async for some in engine.generate(request) for one in some]


async def answer(engine, request):
    """Returns the ids of an answer, without the stop id."""
    return ids_of(await tokens_of(engine, request))


def ids_of(tokens):
    return [one.token_id for one in tokens if one.finish_reason != "stop"]


def start(engine, request):
    return asyncio.ensure_future(answer(engine, request))


async def failure(work):
    """Returns the exception that ends an awaitable."""
    with pytest.raises(BaseException) as error:
        await work
    return type(error.value)


def mixed_requests(count):
    """Returns requests of all lengths and settings."""
    draw = random.Random(count)
    return [
        ask(
            prompt(draw.choice([1, 2, 5, 15, 16, 17, 31, 33, 50, 63]), number),
            draw.choice([1, 2, 8, 16]),
            seed=draw.randrange(-5, 1 << 31),
            stop_id=draw.choice([STOP, STOP, 2]),
            **SAMPLING[number % len(SAMPLING)],
        )
        for number in range(count)
    ]


def test_an_answer_is_the_same_whatever_else_is_in_the_batch(paced):
    engine = paced(row_counts=(1, 2, 4))
    requests = [
        long_request(0),
        *(ask(prompt(20, n), 4 + n, **SAMPLING[n]) for n in range(7)),
    ]

    async def main():
        answers = []
        for request in requests[:5]:
            answers.append(start(engine, request))
            await until(lambda: sum(engine.load()) > 0)
            await engine.call(2)
        answers += [start(engine, request) for request in requests[5:]]
        while not answers[0].done():
            await engine.call()
            await asyncio.sleep(0.002)
        return await asyncio.gather(*answers)

    answers = run(main())
    sizes = [
        size
        for size, before in zip(
            engine.sizes, [None, *engine.sizes], strict=False
        )
        if size != before
    ]
    assert sizes == [1, 2, 4, 1]
    assert answers == [answer_alone(request) for request in requests]


def test_answers_of_all_settings_equal_the_generators(engine):
    requests = mixed_requests(42)

    async def main():
        async def later(number, request):
            await asyncio.sleep(0.004 * (number % 11))
            return await tokens_of(engine, request)

        return await asyncio.gather(
            *(later(*one) for one in enumerate(requests))
        )

    answers = run(main())
    alone = [answer_alone(request) for request in requests]
    assert [ids_of(tokens) for tokens in answers] == alone
    reasons = {tokens[-1].finish_reason for tokens in answers}
    assert reasons == {"stop", "length"}


def test_a_late_short_request_is_done_before_an_early_long_one(paced):
    engine = paced(row_counts=(1, 2))

    async def main():
        long = start(engine, long_request())
        await until(lambda: engine.load() == (1, 0))
        await engine.call(3)
        short = [start(engine, long_request(n, 2)) for n in (1, 2)]
        await until(lambda: engine.load() == (1, 2))
        await engine.call()
        # One joined; the other waits for its row.
        await until(lambda: engine.load() == (2, 1))
        await engine.call(2)
        first = await short[0]
        await until(lambda: engine.load() == (2, 0))
        assert not short[1].done()
        await engine.call(2)
        second = await short[1]
        assert not long.done()
        await engine.call(40 - 3 - 1 - 4)
        return [await long, first, second]

    alone = [
        answer_alone(long_request(n, limit))
        for n, limit in enumerate([40, 2, 2])
    ]
    assert run(main()) == alone


def test_those_that_wait_are_served_in_the_order_they_came(paced):
    engine = paced(row_counts=(1, 2))
    order = []

    async def one(number):
        await answer(engine, long_request(number, 2 + 3 * (number == 0)))
        order.append(number)

    async def main():
        tasks = []
        for number in range(7):
            tasks.append(asyncio.ensure_future(one(number)))
            await asyncio.sleep(0)
        engine.permits.release(100)
        await asyncio.gather(*tasks)

    run(main())
    # 0 needs five calls, in which the row beside it serves two others.
    assert [number for number in order if number] == [1, 2, 3, 4, 5, 6]
    assert 0 < order.index(0) < 4


def test_prompts_that_wait_are_read_together(paced):
    # The first alone, then four of up to 16 tokens, then one of more.
    lengths = [10, 12, 15, 9, 10, 20]
    requests = [
        ask(prompt(length, number), 5, stop_id=2)
        for number, length in enumerate(lengths)
    ]
    engine = paced(row_counts=(1, 8))

    async def main():
        first = start(engine, requests[0])
        await engine.call()
        others = [start(engine, request) for request in requests[1:]]
        await until(lambda: engine.load()[1] == 5)
        engine.permits.release(100)
        return await asyncio.gather(first, *others)

    assert run(main()) == [answer_alone(request) for request in requests]
    assert engine.together == [1, 4, 1]
    assert sorted(count for _, count in engine.reads) == sorted(lengths)


def test_two_prompts_are_read_one_after_the_other(paced):
    engine = paced(row_counts=(1, 8))
    requests = [long_request(number, 4) for number in range(3)]

    async def main():
        first = start(engine, requests[0])
        await engine.call()
        others = [start(engine, request) for request in requests[1:]]
        await until(lambda: engine.load()[1] == 2)
        engine.permits.release(100)
        return await asyncio.gather(first, *others)

    assert run(main()) == [answer_alone(request) for request in requests]
    assert engine.together == [1, 1, 1]


def test_lanes_share_the_rows_out_evenly_and_work_at_the_same_time(
    paced, monkeypatch
):
    engine = paced(row_counts=(4,))
    requests = [long_request(number, 8) for number in range(3)]
    both_at_work = threading.Barrier(2, timeout=20)
    advance = kerasgpt.serving.batch.Lane.advance
    rows = []

    def spied(lane, jobs, num_steps):
        both_at_work.wait()
        rows.append([row for row, _ in jobs])
        return advance(lane, jobs, num_steps)

    async def main():
        answers = [start(engine, request) for request in requests]
        while engine.load() != (3, 0):
            await engine.call()
        monkeypatch.setattr(kerasgpt.serving.batch.Lane, "advance", spied)
        await engine.call(3)
        monkeypatch.undo()
        engine.permits = None
        return await asyncio.gather(*answers)

    assert run(main()) == [answer_alone(request) for request in requests]
    assert sorted(rows) == [[0]] * 3 + [[0, 1]] * 3


def test_the_likeliest_tokens_are_told_to_those_who_want_them(engine):
    requests = [long_request(n, wants_top=n == 1) for n in range(3)]

    async def main():
        return await asyncio.gather(
            *(tokens_of(engine, request) for request in requests)
        )

    counts = [{len(one.top) for one in tokens} for tokens in run(main())]
    assert counts == [{0}, {MAX_TOP_TOKENS}, {0}]


def test_pieces_come_before_the_end(paced):
    engine = paced()

    async def main():
        pieces = []
        generator = engine.generate(long_request(max_new_tokens=3))
        for _ in range(3):
            engine.permits.release()
            pieces.append(await anext(generator))
        with pytest.raises(StopAsyncIteration):
            await anext(generator)
        return pieces

    pieces = run(main())
    assert [len(piece) for piece in pieces] == [1, 1, 1]
    reasons = [piece[0].finish_reason for piece in pieces]
    assert reasons == [None, None, "length"]
    tokens = [token for piece in pieces for token in piece]
    assert ids_of(tokens) == answer_alone(long_request(max_new_tokens=3))


@pytest.mark.parametrize("sampling", SAMPLING[-3:])
def test_log_probabilities_are_the_models_own(engine, sampling):
    request = ask(prompt(12, 3), 20, stop_id=0, **sampling)
    tokens = run(tokens_of(engine, request))
    ids = [one.token_id for one in tokens]
    scores = scores_alone([*request.token_ids, *ids])[11:-1]
    for token, row in zip(tokens, scores, strict=True):
        assert token.log_probability == pytest.approx(
            row[token.token_id], abs=1e-4
        )
        likeliest = np.argsort(-row)[:MAX_TOP_TOKENS]
        assert [token_id for token_id, _ in token.top] == likeliest.tolist()
        values = [value for _, value in token.top]
        np.testing.assert_allclose(values, row[likeliest], atol=1e-4)


def test_penalties_and_filters_do_something(engine):
    plain = ask(prompt(5), 20, stop_id=0)
    drawn = dataclasses.replace(plain, temperature=2.0)
    changes = [
        (plain, {"repetition_penalty": 3.0}),
        (plain, {"frequency_penalty": 2.0}),
        (plain, {"presence_penalty": 2.0}),
        (drawn, {"min_p": 0.5}),
        (drawn, {"top_p": 0.3}),
        (drawn, {"top_k": 2}),
        (drawn, {"seed": 1}),
    ]

    async def main():
        for request, change in changes:
            changed = dataclasses.replace(request, **change)
            answers = await asyncio.gather(
                answer(engine, request), answer(engine, changed)
            )
            assert answers[0] != answers[1], change

    run(main())


def test_a_stop_id_is_told_and_is_no_part_of_the_answer(engine):
    plain = run(tokens_of(engine, ask(prompt(5), 20, stop_id=0)))
    ids = [one.token_id for one in plain]
    stop_id = ids[9]
    tokens = run(tokens_of(engine, ask(prompt(5), 20, stop_id=stop_id)))
    first = ids.index(stop_id)
    assert [one.token_id for one in tokens] == ids[: first + 1]
    reasons = [one.finish_reason for one in tokens]
    assert reasons == [None] * first + ["stop"]
    # As the last token that is allowed, too.
    limited = run(tokens_of(engine, ask(prompt(5), first + 1, stop_id=stop_id)))
    assert limited[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("prompt_length", "limit", "length"),
    [(10, 1, 1), (10, 9, 9), (10, 1000, 54), (60, 1000, 4), (63, 5, 1)],
)
def test_answers_end_at_the_limit_or_with_the_context(
    engine, prompt_length, limit, length
):
    request = ask(prompt(prompt_length), limit, stop_id=0)
    tokens = run(tokens_of(engine, request))
    reasons = [one.finish_reason for one in tokens]
    assert reasons == [None] * (length - 1) + ["length"]
    assert ids_of(tokens) == answer_alone(request)


@pytest.mark.parametrize(
    "request_",
    [
        ask(()),
        ask(prompt(CONTEXT)),
        ask(prompt(5), 0),
        ask((9, 265)),
        ask((9, -1)),
    ],
)
def test_bad_requests_are_refused_and_harm_nobody(engine, request_):
    async def main():
        good = start(engine, ask(prompt(9)))
        assert await failure(answer(engine, request_)) is InputError
        return await good

    assert run(main()) == answer_alone(ask(prompt(9)))


def test_the_next_turn_reads_its_new_tokens_only(paced):
    engine = paced(is_paced=False)
    # Penalties count what was not read again, too.
    settings = {"stop_id": 0, "repetition_penalty": 1.5}
    first = ask(prompt(20), 10, **settings)
    ids = run(answer(engine, first))
    second = ask([*first.token_ids, *ids, *prompt(7)], 8, **settings)
    assert run(answer(engine, second)) == answer_alone(second)
    # Half of the first prompt is shared, then they differ.
    partly = ask([*first.token_ids[:17], *prompt(10, 1)], 8, **settings)
    assert run(answer(engine, partly)) == answer_alone(partly)
    # The same again: the last token's logits are wanted.
    assert run(answer(engine, second)) == answer_alone(second)
    few = MIN_SHARED_TOKENS - 1
    hardly = ask([*first.token_ids[:few], *prompt(9)], 8, **settings)
    assert run(answer(engine, hardly)) == answer_alone(hardly)
    assert engine.reads == [(0, 20), (30, 7), (17, 10), (36, 1), (0, few + 9)]


@pytest.mark.parametrize("length", [58, 60, 62, 63])
def test_a_turn_near_the_end_of_the_context_is_read_right(paced, length):
    engine = paced(is_paced=False)
    run(answer(engine, ask(prompt(52), 3, stop_id=0)))
    request = ask([*prompt(52), *prompt(length - 52, 1)], 9, stop_id=0)
    assert run(answer(engine, request)) == answer_alone(request)
    # Sixteen tokens are read at a time, padding among them.
    assert engine.reads[1:] == [(CONTEXT - 16, length - 48)]


def test_a_full_context_leaves_a_prefix_that_can_be_used(paced):
    engine = paced(is_paced=False, row_counts=(2,))
    full = ask(prompt(50), 14, stop_id=0)

    async def main():
        # The row beside goes on beyond the end of the full one.
        return (
            await asyncio.gather(
                *(answer(engine, one) for one in (full, long_request()))
            )
        )[0]

    ids = run(main())
    again = ask([*full.token_ids, *ids[:-1]], 5, stop_id=0)
    assert run(answer(engine, again)) == answer_alone(again) == ids[-1:]
    assert engine.reads[-1][0] > 0


def test_memory_for_prefixes_is_bounded():
    engine = PacedEngine((1,), kept_bytes=1)
    with contextlib.closing(engine):
        for number in (0, 1, 0, 0):
            run(answer(engine, ask(prompt(30, number), 2, stop_id=0)))
    assert engine.reads == [(0, 30), (0, 30), (0, 30), (29, 1)]


def test_closing_the_generator_frees_its_row(paced):
    engine = paced()

    async def main():
        generator = engine.generate(long_request())
        engine.permits.release()
        await anext(generator)
        waits = [start(engine, long_request(n, 4)) for n in (1, 2)]
        await until(lambda: engine.load() == (1, 2))
        # Of those that wait, one leaves as well.
        waits[0].cancel()
        await generator.aclose()
        # The call that is on its way, and the four tokens.
        await engine.call(5)
        assert await failure(waits[0]) is asyncio.CancelledError
        return await waits[1]

    assert run(main()) == answer_alone(long_request(2, 4))


def test_deadlines_end_those_that_run_and_those_that_wait(paced, clock):
    engine = paced()

    async def main():
        runs = start(engine, long_request(deadline_s=50.0))
        await until(lambda: engine.load() == (1, 0))
        waits = [
            start(engine, long_request(n, 3, deadline_s=seconds))
            for n, seconds in ((1, 5.0), (2, None), (3, 500.0))
        ]
        await engine.call()
        clock.now += 10
        await engine.call()
        assert await failure(waits[0]) is DeadlineExceeded
        assert engine.load() == (1, 2)
        clock.now += 50
        await engine.call()
        assert await failure(runs) is DeadlineExceeded
        await engine.call(6)
        return await asyncio.gather(*waits[1:])

    assert run(main()) == [answer_alone(long_request(n, 3)) for n in (2, 3)]


def test_those_beyond_the_waiting_room_are_turned_away(paced):
    engine = paced(max_waiting=2)

    async def main():
        tasks = [start(engine, long_request(0, 2))]
        await until(lambda: engine.load() == (1, 0))
        tasks += [start(engine, long_request(n, 2)) for n in (1, 2)]
        await until(lambda: engine.load() == (1, 2))
        with pytest.raises(QueueFull) as error:
            await answer(engine, long_request())
        assert error.value.retry_after_s > 0
        engine.permits.release(100)
        await asyncio.gather(*tasks)
        # There is room again.
        return await answer(engine, long_request(3, 2))

    assert run(main()) == answer_alone(long_request(3, 2))


def test_scores_are_turned_away_whole(paced):
    engine = paced(max_waiting=1)

    async def main():
        runs = start(engine, long_request())
        await until(lambda: engine.load() == (1, 0))
        scores = [
            asyncio.ensure_future(engine.score([prompt(5)] * 8))
            for _ in range(2)
        ]
        await asyncio.sleep(0)
        assert await failure(engine.score([prompt(5)])) is QueueFull
        engine.permits.release(100)
        assert [len(rows) for rows in await asyncio.gather(*scores)] == [8, 8]
        await runs
        return await engine.score([prompt(5)] * 40)

    assert len(run(main())) == 40


def test_close_tells_everybody():
    threads = threading.enumerate()
    engine = PacedEngine((1, 2))
    assert threading.enumerate() != threads
    engine.renew(is_paced=True)

    async def main():
        requests = [start(engine, long_request())]
        await until(lambda: engine.load() == (1, 0))
        requests += [start(engine, long_request(n)) for n in range(3)]
        await until(lambda: engine.load() == (1, 3))
        await engine.call()
        await until(lambda: engine.load() == (2, 2))
        scores = asyncio.ensure_future(engine.score([prompt(5)]))
        await asyncio.to_thread(engine.close)
        for task in (*requests, scores):
            assert await failure(task) is Unavailable
        assert await failure(answer(engine, ask(prompt(5)))) is Unavailable
        assert await failure(engine.score([prompt(5)])) is Unavailable

    run(main())
    engine.close()
    assert engine.load() == (0, 0)
    assert threading.enumerate() == threads


# Where calls may break while nine requests come at once.
FAULTS = {
    "a prompt is read": lambda engine: (
        engine._reader._first_readers,
        (4, CONTEXT),
    ),
    "a text is scored": lambda engine: (engine._reader._scorers, CONTEXT),
    "a batch grows": lambda engine: (_lane(engine, 1), "_take"),
    "a row is filled": lambda engine: (_lane(engine, 4)["_puts"], CONTEXT),
    "a token is made": lambda engine: (_lane(engine, 4), "_advance"),
    "a row is left": lambda engine: (_lane(engine, 4), "_take"),
}


def _lane(engine, num_rows):
    return vars(engine._batches[num_rows, CONTEXT].lanes[-1])


@pytest.mark.parametrize("moment", FAULTS)
def test_a_fault_hangs_nobody_and_the_next_is_served(engine, moment, caplog):
    owner, name = FAULTS[moment](engine)
    sound = owner[name]

    def fail(*arguments):
        owner[name] = sound
        raise RuntimeError("first line\nsecond line")

    requests = [ask(prompt(33, number), 12) for number in range(9)]
    alone = [answer_alone(request) for request in requests]

    async def main():
        # One that is answered, beside which the others need a larger batch.
        first = start(engine, long_request(max_new_tokens=54))
        await until(lambda: engine.load()[0])
        owner[name] = fail
        tasks = [start(engine, request) for request in requests]
        tasks.append(asyncio.ensure_future(engine.score([prompt(33)] * 3)))
        # The engine sees them all at once.
        with engine._changed:
            await asyncio.sleep(0)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        # Some may have been done before the fault.
        told = {str(one) for one in results if isinstance(one, Unavailable)}
        assert told == {"the model failed; try again"}
        await asyncio.gather(first, return_exceptions=True)
        for result, expected in zip(results, alone, strict=False):
            assert isinstance(result, Unavailable) or result == expected
        await until(lambda: engine.load() == (0, 0))
        return await asyncio.gather(
            *(answer(engine, request) for request in requests)
        )

    assert run(main()) == alone
    assert "second line" in caplog.text


def test_scores_are_the_models_own(engine):
    rows = [prompt(n, 7) for n in (1, 2, 15, 16, 17, CONTEXT)]

    async def main():
        beside = start(engine, ask(prompt(4)))
        results = await engine.score(rows)
        await beside
        return results

    results = run(main())
    for row, scores in zip(rows, results, strict=True):
        assert len(scores) == len(row)
        assert scores[0] == (None, ())
        alone = scores_alone(row)
        for place, score in enumerate(scores[1:]):
            own = alone[place, row[place + 1]]
            assert score.log_probability == pytest.approx(own, abs=1e-4)
            likeliest = np.argsort(-alone[place])[:MAX_TOP_TOKENS]
            assert [one for one, _ in score.top] == likeliest.tolist()
            np.testing.assert_allclose(
                [value for _, value in score.top],
                alone[place, likeliest],
                atol=1e-4,
            )
            # Both come from one number: equality tells what was likeliest.
            if row[place + 1] == likeliest[0]:
                assert score.log_probability == score.top[0][1]


@pytest.mark.parametrize("row", [(), prompt(CONTEXT + 1), (9, 265), (-1, 9)])
def test_texts_that_cannot_be_scored_are_refused(engine, row):
    assert run(failure(engine.score([prompt(5), row]))) is InputError
    assert run(engine.score([])) == []


def test_clients_may_live_in_several_threads(engine):
    requests = mixed_requests(20)
    answers = {}

    def client(number):
        async def main():
            mine = requests[number::4]
            return await asyncio.gather(
                *(answer(engine, request) for request in mine)
            )

        answers[number] = run(main())

    threads = [threading.Thread(target=client, args=[n]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        alone = [answer_alone(request) for request in requests[number::4]]
        assert answers[number] == alone


def test_the_row_of_a_client_whose_loop_ended_is_freed(paced):
    engine = paced()
    loop = asyncio.new_event_loop()
    generator = engine.generate(long_request())
    engine.permits.release()
    loop.run_until_complete(anext(generator))
    loop.close()

    async def main():
        task = start(engine, long_request(1, 2))
        await until(lambda: engine.load() == (1, 1))
        # Two calls tell that nobody listens; two serve the next.
        await engine.call(3)
        return await task

    assert run(main()) == answer_alone(long_request(1, 2))


def test_nothing_hangs_when_clients_come_and_go(engine):
    draw = random.Random(5)
    requests = mixed_requests(30)
    alone = [answer_alone(request) for request in requests]

    async def client(number):
        """Returns whether an answer was as it must be, as far as read."""
        request = requests[number % 30]
        expected = alone[number % 30]
        await asyncio.sleep(draw.random() * 1.5)
        patience = draw.choice([0, 1, 3, 1000, 1000, 1000])
        tokens = []
        while True:
            try:
                async with contextlib.aclosing(
                    engine.generate(request)
                ) as pieces:
                    async for piece in pieces:
                        tokens += ids_of(piece)
                        if len(tokens) >= patience:
                            return tokens == expected[: len(tokens)]
            except QueueFull:
                await asyncio.sleep(0.02)
                continue
            return tokens == expected

    async def impatient(number):
        """Leaves at any moment."""
        task = asyncio.ensure_future(client(number))
        await asyncio.wait([task], timeout=draw.random() * 2)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled() or task.result()

    async def main():
        results = await asyncio.gather(
            *(client(n) for n in range(200)),
            *(impatient(n) for n in range(100)),
            *(engine.score([prompt(20, n)]) for n in range(20)),
        )
        await until(lambda: engine.load() == (0, 0))
        return results

    assert all(run(main()))


def test_texts_become_ids_and_back(engine):
    tokenizer = engine.tokenizer

    async def main():
        (ids,) = await engine.encode(["Grüße <|end_of_turn|>"])
        assert ids == tokenizer.encode("Grüße <|end_of_turn|>")
        assert min(ids) >= len(CONTROL_TOKENS)
        chat = await engine.encode_chat([{"role": "user", "content": "Hi"}])
        assert chat[-1] == engine.control_ids["<|assistant|>"]
        return await engine.decode([ids, chat, ids[:4]])

    texts = run(main())
    assert texts == ["Grüße <|end_of_turn|>", "Hi", "Grü"]


def test_an_export_answers_as_its_saved_model(tmp_path):
    folder = export_saved_model(
        build_model(), ByteTokenizer(), tmp_path, max_new_tokens=24
    )
    module = tf.saved_model.load(str(folder))
    engine = load_engine(module, folder, row_counts=(2,))
    assert engine.max_new_tokens == 24
    assert engine.context_length == CONTEXT
    # Weights are held once.
    for mine, saved in zip(
        engine.model.variables, module.model_variables, strict=True
    ):
        assert mine.value.handle is saved.handle
    rows = [prompt(n, 1) for n in (3, 18, 40)]
    zeros = tf.zeros(1, tf.int32)

    async def main():
        requests = [
            ask(row, 24, stop_id=engine.control_ids["<|end_of_document|>"])
            for row in rows
        ]
        answers = [tokens_of(engine, request) for request in requests]
        return await asyncio.gather(*answers), await engine.score(rows)

    with contextlib.closing(engine):
        answers, scores = run(main())
    for row, tokens, score in zip(rows, answers, scores, strict=True):
        inputs = {
            "token_ids": tf.constant([row]),
            "length": tf.constant([len(row)]),
        }
        told = module.signatures["generate_ids"](
            **inputs,
            max_new_tokens=tf.constant([24]),
            temperature=tf.zeros(1),
            top_k=zeros,
            top_p=tf.ones(1),
            seed=zeros,
        )
        assert ids_of(tokens) == told["token_ids"][0].numpy().tolist()
        reason = told["finish_reason"][0].numpy().decode()
        assert tokens[-1].finish_reason == reason
        own = module.signatures["score_ids"](**inputs)["log_probabilities"]
        np.testing.assert_allclose(
            [one.log_probability for one in score[1:]],
            own[0, 1:],
            atol=1e-4,
        )


def test_answers_that_outgrow_the_small_batch_stay_the_same():
    config = GPTConfig.from_depth(
        1, vocabulary_size=265, context_length=128, model_dim=32
    )
    model = GPTCausalLM(config)
    model.build()
    generator = Generator(model, ByteTokenizer(), jit_compile=False)
    # 60 grows past 64 slots while it answers; 90 never fits them.
    prompts = [tuple(range(20, 20 + count)) for count in (5, 60, 90)]
    expected = generator.generate_ids(
        [list(prompt) for prompt in prompts], 36, stop_token=STOP_TOKEN
    )
    engine = Engine(
        model, ByteTokenizer(), row_counts=(1, 4), jit_compile=False
    )
    assert engine.slot_counts == (64, 128)
    used = set()
    step = engine._step

    def spied():
        step()
        used.add(engine._batch.num_slots)

    engine._step = spied

    async def answer(prompt):
        request = GenerationRequest(prompt, 36, stop_id=STOP)
        return [
            token.token_id
            async for tokens in engine.generate(request)
            for token in tokens
            if token.finish_reason != "stop"
        ]

    async def main():
        together = await asyncio.gather(*map(answer, prompts))
        # Again, now with what was kept of them, in slots of either number.
        return together, [await answer(prompt) for prompt in prompts]

    with contextlib.closing(engine):
        together, again = run(main())
    assert together == again == expected
    assert used == {64, 128}
