import functools
from types import SimpleNamespace

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from kerasgpt.config import InputError
from kerasgpt.generation import Generator, SamplerSettings, decode, prefill
from kerasgpt.generation.generate import DecodeState, count_prompt
from kerasgpt.models import GPTCausalLM, GPTConfig
from kerasgpt.tokenizers import CONTROL_TOKENS, ByteTokenizer, ChatTemplate
from tests.descriptors import tiny_sentence_piece

CONTEXT = 48
SHAPES = {
    "rotary": {"num_kv_heads": 1, "activation": "swiglu"},
    "learned": {"position": "learned", "norm": "layer", "use_bias": True},
}
END = CONTROL_TOKENS.index("<|end_of_turn|>")
DOCUMENT_END = CONTROL_TOKENS.index("<|end_of_document|>")
TOKENIZER = ByteTokenizer()
PROMPTS = [[2, 5, 74, 8, 6], [2, 5, 70, 71, 72, 73, 8, 6], [2, 6]]
CHATS = {"hi": "yo, 你好!", "bye": "再见 \U0001f600"}


def _build(shape="rotary", **changes):
    """Returns a model whose greedy text is neither constant nor short."""
    model = GPTCausalLM(
        GPTConfig(
            **{
                "vocabulary_size": TOKENIZER.vocabulary_size,
                "context_length": CONTEXT,
                "num_layers": 2,
                "num_heads": 2,
                "num_kv_heads": 2,
                "head_dim": 8,
                "model_dim": 16,
                "inner_dim": 32,
                **SHAPES[shape],
                **changes,
            }
        )
    )
    model.build()
    rng = np.random.default_rng(5)
    model.set_weights(
        [w + rng.normal(scale=0.4, size=w.shape) for w in model.get_weights()]
    )
    return model


@pytest.fixture(scope="module")
def model():
    return _build()


@pytest.fixture(scope="module")
def generator(model):
    # Most tests need no XLA, whose compiler takes a second for each shape.
    return Generator(model, TOKENIZER, jit_compile=False)


@pytest.fixture(scope="module")
def compiled(model):
    return Generator(model, TOKENIZER)


@pytest.fixture(scope="module")
def taught():
    """Returns a generator whose model has learned two chats by heart."""
    keras.utils.set_random_seed(0)
    config = GPTConfig.from_depth(
        1,
        vocabulary_size=TOKENIZER.vocabulary_size,
        context_length=CONTEXT,
        model_dim=64,
    )
    model = GPTCausalLM(config)
    template = ChatTemplate(TOKENIZER)
    token_ids = np.zeros((len(CHATS), 32), "int32")
    weights = np.zeros((len(CHATS), 32), "float32")
    for row, (user, assistant) in enumerate(CHATS.items()):
        ids, mask = template.render(
            [
                {"role": "user", "content": user},
                {"role": "assistant", "content": assistant},
            ]
        )
        token_ids[row, : len(ids)], weights[row, : len(ids)] = ids, mask
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
    )
    inputs = {"token_ids": token_ids[:, :-1]}
    for _ in range(60):
        loss = model.train_on_batch(inputs, token_ids[:, 1:], weights[:, 1:])
    assert loss < 0.05
    return Generator(model, TOKENIZER, jit_compile=False)


def _user(text):
    return [{"role": "user", "content": text}]


@functools.cache
def _reader(model):
    return tf.function(
        lambda token_ids, segment_ids: model(
            {"token_ids": token_ids, "segment_ids": segment_ids}
        )
    )


def _read(model, text):
    """Returns the logits after each token of a text, read without a cache."""
    # One length, so that nothing is traced twice.
    padded = np.zeros((1, CONTEXT), "int32")
    padded[0, : len(text)] = text
    is_text = (np.arange(CONTEXT) < len(text)).astype("int32")[None]
    logits = _reader(model)(padded, is_text)
    return ops.convert_to_numpy(logits)[0, : len(text)].copy()


