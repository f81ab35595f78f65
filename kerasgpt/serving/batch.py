"""Owns rows decoded together by compiled calls. Not: who gets a row."""

import concurrent.futures
import copy
import functools
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from keras import ops

from kerasgpt.generation.generate import DecodeState, decode
from kerasgpt.generation.samplers import SamplerSettings, TokenCounts
from kerasgpt.layers.cache import KVCache
from kerasgpt.serving.backend import MAX_TOP_TOKENS, GeneratedToken
from kerasgpt.serving.text_reader import slots_of, specs_of, trace

# Most tokens a row gets in one call; a newcomer waits for no more.
MAX_STEPS = 8
# What a row's arguments are packed from.
_INTEGERS = ("length", "num_left", "stop_id", "is_idle", "top_k", "seed")
_FLOATS = tuple(
    name for name in SamplerSettings._fields if name not in _INTEGERS
)
_NEUTRAL = np.array(
    [float(name in ("top_p", "repetition_penalty")) for name in _FLOATS],
    np.float32,
)


class RowState(NamedTuple):
    """What rows keep between two calls.

    Attributes:
        cache: KVCache.
        logits: float32 (rows, vocabulary_size). Of the next token.
        counts: TokenCounts.
    """

    cache: KVCache
    logits: Any
    counts: TokenCounts

    @classmethod
    def empty(cls, model, num_slots):
        """Returns that of one row that has read nothing."""
        vocabulary = (1, model.config.vocabulary_size)
        return cls(
            model.allocate_cache(1, num_slots),
            tf.zeros(vocabulary),
            TokenCounts(
                tf.zeros(vocabulary, tf.bool), tf.zeros(vocabulary, tf.int32)
            ),
        )


class Lane:
    """Rows that one compiled call decodes.

    XLA updates a variable in place; a tensor that goes in and comes out of a
    call is copied: at 50 MB, 4 ms a call against 0.4 ms. Arguments are packed
    into few tensors and functions are called as traced once, since naming and
    checking forty arguments takes TensorFlow 1 ms a call.

    Args:
        model: GPTCausalLM.
        empty: dict of int to `RowState.empty` of so many slots.
        num_rows, num_slots: int.
        joined: see `join_projections`, in variables.
        control_ids: tuple of int, never generated but as a stop id.
        jit_compile: bool.
    """

    def __init__(
        self,
        model,
        empty,
        num_rows,
        num_slots,
        *,
        joined,
        control_ids,
        jit_compile,
    ):
        self.model = model
        self.num_rows = num_rows
        self.joined = joined
        self.control_ids = control_ids
        self._empty = empty
        self._structure = empty[num_slots]
        self._variables = self._rows()
        scalar = tf.TensorSpec([], tf.int32)
        # Variables come last, as arguments: a twin brings its own.
        self._advance = trace(
            self._traced_advance,
            tf.TensorSpec([num_rows, len(_INTEGERS)], tf.int32),
            tf.TensorSpec([num_rows, len(_FLOATS)], tf.float32),
            scalar,
            tf.TensorSpec([], tf.bool),
            *self._variables,
            jit_compile=jit_compile,
        )
        self._puts = {
            count: trace(
                self._traced_put,
                scalar,
                *specs_of(state),
                *self._variables,
                jit_compile=jit_compile,
            )
            for count, state in empty.items()
        }
        self._take = trace(
            self._traced_take, scalar, *self._variables, jit_compile=jit_compile
        )

    def _rows(self):
        return [
            tf.Variable(tf.repeat(row, self.num_rows, axis=0), trainable=False)
            for row in tf.nest.flatten(self._structure)
        ]

    def twin(self):
        """Returns a lane with rows of its own that shares what is compiled."""
        twin = copy.copy(self)
        twin._variables = self._rows()
        return twin

    def shapes(self):
        """Returns functions that run, and so compile, a shape for all twins."""
        return [
            functools.partial(self.advance, [], 1),
            functools.partial(self.take, 0),
            *(
                functools.partial(self.put, 0, state)
                for state in self._empty.values()
            ),
        ]

    def put(self, row, state):
        """Writes the RowState of one row, of any number of slots."""
        put = self._puts[slots_of(state.cache)]
        put(tf.constant(row), *tf.nest.flatten(state), *self._variables)

    def take(self, row):
        """Returns the RowState of one row."""
        flat = self._take(tf.constant(row), *self._variables)
        return tf.nest.pack_sequence_as(self._structure, flat)

    def advance(self, jobs, num_steps):
        """Generates up to `num_steps` tokens for each of some jobs.

        Args:
            jobs: list of (row, job), see `Batch`.
            num_steps: int.

        Returns:
            list of (row, list of GeneratedToken), and the steps it took.
        """
        integers = np.zeros((self.num_rows, len(_INTEGERS)), np.int32)
        # One row that draws or is penalised costs all rows the passes for it.
        floats = np.tile(_NEUTRAL, (self.num_rows, 1))
        # num_left, is_idle: a row without a job does nothing.
        integers[:, 1], integers[:, 3] = 1, 1
        for row, job in jobs:
            values = {
                **vars(job.request),
                "length": len(job.token_ids),
                "num_left": job.num_left,
                "is_idle": 0,
            }
            integers[row] = [values[name] for name in _INTEGERS]
            floats[row] = [values[name] for name in _FLOATS]
        wants_top = any(job.request.wants_top for _, job in jobs)
        results = self._advance(
            tf.constant(integers),
            tf.constant(floats),
            tf.constant(num_steps),
            tf.constant(wants_top),
            *self._variables,
        )
        ids, scores, counts, step = (result.numpy() for result in results)
        answers = []
        for row, job in jobs:
            made = slice(int(counts[row]))
            answers.append(
                (row, _tokens(ids[row, made], scores[row, made], job))
            )
        return answers, int(step)

    def _traced_advance(
        self, integers, floats, num_steps, wants_top, *variables
    ):
        values = dict(zip(_INTEGERS, tf.unstack(integers, axis=1), strict=True))
        values |= zip(_FLOATS, tf.unstack(floats, axis=1), strict=True)
        before = tf.nest.pack_sequence_as(
            self._structure, [tf.convert_to_tensor(one) for one in variables]
        )
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
            wants_top=wants_top,
            joined=tf.nest.map_structure(tf.convert_to_tensor, self.joined),
        )
        after = RowState(state.cache, state.logits, state.counts)
        for variable, value in zip(
            variables, tf.nest.flatten(after), strict=True
        ):
            variable.assign(value)
        # The chosen token, then the likeliest ones.
        top = state.top
        return (
            ops.concatenate(
                [state.token_ids[:, :, None], top.token_ids], axis=2
            ),
            ops.concatenate(
                [state.log_probabilities[:, :, None], top.log_probabilities],
                axis=2,
            ),
            state.num_tokens,
            state.step,
        )

    def _traced_put(self, row, *values_and_variables):
        count = len(self._variables)
        values = values_and_variables[:count]
        variables = values_and_variables[count:]
        for variable, value in zip(variables, values, strict=True):
            start = (row,) + (0,) * (len(variable.shape) - 1)
            everything = tf.convert_to_tensor(variable)
            # Slots that a buffer lacks keep what nobody will see; those it
            # has beyond are not in use.
            if len(variable.shape) == 4:
                value = value[:, :, : variable.shape[2]]
            variable.assign(ops.slice_update(everything, start, value))

    def _traced_take(self, row, *variables):
        return [
            ops.take(tf.convert_to_tensor(variable), row[None], axis=0)
            for variable in variables
        ]


