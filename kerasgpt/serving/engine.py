"""Owns continuous batching. Not: reading prompts, making tokens, a protocol."""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import logging
import os
import pathlib
import threading
import time

import numpy as np
import tensorflow as tf

from kerasgpt.checkpoints.model_folder import load_config, load_tokenizer
from kerasgpt.config import InputError
from kerasgpt.generation.samplers import TokenCounts
from kerasgpt.generation.token_step import join_projections
from kerasgpt.models.gpt import GPTCausalLM
from kerasgpt.serving.backend import (
    Backend,
    DeadlineExceeded,
    QueueFull,
    Unavailable,
)
from kerasgpt.serving.batch import MAX_STEPS, Batch, Lane, RowState
from kerasgpt.serving.saved_model import MODEL_ASSETS
from kerasgpt.serving.text_reader import READ_ROWS, TextReader
from kerasgpt.tokenizers.chat_template import ChatTemplate

# A call lasts about so long, whatever the model's size.
CALL_SECONDS = 0.05
# Fewer rows than these are not worth a thread of their own.
LANE_ROWS = 8
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class _Job:
    """A request on its way, and where its answer goes."""

    request: object
    loop: asyncio.AbstractEventLoop
    replies: asyncio.Queue
    deadline: float
    token_ids: list
    num_left: int
    started: float
    is_cancelled: bool = False

    def is_over(self, now):
        return self.is_cancelled or now > self.deadline

    def take(self, tokens):
        """Adds generated tokens and tells the client."""
        self.token_ids += [
            one.token_id for one in tokens if one.finish_reason != "stop"
        ]
        self.num_left -= len(tokens)
        self.tell(tokens)

    def tell(self, reply):
        try:
            self.loop.call_soon_threadsafe(self.replies.put_nowait, reply)
        # The client's event loop is gone, and the client with it.
        except RuntimeError:
            self.is_cancelled = True