def _recomputed(
    model,
    prompt,
    count,
    *,
    stop_id=END,
    penalty=1.0,
    frequency=0.0,
    presence=0.0,
):
    """Returns greedy ids, reading the whole text again for every token."""
    text = list(prompt)
    for _ in range(count):
        logits = _read(model, text)[-1]
        seen = sorted(set(text))
        logits[seen] = np.where(
            logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty
        )
        for token_id in text[len(prompt) :]:
            logits[token_id] -= frequency
        logits[sorted(set(text[len(prompt) :]))] -= presence
        banned = [i for i in range(len(CONTROL_TOKENS)) if i != stop_id]
        logits[banned] = -np.inf
        text.append(int(logits.argmax()))
        if text[-1] == stop_id:
            break
    return text[len(prompt) :]


def _without_stop(ids, stop_id=END):
    return ids[:-1] if ids and ids[-1] == stop_id else ids


# The loop against the model.


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("jit_compile", [True, False])
def test_greedy_over_a_cache_equals_reading_everything_again(
    shape, jit_compile
):
    model = _build(shape)
    rows = Generator(model, TOKENIZER, jit_compile=jit_compile).generate_ids(
        PROMPTS, 20
    )
    for prompt, row in zip(PROMPTS, rows, strict=True):
        assert row == _without_stop(_recomputed(model, prompt, 20))
    # A model that repeats itself would prove little.
    assert any(len(set(row)) > 3 for row in rows)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("jit_compile", [True, False])
def test_rows_of_unequal_length_may_fill_the_context(shape, jit_compile):
    # The short row still runs when the long one is at its end.
    model = _build(shape)
    prompts = [[2, 6], [2, 5, *range(20, 20 + CONTEXT - 7), 8, 6]]
    rows = Generator(model, TOKENIZER, jit_compile=jit_compile).generate_ids(
        prompts, CONTEXT
    )
    for prompt, row in zip(prompts, rows, strict=True):
        expected = _recomputed(model, prompt, CONTEXT - len(prompt))
        assert row == _without_stop(expected)


def test_a_repetition_penalty_counts_prompt_and_reply(model, generator):
    rows = generator.generate_ids(PROMPTS, 12, repetition_penalty=1.7)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        expected = _recomputed(model, prompt, 12, penalty=1.7)
        assert row == _without_stop(expected)
    assert rows != generator.generate_ids(PROMPTS, 12)


@pytest.mark.parametrize(
    "penalties", [{"frequency": 0.5}, {"presence": 2.0}, {"frequency": -0.3}]
)
def test_other_penalties_count_the_reply(model, generator, penalties):
    settings = {f"{name}_penalty": value for name, value in penalties.items()}
    rows = generator.generate_ids(PROMPTS, 20, **settings)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        expected = _recomputed(model, prompt, 20, **penalties)
        assert row == _without_stop(expected)
    assert rows != generator.generate_ids(PROMPTS, 20)


def _padded(prompts):
    token_ids = np.zeros((len(prompts), max(map(len, prompts)) + 1), "int32")
    for row, prompt in enumerate(prompts):
        token_ids[row, : len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in prompts], "int32")
    return ops.array(token_ids), ops.array(lengths)


def _state(model, prompts=PROMPTS, max_new_tokens=16, **options):
    return prefill(
        model, *_padded(prompts), max_new_tokens=max_new_tokens, **options
    )


def _decode(model, state, *, stop_ids=END, limits=16, num_steps=99, **sampling):
    rows = len(state.lengths)
    return decode(
        model,
        state,
        SamplerSettings.constant(rows, **sampling),
        max_new_tokens=ops.broadcast_to(ops.array(limits, "int32"), (rows,)),
        stop_ids=ops.broadcast_to(ops.array(stop_ids, "int32"), (rows,)),
        num_steps=ops.array(num_steps, "int32"),
    )


def _generated(state, row):
    return state.token_ids[row, : int(state.num_tokens[row])].numpy().tolist()


def test_the_first_logits_are_those_of_the_last_prompt_token(model):
    state = _state(model)
    for row, prompt in enumerate(PROMPTS):
        np.testing.assert_allclose(
            state.logits[row], _read(model, prompt)[-1], atol=1e-4
        )


