"""Owns continuous batching. Not: reading prompts, making tokens, a protocol."""

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import logging
import pathlib
import threading
import time
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from keras import ops

from kerasgpt.checkpoints.model_folder import load_config, load_tokenizer
from kerasgpt.config import InputError
from kerasgpt.generation.generate import (
    DecodeState,
    decode,
)
from kerasgpt.generation.samplers import SamplerSettings, TokenCounts
from kerasgpt.generation.token_step import join_projections
from kerasgpt.layers.cache import KVCache
from kerasgpt.models.gpt import GPTCausalLM
from kerasgpt.serving.backend import (
    MAX_TOP_TOKENS,
    Backend,
    DeadlineExceeded,
    GeneratedToken,
    QueueFull,
    Unavailable,
)
from kerasgpt.serving.saved_model import MODEL_ASSETS
from kerasgpt.serving.text_reader import (
    READ_ROWS,
    TextReader,
    fit_cache,
    slots_of,
    specs_of,
    trace,
)
from kerasgpt.tokenizers.chat_template import ChatTemplate

# Most tokens a row gets in one call; a newcomer waits for no more.
MAX_STEPS = 8
# A call lasts about so long, whatever the model's size.
CALL_SECONDS = 0.05
# What a row's arguments are packed from.
_INTEGERS = ("length", "num_left", "stop_id", "is_idle", "top_k", "seed")
_FLOATS = tuple(
    name for name in SamplerSettings._fields if name not in _INTEGERS
)
_NEUTRAL = np.array(
    [float(name in ("top_p", "repetition_penalty")) for name in _FLOATS],
    np.float32,
)
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


class _RowState(NamedTuple):
    """What rows keep between two calls.

    Attributes:
        cache: KVCache.
        logits: float32 (rows, vocabulary_size). Of the next token.
        counts: TokenCounts.
    """

    cache: KVCache
    logits: Any
    counts: TokenCounts


