"""Owns reading whole texts: prompts into caches, and scores.

Not: the tokens after them (engine.py).
"""

import collections
import functools
import itertools
import threading
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from keras import ops

from kerasgpt.generation.generate import log_probabilities, prefill
from kerasgpt.layers.cache import KVCache
from kerasgpt.serving.backend import MAX_TOP_TOKENS, TokenScore

# Short prompts that wait together are read together: four of 32 tokens take
# XLA's products less than twice as long as one.
READ_ROWS, MOST_TOGETHER = 4, 64
# Layers are not made for being traced by two threads.
_TRACING = threading.Lock()
# A prompt that shares fewer tokens with an earlier one is read anew.
MIN_SHARED_TOKENS = 16


class _Prefix(NamedTuple):
    """Token ids, and the KVCache of one row that has read them."""

    token_ids: tuple
    cache: KVCache


class TextReader:
    """Reads texts with compiled calls of a few lengths.

    What an earlier text began with is not read again: its cache is gone on
    from. Not to be used by two threads at once.

    Args:
        model: GPTCausalLM.
        caches: dict of int to KVCache: an empty one, of one row, for each
            number of slots that is wanted.
        num_kept: int. Texts whose caches are kept.
        jit_compile: bool. Compile with XLA.

    Example:
        >>> from kerasgpt.models.gpt import GPTCausalLM, GPTConfig
        >>> model = GPTCausalLM(GPTConfig.from_depth(1, context_length=16))
        >>> model.build()
        >>> reader = TextReader(model, {16: model.allocate_cache(1, 16)},
        ...     num_kept=1, jit_compile=False)
        >>> [(cache, logits)] = reader.read([(5, 6, 7)], num_slots=16)
        >>> tuple(logits.shape)
        (1, 256)
    """

    def __init__(self, model, caches, *, num_kept, jit_compile):
        self.model = model
        self._empty = caches[min(caches)]
        self._slot_counts = sorted(caches)
        self._kept = collections.deque(maxlen=num_kept)
        self._first_readers, self._readers, self._scorers = {}, {}, {}
        scalar = tf.TensorSpec([], tf.int32)
        context = model.config.context_length
        for length in _lengths(context):
            self._scorers[length] = trace(
                self._traced_score,
                tf.TensorSpec([1, length], tf.int32),
                jit_compile=jit_compile,
            )
        for length in _lengths(context, factor=2):
            for rows in (1, READ_ROWS) if length <= MOST_TOGETHER else (1,):
                self._first_readers[rows, length] = trace(
                    self._traced_first,
                    tf.TensorSpec([rows, length], tf.int32),
                    tf.TensorSpec([rows], tf.int32),
                    jit_compile=jit_compile,
                )
        for num_slots, cache in caches.items():
            for length in _lengths(num_slots):
                self._readers[num_slots, length] = trace(
                    self._traced_read,
                    tf.TensorSpec([1, length], tf.int32),
                    scalar,
                    scalar,
                    *specs_of(cache),
                    jit_compile=jit_compile,
                )

    def shapes(self):
        """Returns functions that run, and so compile, a shape each."""
        return [
            *(
                functools.partial(self._read_first, [(0,) * length] * rows)
                for rows, length in self._first_readers
            ),
            *(
                functools.partial(
                    self._read,
                    (0,) * length,
                    0,
                    fit_cache(self._empty, num_slots),
                )
                for num_slots, length in self._readers
            ),
            *(
                functools.partial(self.score, (0,) * length)
                for length in self._scorers
            ),
        ]

    def keep(self, token_ids, cache):
        """Keeps the cache of one row that has read a text, for a while."""
        self._kept.append(_Prefix(tuple(token_ids), cache))

    def read(self, prompts, *, num_slots):
        """Reads, in one call, the first prompt and some of those after it.

        Args:
            prompts: list of sequences of int, from one to READ_ROWS.
            num_slots: int. Of the cache of the first, if it goes on from that
                of an earlier text.

        Returns:
            list of (KVCache of one row, float32 (1, vocabulary_size) logits of
            the next token), of a beginning of `prompts`.
        """
        first = prompts[0]
        shared, cache = self._shared(first)
        if shared:
            return [self._read(first, shared, fit_cache(cache, num_slots))]
        alike = [
            first,
            *itertools.takewhile(self._reads_like(first), prompts[1:]),
        ]
        # Two, one after the other, take less time than four.
        if len(alike) < READ_ROWS - 1:
            alike = alike[:1]
        return self._read_first(alike)

    def score(self, row):
        """Returns a TokenScore for each token of a text, see `Backend`."""
        length = next(n for n in self._scorers if n >= len(row))
        token_ids = np.zeros((1, length), np.int32)
        token_ids[0, : len(row)] = row
        own, ids, values = (
            value.numpy()[0].tolist()
            for value in self._scorers[length](tf.constant(token_ids))
        )
        scores = [TokenScore(None, ())]
        for place in range(len(row) - 1):
            top = zip(ids[place], values[place], strict=True)
            scores.append(TokenScore(own[place], tuple(top)))
        return scores

    def _reads_like(self, first):
        """Returns whether a prompt is read by the reader of `first`."""
        length = self._first_length(first)

        def is_alike(token_ids):
            return (
                length <= MOST_TOGETHER
                and self._first_length(token_ids) == length
                and not self._shared(token_ids)[0]
            )

        return is_alike

    def _first_length(self, token_ids):
        return min(
            length
            for _, length in self._first_readers
            if length >= len(token_ids)
        )

    def _shared(self, token_ids):
        """Returns how many first tokens were read before, and their cache."""
        shared, cache = 0, None
        # At least the last token is read: its logits are wanted.
        wanted = tuple(token_ids[:-1])
        for prefix in self._kept:
            # Cheaper than counting, and nearly always the end of it.
            least = max(MIN_SHARED_TOKENS, shared + 1)
            if prefix.token_ids[:least] == wanted[:least]:
                count = _num_shared(prefix.token_ids, wanted)
                if count >= least:
                    shared, cache = count, prefix.cache
        return shared, cache

    def _read_first(self, texts):
        """Returns (cache, next logits), of one row each, after some texts.

        Args:
            texts: list of sequences of int, about equally long.
        """
        rows = 1 if len(texts) == 1 else READ_ROWS
        length = min(
            length
            for count, length in self._first_readers
            if count == rows and length >= max(map(len, texts))
        )
        padded = np.zeros((rows, length), np.int32)
        counts = np.ones(rows, np.int32)
        for row, text in enumerate(texts):
            padded[row, : len(text)] = text
            counts[row] = len(text)
        flat = self._first_readers[rows, length](
            tf.constant(padded), tf.constant(counts)
        )
        if rows > 1:
            flat = [tf.split(one, rows) for one in flat]
        else:
            flat = [[one] for one in flat]
        return [
            (tf.nest.pack_sequence_as(self._empty, buffers), logits)
            for *buffers, logits in zip(*flat, strict=True)
        ][: len(texts)]

    def _read(self, token_ids, shared, cache):
        """Returns the cache, and the next logits, after all of a text.

        Args:
            token_ids: sequence of int, no more than `cache` has slots.
            shared: int. So many of them `cache` has read.
            cache: KVCache of one row.
        """
        num_slots = slots_of(cache)
        length = min(
            length
            for slots, length in self._readers
            if slots == num_slots and length >= len(token_ids) - shared
        )
        # Padding must have slots, too.
        shared = min(shared, num_slots - length)
        count = len(token_ids) - shared
        padded = np.zeros((1, length), np.int32)
        padded[0, :count] = token_ids[shared:]
        *buffers, logits = self._readers[num_slots, length](
            tf.constant(padded),
            tf.constant(shared),
            tf.constant(count),
            *tf.nest.flatten(cache),
        )
        return tf.nest.pack_sequence_as(cache, buffers), logits

    # What is compiled.

    def _traced_first(self, token_ids, counts):
        length = token_ids.shape[1]
        num_slots = next(n for n in self._slot_counts if n >= length)
        state = prefill(
            self.model,
            token_ids,
            counts,
            max_new_tokens=num_slots - length,
            with_counts=False,
        )
        return *tf.nest.flatten(state.cache), state.logits

    def _traced_read(self, token_ids, start, count, *buffers):
        hidden_states, cache = self.model.backbone(
            {
                "token_ids": token_ids,
                "positions": (start + ops.arange(token_ids.shape[1]))[None],
            },
            cache=tf.nest.pack_sequence_as(self._empty, buffers),
            slot_writer=_side_by_side_writer,
        )
        # Not a slice: XLA compiles one anew for every place.
        last = ops.take(hidden_states, (count - 1)[None], axis=1)
        return *tf.nest.flatten(cache), self.model.project(last)[:, 0]

    def _traced_score(self, token_ids):
        logits = self.model({"token_ids": token_ids[:, :-1]}, training=False)
        scores = log_probabilities(logits)
        own = ops.take_along_axis(scores, token_ids[:, 1:, None], axis=2)
        values, ids = ops.top_k(scores, MAX_TOP_TOKENS)
        return own[:, :, 0], ids, values