class Engine(Backend):
    """A model in this process that answers many requests at once.

    A thread runs the model over a batch of rows. A request takes a row at the
    next token and leaves it when done, so none waits for the end of another's
    answer; those beyond `max_rows` wait in the order they came, those beyond
    `max_waiting` are turned away. Greedy answers do not depend on the batch.
    What was read for an answer is kept for a while: the next turn of a
    conversation reads its new tokens only.

    Args:
        model: GPTCausalLM.
        tokenizer: Tokenizer.
        max_new_tokens: int. The most that a request may ask for.
        row_counts: increasing ints. Sizes of the batch; each is compiled.
        max_waiting: int. Requests that may wait while no row is free.
        kept_bytes: int. Memory for what earlier requests have read.
        jit_compile: bool. Compile with XLA.

    Example:
        >>> from kerasgpt.models.gpt import GPTConfig
        >>> from kerasgpt.serving.backend import GenerationRequest
        >>> from kerasgpt.tokenizers.byte import ByteTokenizer
        >>> config = GPTConfig.from_depth(1, vocabulary_size=265)
        >>> engine = Engine(GPTCausalLM(config), ByteTokenizer(),
        ...     row_counts=(1,), jit_compile=False)
        >>> async def count(request):
        ...     return [len(some) async for some in engine.generate(request)]
        >>> sum(asyncio.run(count(GenerationRequest((2, 9), 5, stop_id=3))))
        5
        >>> engine.close()
    """

    def __init__(
        self,
        model,
        tokenizer,
        *,
        max_new_tokens=128,
        row_counts=(1, 4, 16),
        max_waiting=64,
        kept_bytes=64 << 20,
        jit_compile=True,
    ):
        if not model.built:
            model.build()
        config = model.config
        self.model = model
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer)
        self.context_length = config.context_length
        self.max_new_tokens = max_new_tokens
        self.vocabulary_size = config.vocabulary_size
        self.control_ids = dict(self.template.control_ids)
        self.landmarks = self.template.landmarks
        never_generated = tuple(self.control_ids.values())
        self.row_counts = row_counts
        self.max_waiting = max_waiting
        # Attention reads every slot, used or not, and most texts are short.
        context = self.context_length
        self.slot_counts = _slot_counts(context)
        empty = {
            count: RowState.empty(model, count) for count in self.slot_counts
        }
        self._empty = empty[self.slot_counts[0]]
        row_bytes = sum(
            one.shape.num_elements() * one.dtype.size
            for one in tf.nest.flatten(empty[context])
        )
        self._reader = TextReader(
            model,
            {count: state.cache for count, state in empty.items()},
            num_kept=max(1, kept_bytes // row_bytes),
            jit_compile=jit_compile,
        )
        joined = tf.nest.map_structure(
            lambda part: tf.Variable(part, trainable=False),
            join_projections(model, num_rows=min(row_counts)),
        )
        most_lanes = len(os.sched_getaffinity(0))
        self._pool = concurrent.futures.ThreadPoolExecutor(
            most_lanes, thread_name_prefix="lane"
        )

        def build_batch(num_rows, num_slots):
            num_lanes = max(1, min(num_rows // LANE_ROWS, most_lanes))
            while num_rows % num_lanes:
                num_lanes -= 1
            lane = Lane(
                model,
                empty,
                num_rows // num_lanes,
                num_slots,
                joined=joined if num_rows == 1 else joined.for_rows(),
                control_ids=never_generated,
                jit_compile=jit_compile,
            )
            lanes = [lane, *(lane.twin() for _ in range(num_lanes - 1))]
            return Batch(num_slots, lanes, self._pool)

        self._batches = {
            (count, num_slots): build_batch(count, num_slots)
            for count in row_counts
            for num_slots in self.slot_counts
        }
        self._batch = self._batches[row_counts[0], self.slot_counts[0]]
        self._step_seconds = 1e-3
        self._answer_seconds = 1.0
        # Guards what clients add and the thread takes.
        self._changed = threading.Condition()
        self._waiting = collections.deque()
        self._to_score = collections.deque()
        self._is_closed = False
        self._thread = threading.Thread(
            target=self._run, name="engine", daemon=True
        )
        self._thread.start()

    # What clients call, in their event loops.

    async def encode(self, texts):
        return await asyncio.to_thread(
            lambda: [self.tokenizer.encode(text) for text in texts]
        )

    async def encode_chat(self, messages):
        return await asyncio.to_thread(self.template.prompt, messages)

    async def decode(self, rows):
        return await asyncio.to_thread(self.tokenizer.decode_batch, rows)

    async def generate(self, request):
        job = self._new_job(request)
        with self._changed:
            self._require_open()
            num_free = self.row_counts[-1] - len(self._batch.active)
            if len(self._waiting) >= self.max_waiting + num_free:
                raise QueueFull(
                    self._answer_seconds
                    * (1 + len(self._waiting) / self.row_counts[-1])
                )
            self._waiting.append(job)
            self._changed.notify()
        try:
            while True:
                reply = await job.replies.get()
                if isinstance(reply, Exception):
                    raise reply
                yield reply
                if reply[-1].finish_reason:
                    return
        finally:
            job.is_cancelled = True

    async def score(self, rows):
        for row in rows:
            if not 1 <= len(row) <= self.context_length:
                raise InputError(
                    f"a text of {len(row)} tokens cannot be scored; it must "
                    f"have from 1 to {self.context_length}."
                )
            self._require_known(row)
        loop = asyncio.get_running_loop()
        texts = [(tuple(row), loop, loop.create_future()) for row in rows]
        with self._changed:
            self._require_open()
            if len(self._to_score) >= 16 * self.max_waiting:
                raise QueueFull(self._answer_seconds)
            self._to_score += texts
            self._changed.notify()
        return list(await asyncio.gather(*(future for *_, future in texts)))

    def close(self):
        """Ends the thread; requests still on their way get `Unavailable`."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()
        self._pool.shutdown()

    def load(self):
        """Returns (requests that are answered now, requests that wait)."""
        return len(self._batch.active), len(self._waiting)

    def compile(self):
        """Runs every shape once, so that no request waits for a compiler.

        To be called before the first request.
        """
        # The largest first: the last one would be compiled alone.
        lanes = [batch.lanes[0] for batch in self._batches.values()]
        shapes = [shape for lane in lanes[::-1] for shape in lane.shapes()]
        shapes += self._reader.shapes()
        for _ in self._pool.map(lambda shape: shape(), shapes):
            pass

    # What the thread does.

    def _run(self):
        while True:
            with self._changed:
                while not (
                    self._waiting
                    or self._to_score
                    or self._batch.active
                    or self._is_closed
                ):
                    self._changed.wait()
                if self._is_closed:
                    self._fail_all("the model was retired")
                    return
            try:
                self._drop_late()
                self._admit()
                self._score_some()
                if self._batch.active:
                    self._step()
            # A fault of ours must neither end the thread nor hang a client.
            except Exception:
                _LOG.exception("the engine failed")
                with self._changed:
                    self._fail_all("the model failed; try again")

    def _fail_all(self, reason):
        for batch in self._batches.values():
            for _, job in batch.active:
                job.tell(Unavailable(reason))
            batch.jobs = [None] * len(batch.jobs)
        for job in self._waiting:
            job.tell(Unavailable(reason))
        for _, loop, future in self._to_score:
            _resolve(loop, future, Unavailable(reason))
        self._waiting.clear()
        self._to_score.clear()

    def _drop_late(self):
        now = time.monotonic()
        for row, job in self._batch.active:
            if job.is_over(now):
                self._leave(row, job)
                job.tell(DeadlineExceeded("the answer took too long"))
        with self._changed:
            late = [job for job in self._waiting if job.is_over(now)]
            for job in late:
                self._waiting.remove(job)
        for job in late:
            job.tell(DeadlineExceeded("no place was free in time"))

    def _admit(self):
        # Answers under way wait for few newcomers at a time.
        end = time.monotonic() + CALL_SECONDS
        while True:
            num_free = self.row_counts[-1] - len(self._batch.active)
            with self._changed:
                # Only this thread takes one out.
                waiting = list(
                    itertools.islice(self._waiting, min(num_free, READ_ROWS))
                )
            if not waiting:
                return
            read = self._reader.read(
                [job.token_ids for job in waiting],
                num_slots=self._slots_for(len(waiting[0].token_ids)),
            )
            self._make_room(*waiting[: len(read)])
            for job, one in zip(waiting, read, strict=False):
                state = self._row_state(job.token_ids, *one)
                job.started = time.monotonic()
                self._batch.put(self._batch.jobs.index(None), job, state)
                with self._changed:
                    self._waiting.popleft()
            if time.monotonic() > end:
                return

    def _step(self):
        with self._changed:
            # Who finds no free row would not come sooner by short calls.
            is_joining = len(self._batch.active) < self.row_counts[-1]
            is_crowded = bool(self._to_score or (self._waiting and is_joining))
        steps = 1 if is_crowded else int(CALL_SECONDS / self._step_seconds)
        self._make_room()
        started = time.monotonic()
        answers, taken = self._batch.advance(max(1, min(MAX_STEPS, steps)))
        seconds = (time.monotonic() - started) / max(1, taken)
        self._step_seconds += 0.2 * (seconds - self._step_seconds)
        for row, tokens in answers:
            job = self._batch.jobs[row]
            job.take(tokens)
            if tokens[-1].finish_reason:
                self._leave(row, job)
                self._answer_seconds += 0.1 * (
                    time.monotonic() - job.started - self._answer_seconds
                )
        self._shrink()

    def _leave(self, row, job):
        """Frees the row of a job, and keeps what it has read."""
        state = self._batch.take(row)
        self._reader.keep(job.token_ids, state.cache)

    def _shrink(self):
        """Takes a smaller batch when the large one has long been too large."""
        batch, wanted = self._batch, self._batches[self._size()]
        batch.num_idle_calls += 1
        if wanted is batch:
            batch.num_idle_calls = 0
        elif batch.num_idle_calls >= 16 or not batch.active:
            self._move_to(wanted)

    def _make_room(self, *newcomers):
        """Takes a larger batch where the jobs' next tokens need it."""
        count, num_slots = self._size(*newcomers)
        count = max(count, len(self._batch.jobs))
        num_slots = max(num_slots, self._batch.num_slots)
        self._move_to(self._batches[count, num_slots])

    def _size(self, *newcomers):
        """Returns the fewest rows and slots that do for the jobs."""
        jobs = [*(job for _, job in self._batch.active), *newcomers]
        longest = max((len(job.token_ids) for job in jobs), default=0)
        count = next(n for n in self.row_counts if n >= len(jobs))
        return count, self._slots_for(longest)

    def _slots_for(self, num_tokens):
        needed = min(num_tokens + MAX_STEPS, self.context_length)
        return next(n for n in self.slot_counts if n >= needed)

    def _move_to(self, batch):
        if batch is self._batch:
            return
        batch.num_idle_calls = 0
        for place, (row, job) in enumerate(self._batch.active):
            batch.put(place, job, self._batch.take(row))
        self._batch = batch

    def _row_state(self, token_ids, cache, logits):
        is_in_prompt = np.zeros((1, self.vocabulary_size), bool)
        is_in_prompt[0, token_ids] = True
        return RowState(
            cache,
            logits,
            TokenCounts(
                tf.constant(is_in_prompt), self._empty.counts.generated
            ),
        )

    def _score_some(self):
        # Answers under way wait for one call's time at most.
        end = time.monotonic() + CALL_SECONDS
        while True:
            with self._changed:
                if not self._to_score:
                    return
                row, loop, future = self._to_score[0]
            if not future.cancelled():
                _resolve(loop, future, self._reader.score(row))
            with self._changed:
                self._to_score.popleft()
            if time.monotonic() > end:
                return

    def _new_job(self, request):
        room = self.context_length - len(request.token_ids)
        if not request.token_ids or room < 1:
            raise InputError(
                f"a prompt must have from 1 to {self.context_length - 1} "
                f"tokens; received {len(request.token_ids)}."
            )
        if request.max_new_tokens < 1:
            raise InputError(
                f"max_new_tokens={request.max_new_tokens}: must be at least 1."
            )
        self._require_known(request.token_ids)
        deadline = float("inf")
        if request.deadline_s is not None:
            deadline = time.monotonic() + request.deadline_s
        return _Job(
            request=request,
            loop=asyncio.get_running_loop(),
            replies=asyncio.Queue(),
            deadline=deadline,
            token_ids=list(request.token_ids),
            num_left=min(request.max_new_tokens, room),
            started=time.monotonic(),
        )

    def _require_open(self):
        if self._is_closed:
            raise Unavailable("the model was retired")

    def _require_known(self, token_ids):
        for token_id in (min(token_ids), max(token_ids)):
            if not 0 <= token_id < self.vocabulary_size:
                raise InputError(
                    f"token ids must be from 0 to {self.vocabulary_size - 1}; "
                    f"received {token_id}."
                )


def load_engine(module, path, **settings):
    """Returns an `Engine` that runs an export of ours.

    Args:
        module: what `tf.saved_model.load` returned for it.
        path: str or Path. The version's folder, its files verified.
        **settings: of `Engine`.

    Raises:
        InputError: if the export was made without its configuration.
    """
    folder = pathlib.Path(path) / MODEL_ASSETS
    model = GPTCausalLM(load_config(folder), name="gpt")
    model.build()
    for variable, saved in zip(
        model.variables, module.model_variables, strict=True
    ):
        # The export's own tensors, so that weights are held once: Keras has
        # no public way to give a variable its storage.
        variable._value = saved
    facts = module.signatures["describe"](key=tf.constant(["max_new_tokens"]))
    engine = Engine(
        model,
        load_tokenizer(folder),
        max_new_tokens=int(facts["value"][0]),
        **settings,
    )
    engine.compile()
    return engine


def _slot_counts(context_length):
    """Returns how many slots a batch may have: the context, half, a quarter.

    Example:
        >>> _slot_counts(512), _slot_counts(256), _slot_counts(100)
        ((128, 256, 512), (128, 256), (100,))
    """
    counts = [context_length]
    if context_length >= 128:
        counts.insert(0, context_length // 2)
    if context_length >= 512:
        counts.insert(0, context_length // 4)
    return tuple(counts)


def _resolve(loop, future, result):
    def resolve():
        if future.cancelled():
            return
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)

    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(resolve)