class Batch:
    """Rows that are decoded together, and the jobs they belong to.

    A job has a `request`, its `token_ids` so far and `num_left` to come. Rows
    are dealt out to lanes, each of which a thread decodes: the products of a
    few rows leave other cores idle (experiments/LOG.md).

    Args:
        num_slots: int. Of each lane.
        lanes: list of Lane, as many rows each.
        pool: concurrent.futures.Executor, of as many threads.

    Attributes:
        num_slots, lanes: see above.
        jobs: list of a job or None, for each row.
        num_idle_calls: int, for its user to count.
    """

    def __init__(self, num_slots, lanes, pool):
        self.num_slots = num_slots
        self.num_idle_calls = 0
        self.jobs = [None] * sum(lane.num_rows for lane in lanes)
        self.lanes = lanes
        self._pool = pool

    @property
    def active(self):
        """List of (row, job)."""
        return [(row, job) for row, job in enumerate(self.jobs) if job]

    def put(self, row, job, state):
        """Gives a row to a job, with its RowState of one row."""
        # At once: whatever fails, a job stands where it is looked for.
        self.jobs[row] = job
        place, lane = divmod(row, len(self.lanes))
        self.lanes[lane].put(place, state)

    def take(self, row):
        """Returns the RowState of a row, and frees it."""
        place, lane = divmod(row, len(self.lanes))
        state = self.lanes[lane].take(place)
        self.jobs[row] = None
        return state

    def advance(self, num_steps):
        """Generates up to `num_steps` tokens for each job.

        Returns:
            list of (row, list of GeneratedToken), and the most steps it took.
        """
        num_lanes = len(self.lanes)
        places = [[] for _ in self.lanes]
        for row, job in self.active:
            places[row % num_lanes].append((row // num_lanes, job))
        busy = [number for number, jobs in enumerate(places) if jobs]

        def run(number):
            tokens, steps = self.lanes[number].advance(
                places[number], num_steps
            )
            told = [(row * num_lanes + number, some) for row, some in tokens]
            return told, steps

        # The last in this thread: another would have to be woken for it.
        others = [self._pool.submit(run, number) for number in busy[:-1]]
        try:
            answers, steps = run(busy[-1])
        finally:
            # One that fails must not leave another at work.
            concurrent.futures.wait(others)
        for other in others:
            told, taken = other.result()
            answers, steps = answers + told, max(steps, taken)
        return answers, steps


def _tokens(ids, scores, job):
    """Returns the GeneratedTokens of a row in one call.

    Args:
        ids: int32 (tokens, 1 + top tokens). The chosen, then the likeliest.
        scores: float32, as `ids`: their log-probabilities.
        job: see `Batch`.
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
        top = ()
        if job.request.wants_top:
            top = tuple(zip(row_ids[1:], row_scores[1:], strict=True))
        tokens.append(GeneratedToken(row_ids[0], row_scores[0], top, reason))
    return tokens