def test_a_prompt_is_counted_without_its_padding():
    token_ids, lengths = _padded([[2, 5, 5], [9]])
    is_token = ops.arange(4)[None] < lengths[:, None]
    counts = count_prompt(token_ids, is_token, 10)
    assert not np.any(counts.generated)
    assert counts.generated.shape == counts.is_in_prompt.shape == (2, 10)
    for row, ids in enumerate(({2, 5}, {9})):
        seen = set(np.flatnonzero(counts.is_in_prompt[row]).tolist())
        # <|pad|> may be among them: it is never generated.
        assert seen - {0} == ids


def test_what_is_generated_is_counted(model):
    state = _decode(model, _state(model), limits=[16, 3, 9])
    for row in range(len(PROMPTS)):
        expected = np.bincount(
            _generated(state, row), minlength=TOKENIZER.vocabulary_size
        )
        np.testing.assert_array_equal(state.counts.generated[row], expected)


def test_without_counts_there_are_no_penalties(model):
    penalty = {"repetition_penalty": 3.0, "presence_penalty": 2.0}
    state = _state(model, with_counts=False)
    assert state.counts == ()
    plain = _decode(model, state, **penalty)
    np.testing.assert_array_equal(
        plain.token_ids, _decode(model, _state(model)).token_ids
    )
    penalised = _decode(model, _state(model), **penalty)
    assert np.any(plain.token_ids != penalised.token_ids)


@pytest.mark.parametrize("place", [0, 2, 7])
def test_a_row_stops_at_its_stop_id_and_counts_it(model, place):
    greedy = _recomputed(model, PROMPTS[0], 16)
    stop_id = greedy[place]
    count = greedy.index(stop_id) + 1
    state = _decode(model, _state(model, PROMPTS[:1]), stop_ids=stop_id)
    # The stop id is banned no more; the reply's own one is, if it came first.
    expected = _recomputed(model, PROMPTS[0], 16, stop_id=stop_id)
    assert expected[: count - 1] == greedy[: count - 1]
    assert int(state.num_tokens[0]) == len(expected)
    assert bool(state.is_finished[0])
    written = state.token_ids[0].numpy().tolist()
    assert written == expected + [0] * (16 - len(expected))


def test_rows_have_limits_of_their_own(model):
    # No control id of this number: nothing stops but the limit.
    limits = [1, 16, 5]
    rows = _decode(model, _state(model), stop_ids=-1, limits=limits)
    assert rows.num_tokens.numpy().tolist() == limits
    for row, prompt in enumerate(PROMPTS):
        count = limits[row]
        expected = _recomputed(model, prompt, count, stop_id=-1)
        assert rows.token_ids[row].numpy().tolist() == expected + [0] * (
            16 - count
        )


def test_rows_have_stop_ids_of_their_own(model):
    prompts = PROMPTS[:1] * 4
    greedy = _recomputed(model, prompts[0], 16, stop_id=-1)
    stop_ids = [greedy[1], -1, greedy[6], END]
    state = _decode(model, _state(model, prompts), stop_ids=stop_ids)
    for row, stop_id in enumerate(stop_ids):
        expected = _recomputed(model, prompts[0], 16, stop_id=stop_id)
        assert _generated(state, row) == expected
    assert len(set(state.num_tokens.numpy().tolist())) > 2


def test_a_stop_id_is_banned_in_rows_that_have_another(model):
    # The end of the turn is likeliest, then that of the document, then "A".
    logits = np.zeros((3, TOKENIZER.vocabulary_size), "float32")
    logits[:, [END, DOCUMENT_END, 74]] = [9.0, 8.0, 7.0]
    begun = _state(model)
    state = DecodeState.start(
        room=16,
        lengths=begun.lengths,
        logits=ops.array(logits),
        cache=begun.cache,
    )
    stop_ids = [DOCUMENT_END, END, -1]
    state = _decode(model, state, stop_ids=stop_ids, num_steps=1)
    assert state.token_ids[:, 0].numpy().tolist() == [DOCUMENT_END, END, 74]
    assert state.is_finished.numpy().tolist() == [True, True, False]


def test_token_by_token_equals_all_at_once(model):
    whole = _decode(model, _state(model), limits=[16, 7, 11])
    state = _state(model)
    while not bool(ops.all(state.is_finished)):
        before = int(state.step)
        state = _decode(model, state, limits=[16, 7, 11], num_steps=3)
        assert before < int(state.step) <= before + 3
    for name in ("token_ids", "num_tokens", "log_probabilities"):
        np.testing.assert_array_equal(
            getattr(state, name), getattr(whole, name)
        )


