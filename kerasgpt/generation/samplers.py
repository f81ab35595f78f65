"""Owns the choice of the next token. Not: the loop that asks for it."""

from typing import Any, NamedTuple

import tensorflow as tf
from keras import ops

# Small enough to never be drawn, finite so that arithmetic stays so.
IMPOSSIBLE = -1e30


class SamplerSettings(NamedTuple):
    """How each row of a batch chooses, as tensors: no value is compiled in.

    Attributes:
        temperature: float32 (batch,). 0 = always the likeliest token.
        top_k: int32 (batch,). Only the k likeliest; 0 = all.
        top_p: float32 (batch,). Only the smallest set of likeliest tokens
            whose probabilities reach p; 1 = all.
        min_p: float32 (batch,). Only tokens at least this times as likely as
            the likeliest; 0 = all.
        repetition_penalty: float32 (batch,). Divides positive and multiplies
            negative logits of tokens that stand in the text; 1 = none.
        frequency_penalty: float32 (batch,). Taken from a token's logit for
            each time it was generated; 0 = none.
        presence_penalty: float32 (batch,). Taken once from the logits of
            tokens that were generated; 0 = none.
        seed: int32 (batch,). Equal seeds draw equal numbers.
    """

    temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any
    repetition_penalty: Any
    frequency_penalty: Any
    presence_penalty: Any
    seed: Any

    @classmethod
    def constant(
        cls,
        batch_size,
        *,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        frequency_penalty=0.0,
        presence_penalty=0.0,
        seed=0,
    ):
        """Returns equal settings for all rows.

        Raises:
            ValueError: for a value outside its range.
        """
        ranges = {
            "temperature": (temperature, 0.0, float("inf")),
            "top_k": (top_k, 0, float("inf")),
            "top_p": (top_p, 0.0, 1.0),
            "min_p": (min_p, 0.0, 1.0),
            "repetition_penalty": (repetition_penalty, 1e-3, float("inf")),
            "frequency_penalty": (frequency_penalty, -2.0, 2.0),
            "presence_penalty": (presence_penalty, -2.0, 2.0),
        }
        for name, (value, low, high) in ranges.items():
            if not low <= value <= high or value == float("inf"):
                raise ValueError(
                    f"{name} must be from {low} to {high}; received {value}."
                )

        def fill(value, dtype):
            return ops.full((batch_size,), value, dtype)

        return cls(
            temperature=fill(temperature, "float32"),
            top_k=fill(top_k, "int32"),
            top_p=fill(top_p, "float32"),
            min_p=fill(min_p, "float32"),
            repetition_penalty=fill(repetition_penalty, "float32"),
            frequency_penalty=fill(frequency_penalty, "float32"),
            presence_penalty=fill(presence_penalty, "float32"),
            seed=fill(seed, "int32"),
        )


class TokenCounts(NamedTuple):
    """Which tokens a row's text holds, for penalties.

    Attributes:
        is_in_prompt: bool (batch, vocabulary_size).
        generated: int32 (batch, vocabulary_size). How often, since.
    """

    is_in_prompt: Any
    generated: Any

    def add(self, token_ids, is_added):
        """Returns counts with a generated token more in some rows.

        Args:
            token_ids: int32 (batch,).
            is_added: bool (batch,).
        """
        ones = (
            ops.one_hot(token_ids, self.generated.shape[1], dtype="int32")
            * ops.cast(is_added, "int32")[:, None]
        )
        return self._replace(generated=self.generated + ones)


def penalise(logits, settings, counts):
    """Returns logits (batch, vocabulary_size) after all penalties.

    Args:
        logits: float32 (batch, vocabulary_size).
        settings: SamplerSettings.
        counts: TokenCounts.

    Reference: Keskar et al. 2019 (arXiv 1909.05858), section 4.1, for the
    repetition penalty; OpenAI's API reference for the other two.
    """
    # Four passes over the vocabulary, and most requests ask for none.
    is_wanted = ops.any(
        ops.stack(
            [
                ops.not_equal(settings.repetition_penalty, 1.0),
                ops.not_equal(settings.frequency_penalty, 0.0),
                ops.not_equal(settings.presence_penalty, 0.0),
            ]
        )
    )
    return ops.cond(
        is_wanted, lambda: _penalised(logits, settings, counts), lambda: logits
    )


def _penalised(logits, settings, counts):
    penalty = settings.repetition_penalty[:, None]
    penalised = ops.where(logits > 0, logits / penalty, logits * penalty)
    is_generated = counts.generated > 0
    is_seen = ops.logical_or(counts.is_in_prompt, is_generated)
    logits = ops.where(is_seen, penalised, logits)
    times = ops.cast(counts.generated, "float32")
    logits -= settings.frequency_penalty[:, None] * times
    once = ops.cast(is_generated, "float32")
    return logits - settings.presence_penalty[:, None] * once


