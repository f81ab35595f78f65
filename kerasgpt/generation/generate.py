"""Owns the cached decode loop. Not: choosing the next token (samplers.py)."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from keras import ops

from kerasgpt.config import InputError
from kerasgpt.generation.samplers import (
    IMPOSSIBLE,
    SamplerSettings,
    TokenCounts,
    choose_next,
    likeliest,
    penalise,
)
from kerasgpt.generation.token_step import join_projections, token_reader
from kerasgpt.layers.cache import slot_writer
from kerasgpt.tokenizers.chat_template import ChatTemplate
from kerasgpt.tokenizers.tokenizer import CONTROL_TOKENS

# Those of our own tokenizers.
CONTROL_IDS = range(len(CONTROL_TOKENS))


class DecodeState(NamedTuple):
    """Where a batch stands between two tokens.

    Attributes:
        token_ids: int32 (batch, room). Generated so far, then 0.
        log_probabilities: float32 (batch, room). Of those, under the model:
            before penalties, temperature and filters; then 0.
        top: () or TopTokens.
        num_tokens: int32 (batch,). Generated so far, the stop id included.
        is_finished: bool (batch,).
        lengths: int32 (batch,). Tokens of each row before the first of these.
        logits: float32 (batch, vocabulary_size). Of the next token.
        counts: () or TokenCounts. Without them there are no penalties.
        step: int32 (). Tokens the longest row has generated.
        cache: KVCache.
    """

    token_ids: Any
    log_probabilities: Any
    top: Any
    num_tokens: Any
    is_finished: Any
    lengths: Any
    logits: Any
    counts: Any
    step: Any
    cache: Any

    @classmethod
    def start(cls, *, room, top_tokens=0, **values):
        """Returns a state in which nothing is generated yet.

        Args:
            room: int. Tokens a row may generate.
            top_tokens: int. As `TopTokens` holds for each; 0 = none.
            **values: lengths, logits, cache, perhaps counts and is_finished.
        """
        batch_size = ops.shape(values["logits"])[0]
        top = ()
        if top_tokens:
            shape = (batch_size, room, top_tokens)
            top = TopTokens(ops.zeros(shape, "int32"), ops.zeros(shape))
        fresh = {
            "token_ids": ops.zeros((batch_size, room), "int32"),
            "log_probabilities": ops.zeros((batch_size, room)),
            "top": top,
            "num_tokens": ops.zeros((batch_size,), "int32"),
            "is_finished": ops.zeros((batch_size,), "bool"),
            "counts": (),
            "step": ops.zeros((), "int32"),
        }
        return cls(**{**fresh, **values})


class TopTokens(NamedTuple):
    """The likeliest tokens where a token was generated, likeliest first.

    Attributes:
        token_ids: int32 (batch, room, count).
        log_probabilities: float32 (batch, room, count).
    """

    token_ids: Any
    log_probabilities: Any

    def filled(self, place, scores):
        """Returns them with those of `scores` (batch, vocabulary_size) where
        `place`, bool (batch, room), says so.
        """
        values, ids = ops.top_k(scores, self.token_ids.shape[2])
        place = place[:, :, None]
        return TopTokens(
            ops.where(place, ops.cast(ids, "int32")[:, None], self.token_ids),
            ops.where(place, values[:, None], self.log_probabilities),
        )


def count_prompt(token_ids, is_token, vocabulary_size):
    """Returns the TokenCounts of prompts (batch, length) and their mask."""
    shape = ops.shape(token_ids)
    rows = ops.arange(shape[0], dtype="int32")[:, None]
    # Padding counts as token 0, <|pad|>, which is never generated anyhow.
    seen = ops.where(is_token, token_ids, 0)
    empty = ops.zeros((shape[0], vocabulary_size), "int32")
    indices = ops.stack([ops.broadcast_to(rows, shape), seen], axis=-1)
    is_in_prompt = ops.scatter_update(
        ops.cast(empty, "bool"), indices, ops.ones_like(is_token)
    )
    return TokenCounts(is_in_prompt, empty)


def prefill(model, token_ids, lengths, *, max_new_tokens, with_counts=True):
    """Reads all prompts at once and returns the state before the first token.

    Args:
        model: GPTCausalLM.
        token_ids: int32 (batch, prompt_length), rows padded at the end.
        lengths: int32 (batch,). Tokens of each row, at least 1.
        max_new_tokens: int. Room to reserve for each row.
        with_counts: bool. Count tokens, so that penalties can be had.

    Returns:
        DecodeState.
    """
    shape = ops.shape(token_ids)
    positions = ops.broadcast_to(
        ops.arange(shape[1], dtype="int32")[None], shape
    )
    is_token = positions < lengths[:, None]
    hidden_states, cache = model.backbone(
        {
            "token_ids": token_ids,
            # Padding may lie beyond the context, where no position is.
            "positions": ops.where(is_token, positions, 0),
            "segment_ids": ops.cast(is_token, "int32"),
        },
        return_cache=True,
    )
    last = ops.take_along_axis(
        hidden_states, (lengths - 1)[:, None, None], axis=1
    )
    counts = ()
    if with_counts:
        counts = count_prompt(token_ids, is_token, model.config.vocabulary_size)
    return DecodeState.start(
        room=max_new_tokens,
        lengths=lengths,
        logits=model.project(last)[:, 0],
        counts=counts,
        cache=cache.resized(shape[1] + max_new_tokens),
    )


def decode(
    model,
    state,
    settings,
    *,
    max_new_tokens,
    stop_ids,
    num_steps,
    control_ids=CONTROL_IDS,
    slot_writer=slot_writer,
    wants_top=True,
    joined=None,
):
    """Generates up to `num_steps` more tokens a row.

    A row ends with its stop id, or when it has its `max_new_tokens`.

    Args:
        model: GPTCausalLM.
        state: DecodeState.
        settings: SamplerSettings. `None` = always the likeliest token, and no
            penalties.
        max_new_tokens: int32 (batch,). At most the room that was reserved.
        stop_ids: int32 (batch,). Ends a row; it is counted as generated. No
            other control id is ever generated.
        num_steps: int32 ().
        control_ids: ints. Those of the tokenizer.
        slot_writer: see `GPTBackbone`.
        wants_top: bool (). Whether to look for `state.top`, if it has room:
            that takes a fifth of a small model's time.
        joined: what `join_projections` returned for the model. `None` = join
            them before the loop.

    Returns:
        DecodeState.
    """
    read = token_reader(
        model,
        joined or join_projections(model),
        state.cache,
        slot_writer=slot_writer,
    )
    rows = ops.arange(ops.shape(state.lengths)[0], dtype="int32")
    last_step = state.step + num_steps
    token_range = ops.arange(model.config.vocabulary_size, dtype="int32")
    is_control = np.isin(
        np.arange(model.config.vocabulary_size), list(control_ids)
    )
    is_banned = ops.logical_and(
        is_control[None],
        ops.not_equal(token_range[None], stop_ids[:, None]),
    )
    banned = IMPOSSIBLE * ops.cast(is_banned, "float32")
    column = ops.arange(ops.shape(state.token_ids)[1], dtype="int32")[None]

    def is_running(state):
        return ops.logical_and(
            state.step < last_step,
            ops.logical_not(ops.all(state.is_finished)),
        )

    def advance(state):
        is_open = ops.logical_not(state.is_finished)
        one = ops.cast(is_open, "int32")
        positions = state.lengths + state.step
        logits, counts = state.logits, state.counts
        if counts and settings:
            logits = penalise(logits, settings, counts)
        logits = logits + banned
        chosen = likeliest(logits)
        if settings:
            chosen = choose_next(logits, settings, positions)
        chosen = chosen * one
        if counts:
            counts = counts.add(chosen, is_open)
        num_tokens = state.num_tokens + one
        is_finished = ops.logical_or(
            state.is_finished,
            ops.logical_or(
                ops.equal(chosen, stop_ids), num_tokens >= max_new_tokens
            ),
        )
        # Where this step's results are kept.
        place = ops.logical_and(ops.equal(column, state.step), is_open[:, None])
        scores = log_probabilities(state.logits)
        score = tf.gather_nd(scores, tf.stack([rows, chosen], axis=1))[:, None]
        top = state.top
        if top:
            top = tf.cond(
                wants_top,
                lambda: state.top.filled(place, scores),
                lambda: state.top,
            )
        # A finished row may stand beyond the context.
        positions = ops.minimum(positions, model.config.context_length - 1)
        logits, cache = read(chosen, positions, state.cache)
        return DecodeState(
            # Zero, where nothing was written yet.
            token_ids=state.token_ids
            + ops.cast(place, "int32") * chosen[:, None],
            log_probabilities=state.log_probabilities
            + ops.cast(place, "float32") * score,
            top=top,
            num_tokens=num_tokens,
            is_finished=is_finished,
            lengths=state.lengths,
            logits=logits,
            counts=counts,
            step=state.step + 1,
            cache=cache,
        )

    flat = tf.nest.flatten(state)
    flat = ops.while_loop(
        lambda *flat: is_running(tf.nest.pack_sequence_as(state, flat)),
        lambda *flat: tf.nest.flatten(
            advance(tf.nest.pack_sequence_as(state, flat))
        ),
        flat,
    )
    return tf.nest.pack_sequence_as(state, flat)


def log_probabilities(logits):
    """Returns natural logarithms of probabilities, float32, as `logits`."""
    return ops.log_softmax(ops.cast(logits, "float32"), axis=-1)


class Generator:
    """Text in, text out, for one model and its tokenizer.

    Prompt lengths, row counts and new tokens are rounded up to powers of two,
    so that few shapes are ever compiled.

    Args:
        model: GPTCausalLM.
        tokenizer: Tokenizer.
        jit_compile: bool. Compile the whole loop with XLA.
    """

    def __init__(self, model, tokenizer, *, jit_compile=True):
        self.model = model
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer)
        self.context_length = model.config.context_length
        self._prefill = tf.function(
            self._traced_prefill, jit_compile=jit_compile
        )
        self._decode = tf.function(self._traced_decode, jit_compile=jit_compile)
        # Once an answer, not once a call: a stream has a call for each token.
        self._join = tf.function(
            lambda num_rows: join_projections(self.model, num_rows=num_rows)
        )

    def _traced_prefill(self, token_ids, lengths, new_tokens):
        return prefill(
            self.model, token_ids, lengths, max_new_tokens=new_tokens.shape[0]
        )

    def _traced_decode(
        self, state, settings, limits, stop_ids, joined, num_steps
    ):
        return decode(
            self.model,
            state,
            settings,
            max_new_tokens=limits,
            stop_ids=stop_ids,
            num_steps=num_steps,
            control_ids=self.template.control_ids.values(),
            joined=joined,
        )

    def reply(self, conversations, *, max_new_tokens=128, **sampling):
        """Returns the assistant's next turn in each conversation.

        Args:
            conversations: list of lists of {"role", "content"} messages.
            max_new_tokens: int. At most so many, and no more than fit.
            **sampling: see `SamplerSettings.constant`; `num_sequences`, how
                many replies to each conversation.

        Returns:
            list of str, the replies to one conversation side by side.

        Raises:
            InputError: if a conversation fills the context.
        """
        prompts = [self.template.prompt(chat) for chat in conversations]
        rows = self.generate_ids(prompts, max_new_tokens, **sampling)
        return [self.tokenizer.decode(row) for row in rows]

    def complete(self, texts, *, max_new_tokens=128, **sampling):
        """Returns how the model continues each text, as `reply` does."""
        start = self.template.document_id
        prompts = [[start, *self.tokenizer.encode(text)] for text in texts]
        rows = self.generate_ids(
            prompts,
            max_new_tokens,
            stop_token=self.template.format.document_end,
            **sampling,
        )
        return [self.tokenizer.decode(row) for row in rows]

    def generate_ids(
        self,
        prompts,
        max_new_tokens,
        *,
        stop_token=None,
        num_sequences=1,
        batch_size=64,
        **sampling,
    ):
        """Returns generated ids, lists without the stop id.

        Args:
            prompts: list of lists of int.
            max_new_tokens: int.
            stop_token: str, the control token that ends a row. `None` = the
                one that ends an answer.
            num_sequences: int. Results for each prompt, one after the other.
            batch_size: int, rows decoded together.
            **sampling: see `SamplerSettings.constant`; the seed counts up from
                result to result.
        """
        prompts = [prompt for prompt in prompts for _ in range(num_sequences)]
        # Equal lengths together: a batch is as long as its longest prompt.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        results = [None] * len(prompts)
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            state, *settled = self._start(
                [prompts[row] for row in rows],
                rows,
                max_new_tokens,
                stop_token,
                sampling,
            )
            state = self._decode(state, *settled, tf.constant(1 << 30))
            token_ids = state.token_ids.numpy()
            counts = state.num_tokens.numpy()
            for index, row in enumerate(rows):
                ids = token_ids[index, : counts[index]].tolist()
                if ids and ids[-1] == self._stop_id(stop_token):
                    ids.pop()
                results[row] = ids
        return results

    def stream(self, conversation, *, max_new_tokens=128, **sampling):
        """Yields the assistant's next turn piece by piece, as it is written.

        A piece ends at a whole character, so joined pieces equal `reply`.

        Args:
            conversation: list of {"role", "content"} messages.
            max_new_tokens, **sampling: see `reply`.

        Yields:
            str.
        """
        state, *settled = self._start(
            [self.template.prompt(conversation)],
            [0],
            max_new_tokens,
            None,
            sampling,
        )
        told = ""
        while True:
            state = self._decode(state, *settled, tf.constant(1))
            is_finished = bool(state.is_finished[0])
            ids = state.token_ids[0, : int(state.num_tokens[0])].numpy()
            text = self.tokenizer.decode(ids.tolist())
            # A last U+FFFD may be half a character that is still to come, a
            # last U+10FFFF the escape of SentencePieceTokenizer.
            whole = text if is_finished else text.rstrip("\ufffd\U0010ffff")
            if whole.startswith(told) and len(whole) > len(told):
                yield whole[len(told) :]
                told = whole
            if is_finished:
                return

    def _start(self, prompts, numbers, max_new_tokens, stop_token, sampling):
        """Returns the state before the first token, and what decode takes.

        `numbers` are added to the seed, so that a result does not depend on
        the batch it was decoded in.
        """
        longest = max(map(len, prompts))
        room = self.context_length - longest
        if room < 1:
            raise InputError(
                f"a prompt of {longest} tokens fills the context of "
                f"{self.context_length}; shorten it."
            )
        if max_new_tokens < 1:
            raise InputError(
                f"max_new_tokens={max_new_tokens}: must be at least 1."
            )
        rows = _power_of_two(len(prompts))
        columns = _power_of_two(longest, smallest=16)
        new_tokens = _power_of_two(
            min(max_new_tokens, self.context_length), smallest=16
        )
        token_ids = np.zeros((rows, columns), np.int32)
        lengths = np.ones(rows, np.int32)
        limits = np.ones(rows, np.int32)
        for index, prompt in enumerate(prompts):
            token_ids[index, : len(prompt)] = prompt
            lengths[index] = len(prompt)
            limits[index] = min(
                max_new_tokens, self.context_length - len(prompt)
            )
        try:
            settings = SamplerSettings.constant(rows, **sampling)
        except ValueError as error:
            raise InputError(str(error)) from error
        offsets = np.zeros(rows, np.int32)
        offsets[: len(numbers)] = numbers
        settings = settings._replace(seed=settings.seed + offsets)
        state = self._prefill(
            tf.constant(token_ids),
            tf.constant(lengths),
            tf.zeros((new_tokens,)),
        )
        stop_ids = tf.fill((rows,), self._stop_id(stop_token))
        return state, settings, tf.constant(limits), stop_ids, self._join(rows)

    def _stop_id(self, stop_token):
        return self.template.control_ids[stop_token or self.template.format.end]


def _power_of_two(count, *, smallest=1):
    return max(smallest, 1 << (count - 1).bit_length())