def _continued(model, prompts, *, pieces, **sampling):
    """Returns ids made in several calls, each of which reads all before."""
    texts = [list(prompt) for prompt in prompts]
    for count in pieces:
        state = _decode(
            model,
            _state(model, texts, max_new_tokens=count),
            stop_ids=-1,
            limits=count,
            **sampling,
        )
        for row, text in enumerate(texts):
            text += _generated(state, row)
    return [
        text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)
    ]


@pytest.mark.parametrize("seed", [0, 1, -7])
def test_the_number_of_calls_changes_no_draw(model, seed):
    # A draw depends on the seed and the token's position in its row.
    sampling = {"temperature": 1.0, "seed": seed}
    expected = _continued(model, PROMPTS, pieces=[12], **sampling)
    for pieces in ([3, 3, 3, 3], [1, 10, 1]):
        actual = _continued(model, PROMPTS, pieces=pieces, **sampling)
        assert actual == expected
    assert len(set(map(tuple, expected))) == len(PROMPTS)


# What the model thought of its tokens.


def _log_softmax(logits):
    logits = logits.astype("float64")
    highest = logits.max(axis=-1, keepdims=True)
    total = np.exp(logits - highest).sum(axis=-1, keepdims=True)
    return logits - highest - np.log(total)


def _scores(model, state, row):
    """Returns the log-softmax before each token that a row generated."""
    prompt = PROMPTS[row]
    logits = _read(model, prompt + _generated(state, row))
    return _log_softmax(logits)[len(prompt) - 1 : -1]


# Neither of them changes what the model thinks.
SETTINGS = {
    "greedy": {},
    "drawn": {"temperature": 2.0, "top_k": 40, "seed": 4},
    "penalised": {"repetition_penalty": 1.7, "presence_penalty": 1.5},
}
LIMITS = [16, 5, 9]


@pytest.mark.parametrize("settings", SETTINGS)
def test_log_probabilities_are_those_of_the_uncached_model(model, settings):
    state = _decode(model, _state(model), limits=LIMITS, **SETTINGS[settings])
    for row in range(len(PROMPTS)):
        token_ids = _generated(state, row)
        scores = _scores(model, state, row)
        expected = scores[range(len(token_ids)), token_ids]
        found = state.log_probabilities[row].numpy()
        np.testing.assert_allclose(found[: len(token_ids)], expected, atol=1e-4)
        assert not found[len(token_ids) :].any()


@pytest.mark.parametrize("settings", SETTINGS)
def test_top_tokens_are_the_sorted_log_softmax(model, settings):
    begun = _state(model)
    state = DecodeState.start(
        room=16,
        top_tokens=5,
        lengths=begun.lengths,
        logits=begun.logits,
        counts=begun.counts,
        cache=begun.cache,
    )
    # In two calls, the second of which keeps what the first one found.
    for num_steps in (4, 99):
        state = _decode(
            model,
            state,
            limits=LIMITS,
            num_steps=num_steps,
            **SETTINGS[settings],
        )
    assert state.top.token_ids.shape == (len(PROMPTS), 16, 5)
    for row in range(len(PROMPTS)):
        scores = _scores(model, state, row)
        count = len(scores)
        expected = np.argsort(-scores, axis=-1)[:, :5]
        token_ids = state.top.token_ids[row].numpy()
        found = state.top.log_probabilities[row].numpy()
        np.testing.assert_array_equal(token_ids[:count], expected)
        np.testing.assert_allclose(
            found[:count],
            np.take_along_axis(scores, expected, axis=-1),
            atol=1e-4,
        )
        assert not token_ids[count:].any()
        assert not found[count:].any()


def test_top_tokens_are_not_kept_unasked(model):
    state = _decode(model, _state(model), num_steps=1)
    assert state.top == ()


def test_a_finished_row_takes_no_step(model):
    begun = _state(model)
    state = DecodeState.start(
        room=16,
        lengths=begun.lengths,
        logits=begun.logits,
        cache=begun.cache,
        is_finished=ops.array([False, True, False]),
    )
    state = _decode(model, state, stop_ids=-1, limits=4)
    assert state.num_tokens.numpy().tolist() == [4, 0, 4]
    assert not np.any(state.token_ids[1])
    for row in (0, 2):
        expected = _recomputed(model, PROMPTS[row], 4, stop_id=-1)
        assert _generated(state, row) == expected