def choose_next(logits, settings, position):
    """Returns one token id a row.

    Penalties come before (`penalise`); here temperature, then top-k, top-p
    and min-p, each judging the distribution that temperature left. A row's
    choice depends on its own logits, settings and position alone: not on the
    batch, nor on how many calls the text was made in.

    Args:
        logits: float32 (batch, vocabulary_size).
        settings: SamplerSettings.
        position: int32 (batch,). Of the chosen token in its row.

    Returns:
        int32 (batch,).

    Reference: Fan et al. 2018 (top-k, arXiv 1805.04833); Holtzman et al. 2020
    (top-p, arXiv 1904.09751); Nguyen et al. 2024 (min-p, arXiv 2407.01082).
    """
    first = likeliest(logits)
    # Sorting the vocabulary costs more than a small model's step.
    return ops.cond(
        ops.any(settings.temperature > 0),
        lambda: ops.where(
            settings.temperature > 0,
            _draw(logits, settings, position),
            first,
        ),
        lambda: first,
    )


def likeliest(logits):
    """Returns the int32 (batch,) ids of the highest logits."""
    # `ops.argmax` first tells -0 from 0, in six passes over the vocabulary.
    return tf.argmax(logits, axis=-1, output_type=tf.int32)


def _draw(logits, settings, position):
    temperature = ops.maximum(settings.temperature, 1e-6)[:, None]
    # Sorted, a draw needs one uniform number a row instead of one a token.
    scores, token_ids = ops.top_k(logits / temperature, logits.shape[-1])
    probabilities = ops.softmax(scores, axis=-1)
    ranks = ops.arange(logits.shape[-1], dtype="int32")[None]
    top_k = settings.top_k[:, None]
    before = ops.cumsum(probabilities, axis=-1) - probabilities
    is_kept = ops.logical_or(top_k <= 0, ranks < top_k)
    is_kept = ops.logical_and(is_kept, before < settings.top_p[:, None])
    floor = settings.min_p[:, None] * probabilities[:, :1]
    is_kept = ops.logical_and(is_kept, probabilities >= floor)
    is_kept = ops.logical_or(is_kept, ranks == 0)
    probabilities = ops.where(is_kept, probabilities, 0.0)
    cumulative = ops.cumsum(probabilities, axis=-1)
    uniform = uniform_numbers(settings.seed, position)[:, None]
    below = cumulative <= uniform * cumulative[:, -1:]
    last = ops.sum(ops.cast(is_kept, "int32"), axis=-1) - 1
    rank = ops.minimum(ops.sum(ops.cast(below, "int32"), axis=-1), last)
    return ops.cast(
        ops.take_along_axis(token_ids, rank[:, None], axis=1)[:, 0], "int32"
    )


def uniform_numbers(seed, counter):
    """Returns a number in [0, 1) for each pair of seed and counter.

    Written by hand because `tf.random.stateless_uniform` and
    `keras.random.uniform` take one seed for a whole tensor, and a row's draw
    may not depend on the rows beside it.

    Args:
        seed, counter: int32 (batch,).

    Returns:
        float32 (batch,), the same on every backend.

    Reference: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2,
    3, section 4.3 (Threefry-2x32, 20 rounds).
    """
    seed, counter = ops.cast(seed, "uint32"), ops.cast(counter, "uint32")
    zeros = ops.zeros_like(seed)
    bits, _ = threefry(seed, zeros, counter, zeros)
    # 24 bits are what a float32 holds without rounding up to 1.
    bits = ops.right_shift(bits, ops.cast(8, "uint32"))
    return ops.cast(bits, "float32") * (1.0 / (1 << 24))


def threefry(key_0, key_1, counter_0, counter_1):
    """Returns two uint32 words of Threefry-2x32-20, key and counter uint32."""
    keys = (key_0, key_1, key_0 ^ key_1 ^ ops.cast(0x1BD11BDA, "uint32"))
    rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
    first, second = counter_0 + keys[0], counter_1 + keys[1]
    for group in range(5):
        for rotation in rotations[group % 2]:
            first = first + second
            left = ops.left_shift(second, ops.cast(rotation, "uint32"))
            right = ops.right_shift(second, ops.cast(32 - rotation, "uint32"))
            second = (left | right) ^ first
        first = first + keys[(group + 1) % 3]
        second = second + keys[(group + 2) % 3] + ops.cast(group + 1, "uint32")
    return first, second
