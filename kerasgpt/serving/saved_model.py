"""Owns the string-in, string-out SavedModel. Not: HTTP."""

import functools
import pathlib

import tensorflow as tf

from kerasgpt.checkpoints.model_folder import CONFIG_FILE, save_tokenizer
from kerasgpt.config import InputError
from kerasgpt.files import atomic_folder, write_json, write_manifest
from kerasgpt.generation.generate import decode, log_probabilities, prefill
from kerasgpt.generation.samplers import SamplerSettings
from kerasgpt.layers.cache import slot_writer
from kerasgpt.serving.backend import MAX_TOP_TOKENS
from kerasgpt.serving.scan import check_ops
from kerasgpt.serving.warmup import warmup_examples, write_warmup
from kerasgpt.tokenizers.chat_template import ChatTemplate

# Inside a version: what its graph was made from, but for the weights.
MODEL_ASSETS = "assets.extra/model"
SIGNATURES = (
    "serving_default",
    "chat",
    "generate",
    "generate_ids",
    "score",
    "score_ids",
    "tokenize",
    "tokenize_chat",
    "detokenize",
    "describe",
)


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
_IDS = (_matrix("token_ids", tf.int32), _vector("length", tf.int32))
_TURNS = (_matrix("roles", tf.string), _matrix("contents", tf.string))


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
            given the token that begins a document, <|document|> in our own
            chat template; num_tokens, int32, how many.
        generate_ids: token_ids (batch, length) and length, int32, and the
            sampling inputs -> token_ids (batch, new), length, their
            log_probabilities (batch, new), float32, finish_reason; of a row
            that stopped, the stop id's probability is the last. A row that
            holds <|assistant|> ends with <|end_of_turn|>, another one with
            <|end_of_document|>, or with what stands for these in the chat
            template: see `ChatTemplate.stop_ids`.
        score_ids: token_ids, length -> log_probabilities (batch, length),
            float32, of each token given those before it, 0 for the first;
            is_greedy (batch, length), bool, whether it was the likeliest;
            top_token_ids and top_log_probabilities (batch, length, 5), the
            likeliest tokens of each place.
        tokenize: text -> token_ids (batch, length), length; no control ids.
        tokenize_chat: roles, contents -> token_ids (batch, length), length,
            up to where the assistant speaks.
        detokenize: token_ids, length -> text, text_bytes.
        describe: key -> value, int32. Keys are context_length,
            max_new_tokens, vocabulary_size, and the text of a control token,
            whose id is told; document_id, document_end_id, end_id and
            chat_id, as `ChatTemplate` has them, -1 = none.

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
        self._prefill = functools.partial(prefill, model, with_counts=False)
        self._decode = functools.partial(
            decode,
            model,
            control_ids=tuple(self.template.control_ids.values()),
            slot_writer=functools.partial(slot_writer, scatter=_write_in_place),
        )
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
            prompts, tf.fill(rows, self.max_new_tokens), *greedy
        )
        return {"text": reply["text"]}

    @_graph(*_TURNS, *_SAMPLING)
    def chat(self, roles, contents, *sampling):
        roles, contents = _require_turns(roles, contents)
        prompts = self.template.prompt_strings(roles, contents)
        return self._reply(prompts, *sampling)

    @_graph(_vector("prompt", tf.string), *_SAMPLING)
    def generate(self, prompt, *sampling):
        prompt = _require_text(prompt, "prompt")
        prompts = self._with_start(self.tokenizer.encode_strings(prompt))
        return self._reply(prompts, *sampling)

    @_graph(*_IDS, *_SAMPLING)
    def generate_ids(self, token_ids, length, *sampling):
        prompts = self._require_ids(token_ids, length)
        rows, scores, is_stopped = self._continue_rows(prompts, *sampling)
        return {
            "token_ids": rows.to_tensor(),
            "length": tf.cast(rows.row_lengths(), tf.int32),
            "log_probabilities": scores.to_tensor(),
            "finish_reason": _finish_reason(is_stopped),
        }

    @_graph(_vector("text", tf.string))
    def score(self, text):
        text = _require_text(text, "text")
        rows = self._with_start(self.tokenizer.encode_strings(text))
        # The first token begins a document: it is given and not scored.
        rows = self._require_context(rows, "text", self.context_length + 1)
        scores = self._token_scores(rows)["log_probabilities"]
        return {
            "log_likelihood": tf.reduce_sum(scores, axis=1),
            "num_tokens": tf.cast(rows.row_lengths(), tf.int32) - 1,
        }

    @_graph(*_IDS)
    def score_ids(self, token_ids, length):
        rows = self._require_ids(token_ids, length)
        rows = self._require_context(rows, "token_ids", self.context_length)
        return self._token_scores(rows)

    @_graph(_vector("text", tf.string))
    def tokenize(self, text):
        text = _require_text(text, "text")
        return _padded(self.tokenizer.encode_strings(text))

    @_graph(*_TURNS)
    def tokenize_chat(self, roles, contents):
        roles, contents = _require_turns(roles, contents)
        return _padded(self.template.prompt_strings(roles, contents))

    @_graph(*_IDS)
    def detokenize(self, token_ids, length):
        text = self.tokenizer.decode_ids(self._require_ids(token_ids, length))
        return {"text": text, "text_bytes": text}

    @_graph(_vector("key", tf.string))
    def describe(self, key):
        facts = {
            "context_length": self.context_length,
            "max_new_tokens": self.max_new_tokens,
            "vocabulary_size": self.tokenizer.vocabulary_size,
            **self.template.landmarks,
            **self.template.control_ids,
        }
        is_key = tf.equal(key[:, None], tf.constant([*facts]))
        is_key = _require(
            is_key,
            {
                "the batch must have a row": tf.size(key) > 0,
                f"key must be one of {', '.join(facts)}": tf.reduce_any(
                    is_key, axis=1
                ),
            },
        )
        values = tf.constant([*facts.values()], tf.int32)
        return {"value": tf.reduce_sum(tf.where(is_key, values, 0), axis=1)}

    def _with_start(self, rows):
        batch_size = tf.shape(rows, tf.int32)[0]
        start = tf.fill([batch_size, 1], self.template.document_id)
        return tf.concat([start, rows], axis=1)

    def _require_ids(self, token_ids, length):
        """Returns the int32 RaggedTensor of padded rows."""
        batch_size, width = tf.unstack(tf.shape(token_ids))
        token_ids, length = _require(
            (token_ids, length),
            {
                "the batch must have a row": batch_size > 0,
                "length must have a value for each row": tf.equal(
                    tf.size(length), batch_size
                ),
            },
        )
        is_token = tf.sequence_mask(length, width)
        is_id = (token_ids >= 0) & (token_ids < self.tokenizer.vocabulary_size)
        token_ids, length = _require(
            (token_ids, length),
            {
                "length must be from 1 to the width of token_ids": (
                    (length >= 1) & (length <= width)
                ),
                f"token_ids must be from 0 to "
                f"{self.tokenizer.vocabulary_size - 1}": is_id | ~is_token,
            },
        )
        return tf.RaggedTensor.from_tensor(
            token_ids, lengths=tf.cast(length, tf.int64)
        )

    def _require_context(self, rows, name, most):
        context = self.context_length
        rule = f"{name} must not have more tokens than the context of {context}"
        return _require(rows, {rule: rows.row_lengths() <= most})

    def _token_scores(self, rows):
        """Returns the outputs of `score_ids`.

        Args:
            rows: int32 RaggedTensor (batch, None). A last token beyond the
                context is scored, not read.
        """
        token_ids = rows.to_tensor()
        read = token_ids[:, : self.context_length]
        is_token = tf.sequence_mask(rows.row_lengths())
        logits = self._logits(
            {
                "token_ids": read,
                "segment_ids": tf.cast(
                    is_token[:, : self.context_length], tf.int32
                ),
            }
        )
        scores = log_probabilities(logits)[:, : tf.shape(token_ids)[1] - 1]
        targets = token_ids[:, 1:]
        is_target = is_token[:, 1:]
        own = tf.gather(scores, targets, axis=2, batch_dims=2)
        top_scores, top_ids = tf.math.top_k(scores, MAX_TOP_TOKENS)
        is_greedy = tf.equal(targets, top_ids[:, :, 0]) & is_target
        # Nothing stands before the first token.
        first = [[0, 0], [1, 0]]
        return {
            "log_probabilities": tf.pad(tf.where(is_target, own, 0.0), first),
            "is_greedy": tf.pad(is_greedy, first),
            "top_token_ids": tf.pad(top_ids, [*first, [0, 0]]),
            "top_log_probabilities": tf.pad(top_scores, [*first, [0, 0]]),
        }

    def _reply(self, prompts, *sampling):
        """Returns the outputs of `chat` and `generate`."""
        rows, _, is_stopped = self._continue_rows(prompts, *sampling)
        text = self.tokenizer.decode_ids(rows)
        return {
            "text": text,
            "text_bytes": text,
            "num_tokens": tf.cast(rows.row_lengths(), tf.int32),
            "finish_reason": _finish_reason(is_stopped),
        }

    def _continue_rows(self, prompts, *sampling):
        """Returns what is generated after each prompt, without stop ids.

        Args:
            prompts: int32 RaggedTensor (batch, None).
            *sampling: the sampling inputs, unchecked.

        Returns:
            RaggedTensors (batch, None) of int32 ids and of float32
            log-probabilities, the stop id's included; bool (batch,), whether
            one came.
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
        stop_ids = self.template.stop_ids(prompts)
        token_ids, scores, num_tokens = self._continue(
            prompts.to_tensor(),
            lengths,
            tf.minimum(limits, context - lengths),
            stop_ids,
            *sampling,
        )
        last = tf.gather(token_ids, num_tokens - 1, batch_dims=1)
        is_stopped = tf.equal(last, stop_ids)
        counts = tf.cast(num_tokens, tf.int64) - tf.cast(is_stopped, tf.int64)
        rows = tf.RaggedTensor.from_tensor(token_ids, lengths=counts)
        scores = tf.RaggedTensor.from_tensor(
            scores, lengths=tf.cast(num_tokens, tf.int64)
        )
        return rows, scores, is_stopped

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
        *_IDS,
        _vector("limits", tf.int32),
        _vector("stop_ids", tf.int32),
        *_SAMPLING[1:],
    )
    def _continue(self, token_ids, lengths, limits, stop_ids, *sampling):
        """Returns generated ids, their scores, and how many each row has."""
        room = tf.reduce_max(limits)
        neutral = SamplerSettings.constant(tf.shape(lengths)[0])
        names = [spec.name for spec in _SAMPLING[1:]]
        settings = neutral._replace(**dict(zip(names, sampling, strict=True)))
        start = self._prefill(token_ids, lengths, max_new_tokens=room)

        def run(settings):
            state = self._decode(
                start,
                settings,
                max_new_tokens=limits,
                stop_ids=stop_ids,
                num_steps=room,
            )
            return state.token_ids, state.log_probabilities, state.num_tokens

        # Two loops, one of which runs: outside XLA an operation that is left
        # out costs a token nearly as much as one that is not.
        return tf.cond(
            tf.reduce_any(settings.temperature > 0),
            lambda: run(settings),
            lambda: run(None),
        )


def _write_in_place(rows, indices, updates):
    """Writes as `layers.cache.scatter` does, without copying `rows`.

    Outside XLA a scatter into a loop's tensor copies it whole: 1.9 ms a token
    at 26 MB, where this takes 0.02 ms. The operation overwrites its input, so
    nobody may read the old rows any more: a token is written when it has been
    chosen, after all layers have read all slots for the token before; and the
    first rows come out of `KVCache.resized`, which shares them with nobody.
    """
    return tf.raw_ops.InplaceUpdate(x=rows, i=indices, v=updates)


def _finish_reason(is_stopped):
    return tf.where(is_stopped, "stop", "length")


def _padded(rows):
    return {
        "token_ids": rows.to_tensor(),
        "length": tf.cast(rows.row_lengths(), tf.int32),
    }


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


def _require_turns(roles, contents):
    is_equal = tf.equal(tf.shape(roles), tf.shape(contents))
    roles, contents = _require(
        (roles, contents),
        {"roles and contents must be equal in shape": is_equal},
    )
    is_turn = tf.not_equal(roles, "")
    return _require(
        (roles, contents),
        {
            "the batch must have a row": tf.size(roles) > 0,
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
        examples = warmup_examples(
            {
                name: [spec.name for spec in function.input_signature]
                for name, function in signatures.items()
            },
            context_length=module.context_length,
            max_new_tokens=min(2, max_new_tokens),
        )
        write_warmup(folder, examples)
        assets = folder / MODEL_ASSETS
        assets.mkdir(parents=True)
        write_json(assets / CONFIG_FILE, model.config.to_dict())
        save_tokenizer(assets, tokenizer)
        check_ops(folder)
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