# Text in, text out.


def test_what_was_learned_comes_back_and_stops(taught):
    assert taught.reply([_user(text) for text in CHATS]) == [*CHATS.values()]


def test_a_stream_comes_in_whole_characters_and_joins_to_the_reply(taught):
    for user, assistant in CHATS.items():
        pieces = list(taught.stream(_user(user)))
        assert "".join(pieces) == assistant
        # One piece a character: those of several bytes are held back.
        assert pieces == list(assistant)


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_of_broken_characters_joins_to_the_reply(generator, seed):
    settings = {"temperature": 1.5, "seed": seed, "max_new_tokens": 30}
    chat = _user("x")
    (reply,) = generator.reply([chat], **settings)
    assert "\ufffd" in reply
    assert "".join(generator.stream(chat, **settings)) == reply


class _Told(Generator):
    """Generates given ids, one after the other, without a model."""

    def __init__(self, tokenizer, token_ids):
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer)
        self.told = token_ids

    def _start(self, *unused):
        return 0, None, None, None

    def _decode(self, state, *unused):
        count = (state if isinstance(state, int) else state.num_tokens[0]) + 1
        return SimpleNamespace(
            num_tokens=[count],
            token_ids=tf.constant([self.told]),
            is_finished=[count == len(self.told)],
        )


@pytest.mark.parametrize("kind", ["byte", "sentence_piece"])
@hypothesis.given(
    text=st.one_of(
        st.text(min_size=1, max_size=8),
        st.text(
            "\u2581\U0010ffff01 你\U0001f600\ufffd", min_size=1, max_size=8
        ),
    )
)
@hypothesis.settings(max_examples=40)
def test_any_text_can_be_streamed(kind, text):
    tokenizer = TOKENIZER if kind == "byte" else tiny_sentence_piece()
    pieces = list(_Told(tokenizer, tokenizer.encode(text)).stream(_user("x")))
    assert "".join(pieces) == text
    assert all(pieces)


def test_a_document_ends_with_its_own_control_id(model):
    # A model that always says <|end_of_document|>: LayerNorm puts out its
    # offset alone, and the untied head has that id's column only.
    constant = _build("learned", tie_embeddings=False)
    weights = {weight.path: weight for weight in constant.weights}
    head = next(w for path, w in weights.items() if "reverse" in path)
    norm = constant.backbone.final_norm
    norm.gamma.assign(ops.zeros_like(norm.gamma))
    norm.beta.assign(ops.ones_like(norm.beta))
    for name, says in (("complete", DOCUMENT_END), ("reply", END)):
        column = np.zeros(head.shape, "float32")
        column[..., says] = 5.0
        column[..., 74] = 1.0
        head.assign(column)
        ending = Generator(constant, TOKENIZER, jit_compile=False)
        if name == "complete":
            assert ending.complete(["x"], max_new_tokens=4) == [""]
            # Inside a reply it is banned, and the next best is said.
            assert ending.reply([_user("x")], max_new_tokens=4) == ["AAAA"]
        else:
            assert ending.reply([_user("x")], max_new_tokens=4) == [""]
            assert ending.complete(["x"], max_new_tokens=4) == ["AAAA"]


@pytest.mark.parametrize("stop", ["<|end_of_turn|>", "<|end_of_document|>"])
def test_control_ids_are_never_generated(generator, stop):
    rows = generator.generate_ids(
        [[2, 6]], 30, stop_token=stop, num_sequences=48, temperature=8.0
    )
    assert len({i for row in rows for i in row}) > 150
    for row in rows:
        assert not [i for i in row if i < len(CONTROL_TOKENS)]


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17])
def test_no_more_tokens_than_asked_for(generator, count):
    rows = generator.generate_ids(PROMPTS, count, temperature=2.0)
    assert max(len(row) for row in rows) <= count
    rows = generator.generate_ids(PROMPTS, count)
    longer = generator.generate_ids(PROMPTS, 20)
    assert rows == [row[:count] for row in longer]


