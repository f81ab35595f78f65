"""Owns the string-in, string-out SavedModel. Not: HTTP."""

import functools
import pathlib

import tensorflow as tf

from kerasgpt.config import InputError
from kerasgpt.files import atomic_folder, write_manifest
from kerasgpt.generation.generate import decode, prefill
from kerasgpt.generation.samplers import SamplerSettings
from kerasgpt.tokenizers.chat_template import ChatTemplate

SIGNATURES = ("serving_default", "chat", "generate", "score")


def _vector(name, dtype):
    return tf.TensorSpec([None], dtype, name=name)


def _matrix(name, dtype):
    return tf.TensorSpec([None, None], dtype, name=name)


def _graph(*signature):
    return tf.function(input_signature=signature, autograph=False)


# One value a row, so that a server may join requests into one batch.
_SAMPLING = (
    _vector("max_new_tokens", tf.int32),
    _vector("temperature", tf.float32),
    _vector("top_k", tf.int32),
    _vector("top_p", tf.float32),
    _vector("seed", tf.int32),
)


class ServingModule(tf.Module):
    """Text in, text out: model, tokenizer and decode loop in one graph.

    The graph holds core and TF Text ops only, and none that needs XLA, so that
    a stock TF Serving runs it. All inputs and outputs have one row a request;
    a row's result does not depend on its neighbours. A bad value fails the
    whole call with `InvalidArgumentError`; nothing is cut or replaced.

    Signatures, each a vector a name except `roles` and `contents`:
        serving_default: prompt -> text. The greedy reply to one user message.
        chat: roles, contents (batch, turns), "" after the last turn of a row,
            and the sampling inputs -> reply.
        generate: prompt and the sampling inputs -> reply, which continues the
            prompt as a document.
        score: text -> log_likelihood, float32, the sum of the natural
            logarithms of the probabilities of the text's tokens, the first
            given <|document|>; num_tokens, int32, how many.

    Sampling inputs: max_new_tokens, top_k, seed (int32), temperature, top_p
    (float32); see `SamplerSettings`. A row ends with its stop token, after its
    max_new_tokens, or when the context is full.

    A reply: text, valid UTF-8; text_bytes, the same bytes under a name that
    TF Serving writes as base64; num_tokens, int32, without the stop token;
    finish_reason, "stop" or "length".

    Args:
        model: GPTCausalLM.
        tokenizer: Tokenizer.
        max_new_tokens: int. The most a request may ask for, and what
            `serving_default` asks for.

    Raises:
        InputError: if `max_new_tokens` is less than 1, or the model has
            other ids than the tokenizer.

    Example:
        >>> from kerasgpt.models.gpt import GPTCausalLM, GPTConfig
        >>> from kerasgpt.tokenizers.byte import ByteTokenizer
        >>> model = GPTCausalLM(GPTConfig.from_depth(1, vocabulary_size=265))
        >>> module = ServingModule(model, ByteTokenizer())
        >>> module.score(tf.constant(["hi", "good"]))["num_tokens"].numpy()
        array([2, 4], dtype=int32)
    """

    def __init__(self, model, tokenizer, *, max_new_tokens=128):
        super().__init__(name="serving")
        if max_new_tokens < 1:
            raise InputError(
                f"max_new_tokens={max_new_tokens}: must be at least 1."
            )
        if model.config.vocabulary_size != tokenizer.vocabulary_size:
            raise InputError(
                f"the model has {model.config.vocabulary_size} ids and the "
                f"tokenizer {tokenizer.vocabulary_size}; give the tokenizer "
                f"that the model was trained with."
            )
        if not model.built:
            model.build()
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer)
        self.max_new_tokens = max_new_tokens
        self.context_length = model.config.context_length
        # The variables are tracked, the model is not: as an attribute it
        # would be saved as Keras objects, which no server can read.
        self.model_variables = [v.value for v in model.variables]
        self._prefill = functools.partial(prefill, model)
        self._decode = functools.partial(decode, model)
        self._logits = functools.partial(model.__call__, training=False)

    @_graph(_vector("prompt", tf.string))
    def serving_default(self, prompt):
        prompt = _require_text(prompt, "prompt")
        rows = tf.shape(prompt)
        prompts = self.template.prompt_strings(
            tf.fill([rows[0], 1], "user"), prompt[:, None]
        )
        zeros = tf.zeros(rows, tf.int32)
        greedy = (tf.zeros(rows), zeros, tf.ones(rows), zeros)
        reply = self._reply(
            prompts,
            "<|end_of_turn|>",
            tf.fill(rows, self.max_new_tokens),
            *greedy,
        )
        return {"text": reply["text"]}

    @_graph(
        _matrix("roles", tf.string), _matrix("contents", tf.string), *_SAMPLING
    )
    def chat(
        self, roles, contents, max_new_tokens, temperature, top_k, top_p, seed
    ):
        is_equal = tf.equal(tf.shape(roles), tf.shape(contents))
        roles, contents = _require(
            (roles, contents),
            {"roles and contents must be equal in shape": is_equal},
        )
        is_turn = tf.not_equal(roles, "")
        roles, contents = _require(
            (roles, contents),
            {
                "every conversation must have a turn": tf.reduce_any(
                    is_turn, axis=1
                ),
                "a turn with content must have a role": (
                    is_turn | tf.equal(contents, "")
                ),
                'turns must stand before the "" that fill up a row': (
                    is_turn[:, :-1] | ~is_turn[:, 1:]
                ),
                "contents must be valid UTF-8": _is_valid(contents),
            },
        )
        return self._reply(
            self.template.prompt_strings(roles, contents),
            "<|end_of_turn|>",
            *(max_new_tokens, temperature, top_k, top_p, seed),
        )

    @_graph(_vector("prompt", tf.string), *_SAMPLING)
    def generate(self, prompt, max_new_tokens, temperature, top_k, top_p, seed):
        prompt = _require_text(prompt, "prompt")
        return self._reply(
            self._with_start(self.tokenizer.encode_strings(prompt)),
            "<|end_of_document|>",
            *(max_new_tokens, temperature, top_k, top_p, seed),
        )

    @_graph(_vector("text", tf.string))
    def score(self, text):
        text = _require_text(text, "text")
        rows = self.tokenizer.encode_strings(text)
        context = self.context_length
        rows = _require(
            rows,
            {
                f"text must not have more tokens than the context of "
                f"{context}": rows.row_lengths() <= context
            },
        )
        targets = rows.to_tensor()
        num_tokens = tf.cast(rows.row_lengths(), tf.int32)
        is_token = tf.sequence_mask(num_tokens)
        logits = self._logits(
            {
                "token_ids": self._with_start(targets[:, :-1]),
                "segment_ids": tf.cast(is_token, tf.int32),
            }
        )
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
        return {
            "log_likelihood": -tf.reduce_sum(
                tf.where(is_token, losses, 0.0), axis=1
            ),
            "num_tokens": num_tokens,
        }

    def _with_start(self, rows):
        batch_size = tf.shape(rows, tf.int32)[0]
        start = tf.fill([batch_size, 1], self.template.document_id)
        return tf.concat([start, rows], axis=1)

    def _reply(self, prompts, stop_token, *sampling):
        """Returns the outputs of `chat` and `generate`.

        Args:
            prompts: int32 RaggedTensor (batch, None).
            stop_token: str, the control token that ends a row.
            *sampling: the sampling inputs, unchecked.
        """
        limits, *sampling = self._require_sampling(prompts, sampling)
        context = self.context_length
        prompts = _require(
            prompts,
            {
                f"the prompt must leave room for a token in the context of "
                f"{context} tokens": prompts.row_lengths() < context
            },
        )
        lengths = tf.cast(prompts.row_lengths(), tf.int32)
        stop_id = self.tokenizer.control_id(stop_token)
        token_ids, num_tokens = self._continue(
            prompts.to_tensor(),
            lengths,
            tf.minimum(limits, context - lengths),
            tf.constant(stop_id),
            *sampling,
        )
        last = tf.gather(token_ids, num_tokens - 1, batch_dims=1)
        is_stopped = tf.equal(last, stop_id)
        num_tokens -= tf.cast(is_stopped, tf.int32)
        rows = tf.RaggedTensor.from_tensor(
            token_ids, lengths=tf.cast(num_tokens, tf.int64)
        )
        text = self.tokenizer.decode_ids(rows)
        return {
            "text": text,
            "text_bytes": text,
            "num_tokens": num_tokens,
            "finish_reason": tf.where(is_stopped, "stop", "length"),
        }

    def _require_sampling(self, prompts, sampling):
        batch_size = prompts.nrows(tf.int32)
        limits, temperature, top_k, top_p, _ = sampling
        rules = {
            f"{spec.name} must have a value for each row": tf.equal(
                tf.size(value), batch_size
            )
            for spec, value in zip(_SAMPLING, sampling, strict=True)
        }
        rules |= {
            "the batch must have a row": batch_size > 0,
            f"max_new_tokens must be from 1 to {self.max_new_tokens}": (
                (limits >= 1) & (limits <= self.max_new_tokens)
            ),
            "temperature must be a finite number of at least 0": (
                tf.math.is_finite(temperature) & (temperature >= 0)
            ),
            "top_k must be at least 0": top_k >= 0,
            "top_p must be above 0 and at most 1": (top_p > 0) & (top_p <= 1),
        }
        return _require(sampling, rules)

    # A function of its own, so that all signatures share one loop.
    @_graph(
        _matrix("token_ids", tf.int32),
        _vector("lengths", tf.int32),
        _vector("limits", tf.int32),
        tf.TensorSpec([], tf.int32, name="stop_id"),
        *_SAMPLING[1:],
    )
    def _continue(self, token_ids, lengths, limits, stop_id, *rest):
        """Returns generated ids, padded, and how many each row has."""
        temperature, top_k, top_p, seed = rest
        num_slots = tf.reduce_max(limits)
        settings = SamplerSettings(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=tf.zeros_like(temperature),
            repetition_penalty=tf.ones_like(temperature),
            seed=seed,
        )
        state = self._decode(
            self._prefill(token_ids, lengths, max_new_tokens=num_slots),
            settings,
            max_new_tokens=limits,
            stop_id=stop_id,
            num_steps=num_slots,
        )
        return state.token_ids, state.num_tokens