def _lengths(longest, *, factor=4):
    """Returns the lengths that are compiled: 16, 64, … and the longest."""
    lengths = [16]
    while lengths[-1] < longest:
        lengths.append(min(factor * lengths[-1], longest))
    return [min(length, longest) for length in lengths]


def slots_of(cache):
    """Returns the number of slots of a KVCache."""
    return cache.keys[0].shape[2]


def fit_cache(cache, num_slots):
    """Returns a cache of so many slots; those it loses are not in use."""
    missing = num_slots - slots_of(cache)
    if missing > 0:
        return cache.resized(num_slots)
    if missing == 0:
        return cache
    return tf.nest.map_structure(lambda buffer: buffer[:, :, :num_slots], cache)


def _num_shared(first, second):
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def trace(function, *specs, jit_compile):
    """Returns a function of tensors that fit `specs`, traced when first called.

    One is traced while another is compiled, by two threads.
    """
    traceable = tf.function(function, jit_compile=jit_compile, autograph=False)
    traced = []

    def call(*tensors):
        if not traced:
            with _TRACING:
                if not traced:
                    traced.append(traceable.get_concrete_function(*specs))
        return traced[0](*tensors)

    return call


def specs_of(structure):
    """Returns the list of specs of the tensors in a structure."""
    return [
        tf.TensorSpec(one.shape, one.dtype)
        for one in tf.nest.flatten(structure)
    ]


def _side_by_side_writer(buffer, positions):
    """Writes as `slot_writer`, where the slots lie side by side: one copy."""
    start = positions[0, 0]
    del buffer
    return lambda buffer, updates: ops.slice_update(
        buffer, (0, 0, start, 0), ops.cast(updates, buffer.dtype)
    )
