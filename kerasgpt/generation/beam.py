"""Owns beam search, and texts translated by it. Not: sampling (samplers.py)."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from keras import ops, tree

from kerasgpt.config import InputError
from kerasgpt.generation.generate import log_probabilities
from kerasgpt.generation.samplers import IMPOSSIBLE

START, STOP = "<|document|>", "<|end_of_document|>"
# Texts translated together.
BATCH_ROWS = 32


class _Beams(NamedTuple):
    """Where a search stands; rows of one text lie side by side.

    Attributes:
        token_ids: int32 (batch, beams, room).
        scores: float32 (batch, beams). Sums of log-probabilities.
        lengths: int32 (batch, beams). Tokens, the stop id included.
        is_finished: bool (batch, beams).
        logits: float32 (batch * beams, vocabulary_size). Of the next token.
        cache: of batch * beams rows.
        step: int32 ().
    """

    token_ids: Any
    scores: Any
    lengths: Any
    is_finished: Any
    logits: Any
    cache: Any
    step: Any


def beam_search(
    model,
    logits,
    cache,
    positions,
    *,
    num_beams,
    max_new_tokens,
    stop_id,
    is_banned,
    length_penalty=1.0,
):
    """Returns the likeliest continuation that `num_beams` at a time find.

    A finished beam keeps its score and its place among the beams until others
    push it out; in the end the best score over length^penalty is chosen.
    `keras_hub.samplers.BeamSampler` has neither a stop id of its own nor a
    length penalty, and compiles its settings in.

    Args:
        model: task model with a cached call, see `GPTCausalLM`.
        logits: float32 (batch, vocabulary_size). Of the first new token.
        cache: of batch rows, with room for `max_new_tokens` more.
        positions: int32 (batch,). Of the first new token.
        num_beams: int. 1 = greedy.
        max_new_tokens: int.
        stop_id: int.
        is_banned: bool (vocabulary_size,). Never generated.
        length_penalty: float. 0 = none; larger favours longer texts.

    Returns:
        int32 (batch, max_new_tokens) token ids, filled up with the stop id;
        and float32 (batch,), their scores.

    Reference: Wu et al. 2016, GNMT (arXiv 1609.08144), section 7, with a
    plain power of the length.
    """
    batch_size, vocabulary_size = ops.shape(logits)[0], logits.shape[-1]
    rows = ops.arange(batch_size, dtype="int32")

    def spread(tensor):
        return ops.repeat(tensor, num_beams, axis=0)

    shape = (batch_size, num_beams)
    positions = spread(positions)
    # At first all beams are alike: all but one are impossible.
    first = ops.where(ops.arange(num_beams) == 0, 0.0, IMPOSSIBLE)
    beams = _Beams(
        token_ids=ops.full((*shape, max_new_tokens), stop_id, "int32"),
        scores=ops.broadcast_to(ops.cast(first, "float32")[None], shape),
        lengths=ops.zeros(shape, "int32"),
        is_finished=ops.zeros(shape, "bool"),
        logits=spread(logits),
        cache=tree.map_structure(spread, cache),
        step=ops.zeros((), "int32"),
    )
    ends = ops.where(ops.arange(vocabulary_size) == stop_id, 0.0, IMPOSSIBLE)
    column = ops.arange(max_new_tokens, dtype="int32")

    def advance(beams):
        scores = log_probabilities(
            ops.where(is_banned[None], IMPOSSIBLE, beams.logits)
        )
        scores = ops.reshape(scores, (*shape, vocabulary_size))
        # What is finished goes on with the stop id, for nothing.
        scores = ops.where(beams.is_finished[..., None], ends, scores)
        scores = ops.reshape(
            beams.scores[..., None] + scores,
            (batch_size, num_beams * vocabulary_size),
        )
        scores, chosen = ops.top_k(scores, num_beams)
        chosen = ops.cast(chosen, "int32")
        origin, token_ids = chosen // vocabulary_size, chosen % vocabulary_size
        from_rows = ops.reshape(rows[:, None] * num_beams + origin, (-1,))

        def follow(tensor):
            flat = ops.reshape(tensor, (-1, *tensor.shape[2:]))
            return ops.reshape(
                ops.take(flat, from_rows, axis=0), (*shape, *tensor.shape[2:])
            )

        was_finished = follow(beams.is_finished)
        hidden_states, cache = model.backbone(
            {
                "token_ids": ops.reshape(token_ids, (-1, 1)),
                "positions": ops.minimum(
                    positions + beams.step, model.config.context_length - 1
                )[:, None],
            },
            cache=tree.map_structure(
                lambda tensor: ops.take(tensor, from_rows, axis=0), beams.cache
            ),
        )
        return _Beams(
            token_ids=ops.where(
                column == beams.step,
                token_ids[..., None],
                follow(beams.token_ids),
            ),
            scores=scores,
            lengths=follow(beams.lengths)
            + ops.cast(ops.logical_not(was_finished), "int32"),
            is_finished=ops.logical_or(
                was_finished, ops.equal(token_ids, stop_id)
            ),
            logits=model.project(hidden_states)[:, 0],
            cache=cache,
            step=beams.step + 1,
        )

    def is_open(beams):
        return ops.logical_and(
            beams.step < max_new_tokens,
            ops.logical_not(ops.all(beams.is_finished)),
        )

    flat = ops.while_loop(
        lambda *flat: is_open(tf.nest.pack_sequence_as(beams, flat)),
        lambda *flat: tf.nest.flatten(
            advance(tf.nest.pack_sequence_as(beams, flat))
        ),
        tf.nest.flatten(beams),
    )
    beams = tf.nest.pack_sequence_as(beams, flat)
    lengths = ops.cast(ops.maximum(beams.lengths, 1), "float32")
    scores = beams.scores / ops.power(lengths, length_penalty)
    best = ops.argmax(scores, axis=1)
    return (
        ops.take_along_axis(beams.token_ids, best[:, None, None], axis=1)[:, 0],
        ops.max(scores, axis=1),
    )


class Translator:
    """Text in, text out, for one encoder-decoder and its tokenizer.

    Args:
        model: Seq2SeqLM.
        tokenizer: Tokenizer.
        jit_compile: bool. Compile the whole search with XLA.
    """

    def __init__(self, model, tokenizer, *, jit_compile=True):
        self.model = model
        self.tokenizer = tokenizer
        self.context_length = model.config.context_length
        self.stop_id = tokenizer.control_id(STOP)
        token_bytes = np.array(tokenizer.token_bytes)
        self._is_banned = token_bytes == 0
        self._is_banned[self.stop_id] = False
        self._search = tf.function(
            self._traced, jit_compile=jit_compile, reduce_retracing=False
        )

    def translate(self, texts, *, num_beams=4, length_penalty=1.0):
        """Returns the translation of each text.

        Args:
            texts: list of str.
            num_beams: int. 1 = greedy.
            length_penalty: float, see `beam_search`.

        Raises:
            InputError: if a text is longer than the context, or num_beams is
                less than 1.
        """
        if num_beams < 1:
            raise InputError(f"num_beams={num_beams}: must be at least 1.")
        rows = self.tokenizer.encode_batch(list(texts)) if texts else []
        for text, row in zip(texts, rows, strict=True):
            if len(row) > self.context_length:
                raise InputError(
                    f"{text[:40]!r}… has {len(row)} tokens; the model reads "
                    f"{self.context_length}."
                )
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        results = [""] * len(rows)
        for first in range(0, len(order), BATCH_ROWS):
            numbers = order[first : first + BATCH_ROWS]
            longest = max(1, *(len(rows[number]) for number in numbers))
            # Few shapes are ever compiled.
            length = min(-(-longest // 32) * 32, self.context_length)
            source = np.zeros((BATCH_ROWS, length), np.int32)
            is_source = np.zeros((BATCH_ROWS, length), np.int32)
            for index, number in enumerate(numbers):
                source[index, : len(rows[number])] = rows[number]
                is_source[index, : len(rows[number])] = 1
            token_ids = self._search(
                tf.constant(source),
                tf.constant(is_source),
                num_beams=num_beams,
                length_penalty=length_penalty,
            ).numpy()
            for row, number in zip(token_ids, numbers, strict=False):
                (ends,) = np.nonzero(row == self.stop_id)
                row = row[: ends[0]] if len(ends) else row
                results[number] = self.tokenizer.decode(row.tolist())
        return results

    def _traced(self, source_ids, is_source, *, num_beams, length_penalty):
        start = ops.full(
            (source_ids.shape[0], 1),
            self.tokenizer.control_id(START),
            "int32",
        )
        hidden_states, cache = self.model.backbone(
            {
                "token_ids": start,
                "source_ids": source_ids,
                "source_segment_ids": is_source,
            },
            return_cache=True,
        )
        room = self.context_length - 1
        token_ids, _ = beam_search(
            self.model,
            self.model.project(hidden_states)[:, 0],
            cache.resized(1 + room),
            ops.ones((source_ids.shape[0],), "int32"),
            num_beams=num_beams,
            max_new_tokens=room,
            stop_id=self.stop_id,
            is_banned=ops.convert_to_tensor(self._is_banned),
            length_penalty=length_penalty,
        )
        return token_ids