def test_generation_ends_with_the_context(model, generator):
    prompt = [2, 5, *range(20, 20 + CONTEXT - 10), 8, 6]
    (row,) = generator.generate_ids([prompt], 1000)
    room = CONTEXT - len(prompt)
    assert row == _without_stop(_recomputed(model, prompt, room))
    full = [2, *range(20, 20 + CONTEXT - 2)]
    assert len(generator.generate_ids([full], 5)[0]) <= 1
    with pytest.raises(InputError, match=f"fills the context of {CONTEXT}"):
        generator.generate_ids([[*full, 9]], 5)


@pytest.mark.parametrize(
    "settings",
    [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 2.0}],
)
def test_wrong_settings_are_the_users_error(generator, settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        generator.reply([_user("x")], **settings)
    with pytest.raises(InputError, match=next(iter(settings))):
        list(generator.stream(_user("x"), **settings))


def test_no_conversation_gives_no_reply(generator):
    assert generator.reply([]) == []


# Randomness and batches.

SAMPLING = {"temperature": 1.0, "top_p": 0.95}


def test_a_seed_decides(generator):
    def ids(seed):
        return generator.generate_ids(PROMPTS, 12, seed=seed, **SAMPLING)

    assert ids(3) == ids(3)
    assert ids(3) != ids(4)


def test_a_result_does_not_depend_on_its_batch(generator):
    prompts = PROMPTS + PROMPTS[::-1]
    expected = generator.generate_ids(prompts, 12, **SAMPLING)
    for batch_size in (1, 4):
        actual = generator.generate_ids(
            prompts, 12, batch_size=batch_size, **SAMPLING
        )
        assert actual == expected
    # The seed counts up from result to result.
    for number, prompt in enumerate(prompts):
        alone = generator.generate_ids([prompt], 12, seed=number, **SAMPLING)
        assert alone == [expected[number]]


def test_several_results_of_a_prompt_stand_side_by_side(generator):
    rows = generator.generate_ids(
        PROMPTS, 12, num_sequences=3, seed=5, **SAMPLING
    )
    assert len(rows) == 9
    for number, row in enumerate(rows):
        prompt = PROMPTS[number // 3]
        alone = generator.generate_ids(
            [prompt], 12, seed=5 + number, **SAMPLING
        )
        assert alone == [row]
    assert rows[0] != rows[1]


def test_a_second_call_of_the_same_shape_traces_nothing(compiled):
    generator = compiled
    generator.generate_ids(PROMPTS, 12)
    functions = (generator._prefill, generator._decode)
    counts = [f.experimental_get_tracing_count() for f in functions]
    generator.generate_ids([[2, 5, 9], [2, 9, 9, 9], [6]], 16, seed=9)
    generator.generate_ids(PROMPTS, 9, stop_token="<|end_of_document|>")
    generator.generate_ids(
        PROMPTS,
        12,
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.1,
        frequency_penalty=0.1,
        presence_penalty=0.1,
    )
    assert counts == [f.experimental_get_tracing_count() for f in functions]


def test_compiled_replies_equal_plain_ones(generator, compiled):
    assert compiled.generate_ids(PROMPTS, 16) == generator.generate_ids(
        PROMPTS, 16
    )
    chats = [_user("hi"), _user("bye"), _user("")]
    assert compiled.reply(chats, max_new_tokens=8) == generator.reply(
        chats, max_new_tokens=8
    )
    settings = {"temperature": 1.0, "seed": 3}
    assert compiled.generate_ids(PROMPTS, 16, **settings) == (
        generator.generate_ids(PROMPTS, 16, **settings)
    )


def test_the_plain_loop_holds_no_xla_op(model):
    # A server that has XLA switched off must be able to run it.
    @tf.function
    def run(token_ids):
        lengths = tf.fill([1], 5)
        state = prefill(model, token_ids, lengths, max_new_tokens=4)
        return _decode(model, state, limits=4).token_ids

    graph = run.get_concrete_function(tf.TensorSpec([1, 5], tf.int32)).graph
    library = graph.as_graph_def().library
    names = {op.type for op in graph.get_operations()}
    names |= {node.op for f in library.function for node in f.node_def}
    assert not [name for name in names if "Xla" in name]