class _Batch:
    """Rows that are decoded together, and the compiled calls on them.

    XLA updates a variable in place; a tensor that goes in and comes out of a
    call is copied: at 50 MB, 4 ms a call against 0.4 ms. Arguments are packed
    into few tensors and functions are called as traced once, since naming and
    checking forty arguments takes TensorFlow 1 ms a call.

    Args:
        model: GPTCausalLM.
        empty: _RowState of one row.
        num_rows: int.
        joined: see `join_projections`, in variables.
        control_ids: tuple of int, never generated but as a stop id.
        jit_compile: bool.
    """

    def __init__(
        self, model, empty, num_rows, *, joined, control_ids, jit_compile
    ):
        self.model = model
        self.joined = joined
        self.control_ids = control_ids
        self.num_slots = slots_of(empty.cache)
        self.jobs = [None] * num_rows
        self.num_idle_calls = 0
        self._state = tf.nest.map_structure(
            lambda row: tf.Variable(
                tf.repeat(row, num_rows, axis=0), trainable=False
            ),
            empty,
        )
        scalar = tf.TensorSpec([], tf.int32)
        self._advance = trace(
            self._traced_advance,
            tf.TensorSpec([num_rows, len(_INTEGERS)], tf.int32),
            tf.TensorSpec([num_rows, len(_FLOATS)], tf.float32),
            scalar,
            jit_compile=jit_compile,
        )
        self._put = trace(
            self._traced_put, scalar, *specs_of(empty), jit_compile=jit_compile
        )
        self._take = trace(self._traced_take, scalar, jit_compile=jit_compile)

    @property
    def active(self):
        """List of (row, job)."""
        return [(row, job) for row, job in enumerate(self.jobs) if job]

    def put(self, row, job, state):
        """Gives a row to a job, with its _RowState of one row."""
        state = state._replace(cache=fit_cache(state.cache, self.num_slots))
        # At once: whatever fails, a job stands where `_fail_all` finds it.
        self.jobs[row] = job
        self._put(tf.constant(row), *tf.nest.flatten(state))

    def take(self, row):
        """Returns the _RowState of a row, and frees it."""
        flat = self._take(tf.constant(row))
        self.jobs[row] = None
        return tf.nest.pack_sequence_as(self._state, flat)

    def advance(self, num_steps):
        """Generates up to `num_steps` tokens for each job.

        Returns:
            list of (row, list of GeneratedToken), and how many steps it took.
        """
        integers = np.zeros((len(self.jobs), len(_INTEGERS)), np.int32)
        # One row that draws or is penalised costs all rows the passes for it.
        floats = np.tile(_NEUTRAL, (len(self.jobs), 1))
        # num_left, is_idle: a row without a job does nothing.
        integers[:, 1], integers[:, 3] = 1, 1
        for row, job in self.active:
            values = {
                **vars(job.request),
                "length": len(job.token_ids),
                "num_left": job.num_left,
                "is_idle": 0,
            }
            integers[row] = [values[name] for name in _INTEGERS]
            floats[row] = [values[name] for name in _FLOATS]
        results = self._advance(
            tf.constant(integers), tf.constant(floats), tf.constant(num_steps)
        )
        ids, scores, counts, step = (result.numpy() for result in results)
        tokens = [
            (row, _tokens(ids[row, :count], scores[row, :count], job))
            for (row, job), count in zip(
                self.active,
                (int(counts[row]) for row, _ in self.active),
                strict=True,
            )
        ]
        return tokens, int(step)

    def _traced_advance(self, integers, floats, num_steps):
        values = dict(zip(_INTEGERS, tf.unstack(integers, axis=1), strict=True))
        values |= zip(_FLOATS, tf.unstack(floats, axis=1), strict=True)
        before = tf.nest.map_structure(tf.convert_to_tensor, self._state)
        state = decode(
            self.model,
            DecodeState.start(
                room=MAX_STEPS,
                top_tokens=MAX_TOP_TOKENS,
                lengths=values["length"],
                is_finished=values["is_idle"] > 0,
                **before._asdict(),
            ),
            SamplerSettings(
                **{name: values[name] for name in SamplerSettings._fields}
            ),
            max_new_tokens=values["num_left"],
            stop_ids=values["stop_id"],
            num_steps=num_steps,
            control_ids=self.control_ids,
            joined=tf.nest.map_structure(tf.convert_to_tensor, self.joined),
        )
        after = _RowState(state.cache, state.logits, state.counts)
        tf.nest.map_structure(
            lambda old, new: old.assign(new), self._state, after
        )
        # The chosen token, then the likeliest ones.
        ids = [state.token_ids[:, :, None], state.top.token_ids]
        scores = [
            state.log_probabilities[:, :, None],
            state.top.log_probabilities,
        ]
        return (
            ops.concatenate(ids, axis=2),
            ops.concatenate(scores, axis=2),
            state.num_tokens,
            state.step,
        )

    def _traced_put(self, row, *values):
        variables = tf.nest.flatten(self._state)
        for variable, value in zip(variables, values, strict=True):
            start = (row,) + (0,) * (len(variable.shape) - 1)
            everything = tf.convert_to_tensor(variable)
            variable.assign(ops.slice_update(everything, start, value))

    def _traced_take(self, row):
        return [
            ops.take(tf.convert_to_tensor(variable), row[None], axis=0)
            for variable in tf.nest.flatten(self._state)
        ]


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
        vocabulary = (1, config.vocabulary_size)
        empty = {
            count: _RowState(
                cache=model.allocate_cache(1, count),
                logits=tf.zeros(vocabulary),
                counts=TokenCounts(
                    tf.zeros(vocabulary, tf.bool),
                    tf.zeros(vocabulary, tf.int32),
                ),
            )
            for count in self.slot_counts
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
            join_projections(model),
        )
        self._batches = {
            (count, num_slots): _Batch(
                model,
                empty[num_slots],
                count,
                joined=joined,
                control_ids=never_generated,
                jit_compile=jit_compile,
            )
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

    def load(self):
        """Returns (requests that are answered now, requests that wait)."""
        return len(self._batch.active), len(self._waiting)

    def compile(self):
        """Runs every shape once, so that no request waits for a compiler.

        To be called before the first request.
        """
        self._reader.compile()
        for batch in self._batches.values():
            batch.put(0, None, self._empty)
            batch.advance(1)
            batch.take(0)

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
        return _RowState(
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


def _tokens(ids, scores, job):
    """Returns the GeneratedTokens of a row in one call.

    Args:
        ids: int32 (tokens, 1 + MAX_TOP_TOKENS). The chosen, then the likeliest.
        scores: float32, as `ids`: their log-probabilities.
        job: _Job.
    """
    tokens = []
    for place, (row_ids, row_scores) in enumerate(
        zip(ids.tolist(), scores.tolist(), strict=True), start=1
    ):
        reason = None
        if row_ids[0] == job.request.stop_id:
            reason = "stop"
        elif place == job.num_left:
            reason = "length"
        top = tuple(zip(row_ids[1:], row_scores[1:], strict=True))
        tokens.append(GeneratedToken(row_ids[0], row_scores[0], top, reason))
    return tokens