def _require(value, rules):
    """Returns `value`, which is not to be had unless every rule is kept.

    Args:
        value: tensor or nest of tensors.
        rules: dict from message to bool tensor, true = kept.
    """
    checks = [
        tf.debugging.Assert(tf.reduce_all(is_kept), [message])
        for message, is_kept in rules.items()
    ]
    with tf.control_dependencies(checks):
        return tf.nest.map_structure(tf.identity, value)


def _require_text(text, name):
    return _require(
        text,
        {
            "the batch must have a row": tf.size(text) > 0,
            f"{name} must not be empty": tf.not_equal(text, ""),
            f"{name} must be valid UTF-8": _is_valid(text),
        },
    )


def _is_valid(text):
    # Transcoding replaces bytes that are not UTF-8.
    return tf.equal(text, tf.strings.unicode_transcode(text, "UTF-8", "UTF-8"))


def export_saved_model(
    model, tokenizer, export_dir, *, max_new_tokens=128, version=None
):
    """Writes a version that TF Serving can load, whole or not at all.

    Args:
        model: GPTCausalLM.
        tokenizer: Tokenizer.
        export_dir: str or Path. Holds a folder for each version.
        max_new_tokens: int. See `ServingModule`.
        version: int. `None` = one more than the highest that exists.

    Returns:
        pathlib.Path of the version's folder.

    Raises:
        InputError: if the version exists, or the place cannot be written.
    """
    export_dir = pathlib.Path(export_dir)
    if version is None:
        version = 1 + max(_versions(export_dir), default=0)
    if version < 1:
        raise InputError(f"version={version}: must be at least 1.")
    module = ServingModule(model, tokenizer, max_new_tokens=max_new_tokens)
    with atomic_folder(export_dir / str(version)) as folder:
        signatures = {name: getattr(module, name) for name in SIGNATURES}
        tf.saved_model.save(module, str(folder), signatures=signatures)
        write_manifest(
            folder,
            model_config=model.config.to_dict(),
            tokenizer_fingerprint=tokenizer.fingerprint(),
            max_new_tokens=max_new_tokens,
        )
    return export_dir / str(version)


def _versions(export_dir):
    try:
        names = [entry.name for entry in export_dir.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(
            f"{export_dir}: cannot be read: {error.strerror}."
        ) from error
    return [int(name) for name in names if name.isascii() and name.isdigit()]
