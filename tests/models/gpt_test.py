import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from kerasgpt.config import InputError
from kerasgpt.models.gpt import (
    GPTBackbone,
    GPTCausalLM,
    GPTConfig,
    ModelConfig,
)

SMALL = {
    "vocabulary_size": 23,
    "context_length": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_dim": 4,
    "model_dim": 12,
    "inner_dim": 20,
}
# The shape of the family on the left, at toy size.
SHAPES = {
    "gpt2": {
        "position": "learned",
        "norm": "layer",
        "use_bias": True,
        "activation": "gelu_tanh",
        "qk_norm": False,
    },
    "llama": {
        "num_kv_heads": 2,
        "activation": "swiglu",
        "qk_norm": False,
        "tie_embeddings": False,
    },
    "qwen3": {"num_kv_heads": 1, "activation": "swiglu", "qk_norm": True},
    "ours": {},
}


def _model(shape="ours", **changes):
    model = GPTCausalLM(GPTConfig(**{**SMALL, **SHAPES[shape], **changes}))
    model.build()
    # Small first tables would hide most effects behind rounding.
    rng = np.random.default_rng(1)
    model.set_weights(
        [w + rng.normal(scale=0.3, size=w.shape) for w in model.get_weights()]
    )
    return model


def _token_ids(batch_size=2, length=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 23, (batch_size, length)).astype("int32")


def _logits(model, token_ids, **further):
    inputs = {"token_ids": token_ids, **further}
    inputs = {name: ops.array(value) for name, value in inputs.items()}
    return ops.convert_to_numpy(model(inputs))


every_shape = pytest.mark.parametrize("shape", SHAPES)


# Configurations.


@every_shape
def test_parameters_are_counted_without_building(shape):
    for changes in ({}, {"use_bias": True}, {"tie_embeddings": False}):
        config = GPTConfig(**{**SMALL, **SHAPES[shape], **changes})
        model = GPTCausalLM(config)
        model.build()
        assert config.num_parameters == model.count_params()


def test_the_gpt2_shape_has_the_parameters_of_gpt2():
    # 124,439,808 parameters: Hugging Face, GPT2Model of "gpt2".
    config = GPTConfig.from_depth(
        12, vocabulary_size=50257, context_length=1024, **SHAPES["gpt2"]
    )
    assert config.num_parameters == 124_439_808


def test_training_costs_six_operations_a_matrix_parameter():
    config = GPTConfig(**SMALL)
    attention = 12 * 2 * (4 * 4) * 16
    expected = 6 * config.num_parameters + attention
    assert config.training_flops_per_token == expected
    # An untied input table is looked up, which costs nothing.
    untied = GPTConfig(**SMALL, tie_embeddings=False)
    assert untied.training_flops_per_token == expected


@pytest.mark.parametrize(
    ("depth", "model_dim", "num_heads", "head_dim"),
    [
        (1, 128, 4, 32),
        (4, 128, 4, 32),
        (6, 256, 4, 64),
        (8, 512, 8, 64),
        (12, 768, 12, 64),
    ],
)
def test_one_dial_sets_the_shape(depth, model_dim, num_heads, head_dim):
    config = GPTConfig.from_depth(depth)
    assert config.num_layers == depth
    assert config.model_dim == model_dim
    assert config.num_heads == config.num_kv_heads == num_heads
    assert config.head_dim == head_dim
    assert config.inner_dim == 4 * model_dim


def test_what_is_set_beside_the_dial_is_kept():
    config = GPTConfig.from_depth(
        2, model_dim=64, num_kv_heads=1, inner_dim=None, dropout_rate=0.1
    )
    assert config.model_dim == 64
    assert config.num_heads == 2
    assert config.num_kv_heads == 1
    assert config.inner_dim == 256
    assert config.dropout_rate == 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {"num_heads": 4, "num_kv_heads": 3},
        {"head_dim": 5},
        {"num_kv_heads": 0},
        {"head_dim": 0},
        {"vocabulary_size": 0},
        {"num_layers": -1},
    ],
)
def test_widths_that_do_not_fit_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        GPTConfig(**{**SMALL, **changes})


def test_a_depth_below_one_is_refused():
    with pytest.raises(ValueError, match="depth must be at least 1"):
        GPTConfig.from_depth(0)


def test_the_stage_setting_fills_in_what_is_none():
    config = ModelConfig(depth=2, num_kv_heads=2, activation="swiglu")
    built = config.build_config(vocabulary_size=99, context_length=64)
    assert built == GPTConfig.from_depth(
        2,
        vocabulary_size=99,
        context_length=64,
        num_kv_heads=2,
        activation="swiglu",
    )
    config = ModelConfig(context_length=32)
    built = config.build_config(vocabulary_size=99, context_length=64)
    assert built.context_length == 32


@pytest.mark.parametrize(
    "changes",
    [{"num_kv_heads": 3}, {"num_heads": 2, "num_kv_heads": 4}, {"head_dim": 7}],
)
def test_stage_settings_that_do_not_fit_are_the_users_error(changes):
    with pytest.raises(InputError, match="model: "):
        ModelConfig(**changes).build_config(vocabulary_size=9, context_length=8)


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 0},
        {"context_length": 7},
        {"model_dim": 0},
        {"num_heads": 0},
        {"num_kv_heads": 0},
        {"head_dim": 0},
        {"inner_dim": 0},
        {"rotary_base": 0.5},
        {"dropout_rate": -0.1},
        {"dropout_rate": 1.0},
    ],
)
def test_stage_settings_out_of_range_are_refused_by_name(change):
    ((name, value),) = change.items()
    with pytest.raises(InputError, match=f"^{name}={value}: must be at "):
        ModelConfig(**change)


def test_the_config_of_a_model_survives_json():
    model = _model("llama")
    config = json.loads(json.dumps(model.get_config()))
    assert GPTCausalLM.from_config(config).config == model.config
    assert GPTBackbone(model.config.to_dict()).config == model.config


# What a token may depend on.


def _embedding_gradient(model, token_ids, row, position, **further):
    """d (sum of the logits at one place) / d (embedded inputs)."""
    backbone = model.backbone
    embedded = tf.Variable(backbone.token_embedding(token_ids))
    original = backbone.token_embedding.call

    def embed(inputs, reverse=False):
        return original(inputs, reverse=True) if reverse else embedded * 1.0

    backbone.token_embedding.call = embed
    try:
        with tf.GradientTape() as tape:
            logits = model({"token_ids": ops.array(token_ids), **further})
            # Not a plain sum: logits of equal tables may cancel.
            chosen = tf.reduce_sum(logits[row, position] ** 2)
        gradient = tape.gradient(chosen, embedded)
    finally:
        backbone.token_embedding.call = original
    return np.abs(ops.convert_to_numpy(gradient)).sum(axis=-1)


@every_shape
def test_logits_depend_on_the_past_and_never_on_the_future(shape):
    model, token_ids = _model(shape), _token_ids()
    for position in (0, 3, 7):
        gradient = _embedding_gradient(model, token_ids, 0, position)
        assert (gradient[0, : position + 1] > 0).all()
        assert (gradient[0, position + 1 :] == 0).all()
        # A row does not look into another one either.
        assert (gradient[1] == 0).all()


PACKED = {
    "positions": np.array([[0, 1, 2, 0, 1, 0, 1, 0]], "int32"),
    "segment_ids": np.array([[1, 1, 1, 2, 2, 3, 3, 0]], "int32"),
}


@every_shape
def test_packed_documents_exchange_no_gradient(shape):
    model, token_ids = _model(shape), _token_ids(1)
    packed = {name: ops.array(value) for name, value in PACKED.items()}
    segments = PACKED["segment_ids"][0]
    for position in range(7):
        gradient = _embedding_gradient(model, token_ids, 0, position, **packed)[
            0
        ]
        own = segments == segments[position]
        assert (gradient[~own] == 0).all()
        assert (gradient[own][: PACKED["positions"][0, position]] > 0).all()


@every_shape
def test_changing_a_document_changes_no_logit_of_its_neighbours(shape):
    model, token_ids = _model(shape), _token_ids(1)
    before = _logits(model, token_ids, **PACKED)[0]
    changed = token_ids.copy()
    changed[0, 3:5] = (changed[0, 3:5] + 1) % 23
    after = _logits(model, changed, **PACKED)[0]
    others = [0, 1, 2, 5, 6]
    np.testing.assert_array_equal(after[others], before[others])
    assert not np.allclose(after[3:5], before[3:5])


@every_shape
def test_a_packed_row_equals_its_documents_one_by_one(shape):
    model, token_ids = _model(shape), _token_ids(1)
    packed = _logits(model, token_ids, **PACKED)[0]
    for first, last in ((0, 3), (3, 5), (5, 7)):
        alone = _logits(model, token_ids[:, first:last])[0]
        np.testing.assert_allclose(packed[first:last], alone, atol=2e-5)


@every_shape
def test_padding_changes_nothing_on_either_side(shape):
    model, token_ids = _model(shape), _token_ids(1, 5)
    expected = _logits(model, token_ids)[0]
    for left, right in ((0, 3), (3, 0), (2, 1)):
        pad = ((0, 0), (left, right))
        positions = np.pad(np.arange(5, dtype="int32")[None], pad)
        padded = _logits(
            model,
            np.pad(token_ids, pad, constant_values=7),
            positions=positions,
            segment_ids=np.pad(np.ones((1, 5), "int32"), pad),
        )
        actual = padded[0, left : left + 5]
        np.testing.assert_allclose(actual, expected, atol=2e-5)
        assert np.isfinite(padded).all()


@every_shape
def test_a_batch_equals_its_rows_one_by_one(shape):
    model, token_ids = _model(shape), _token_ids(3)
    together = _logits(model, token_ids)
    for row in range(3):
        alone = _logits(model, token_ids[row : row + 1])[0]
        np.testing.assert_allclose(together[row], alone, atol=2e-5)


@every_shape
def test_positions_and_segments_have_their_defaults(shape):
    model, token_ids = _model(shape), _token_ids()
    positions = np.tile(np.arange(8, dtype="int32"), (2, 1))
    given = _logits(
        model,
        token_ids,
        positions=positions,
        segment_ids=np.ones((2, 8), "int32"),
    )
    np.testing.assert_array_equal(given, _logits(model, token_ids))


def test_order_matters():
    for shape in SHAPES:
        model, token_ids = _model(shape), _token_ids(1)
        last = _logits(model, token_ids)[0, -1]
        swapped = token_ids[:, [1, 0, *range(2, 8)]]
        assert not np.allclose(_logits(model, swapped)[0, -1], last)


# Decoding.


def _read(model, token_ids, lengths, num_slots=None):
    """Returns logits of token_ids read in pieces over a cache."""
    cache = model.allocate_cache(len(token_ids), num_slots or sum(lengths))
    logits, start = [], 0
    for length in lengths:
        piece = np.arange(start, start + length)
        positions = np.tile(piece.astype("int32"), (len(token_ids), 1))
        inputs = {"token_ids": token_ids[:, piece], "positions": positions}
        inputs = {name: ops.array(value) for name, value in inputs.items()}
        outputs, cache = model(inputs, cache=cache)
        logits.append(ops.convert_to_numpy(outputs))
        start += length
    return np.concatenate(logits, axis=1)


@every_shape
def test_cached_logits_equal_uncached_ones_token_by_token(shape):
    model, token_ids = _model(shape), _token_ids()
    expected = _logits(model, token_ids)
    actual = _read(model, token_ids, [1] * 8)
    np.testing.assert_allclose(actual, expected, atol=2e-5)
    # Slots that are still empty are seen by nobody.
    actual = _read(model, token_ids, [1] * 8, num_slots=13)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


@every_shape
def test_a_prompt_may_be_read_in_pieces(shape):
    model, token_ids = _model(shape), _token_ids()
    expected = _logits(model, token_ids)
    for lengths in ([8], [5, 3], [1, 6, 1]):
        actual = _read(model, token_ids, lengths)
        np.testing.assert_allclose(actual, expected, atol=2e-5)


@every_shape
def test_a_returned_cache_equals_one_that_was_written(shape):
    model, token_ids = _model(shape), _token_ids()
    inputs = {"token_ids": ops.array(token_ids)}
    hidden_states, returned = model.backbone(inputs, return_cache=True)
    np.testing.assert_array_equal(hidden_states, model.backbone(inputs))
    _, written = model.backbone(inputs, cache=model.allocate_cache(2, 8))
    for name in ("keys", "values"):
        buffers, others = getattr(returned, name), getattr(written, name)
        assert len(buffers) == SMALL["num_layers"]
        for buffer, other in zip(buffers, others, strict=True):
            np.testing.assert_allclose(buffer, other, atol=2e-5)


def _perturbed(cache, lengths):
    """Returns the cache with garbage in the slots from `lengths` on."""
    slots = np.arange(cache.keys[0].shape[2])
    is_beyond = slots[None] >= np.array(lengths)[:, None]
    garbage = np.where(is_beyond, 1e3, 0.0)[:, None, :, None]
    return keras.tree.map_structure(lambda buffer: buffer + garbage, cache)


@every_shape
def test_rows_go_on_from_their_own_positions(shape):
    # What padding or an earlier text left beyond them is never seen.
    model, token_ids = _model(shape), _token_ids(3, 12)
    lengths = np.array([8, 3, 5])
    expected = _logits(model, token_ids)
    inputs = {"token_ids": ops.array(token_ids[:, :8])}
    _, cache = model.backbone(inputs, return_cache=True)
    cache = _perturbed(cache.resized(13), lengths)
    rows = np.arange(3)
    for step in range(4):
        positions = lengths + step
        logits, cache = model(
            {
                "token_ids": ops.array(token_ids[rows, positions][:, None]),
                "positions": ops.array(positions[:, None], "int32"),
            },
            cache=cache,
        )
        np.testing.assert_allclose(
            logits[:, 0], expected[rows, positions], atol=2e-5
        )


def test_slots_up_to_the_position_are_seen():
    # The opposite of the test above: garbage one slot earlier is noticed.
    model, token_ids = _model(), _token_ids()
    _, cache = model.backbone(
        {"token_ids": ops.array(token_ids)}, return_cache=True
    )
    inputs = {
        "token_ids": ops.array(token_ids[:, 7:]),
        "positions": ops.full((2, 1), 7, "int32"),
    }
    expected, _ = model(inputs, cache=cache)
    logits, _ = model(inputs, cache=_perturbed(cache, [6, 7]))
    assert np.abs(logits[0] - expected[0]).max() > 0.1
    np.testing.assert_array_equal(logits[1], expected[1])


def test_the_given_slot_writer_writes():
    model, told = _model(), []

    def writer(buffer, positions):
        told.append((tuple(buffer.shape), np.array(positions).tolist()))
        return lambda buffer, updates: buffer + 0 * ops.sum(updates)

    _, cache = model.backbone(
        {"token_ids": ops.array([[1]]), "positions": ops.array([[3]])},
        cache=model.allocate_cache(1, 5),
        slot_writer=writer,
    )
    assert told == [((1, 4, 5, 4), [[3]])]
    assert not any(np.any(buffer) for buffer in cache.keys + cache.values)


def test_the_cache_takes_the_dtype_and_heads_of_the_model():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = GPTCausalLM(GPTConfig(**{**SMALL, **SHAPES["llama"]}))
    cache = model.allocate_cache(3, 5)
    assert len(cache.keys) == 2
    assert cache.keys[0].dtype == "bfloat16"
    assert tuple(cache.values[1].shape) == (3, 2, 5, 4)


# Learning.


def _loss():
    return keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )


@every_shape
def test_the_first_loss_is_near_that_of_a_guess(shape):
    config = GPTConfig.from_depth(2, vocabulary_size=512, **SHAPES[shape])
    model = GPTCausalLM(config)
    rng = np.random.default_rng(0)
    token_ids = rng.integers(0, 512, (4, 33))
    logits = model({"token_ids": ops.array(token_ids[:, :-1], "int32")})
    loss = float(_loss()(token_ids[:, 1:], logits))
    assert loss == pytest.approx(math.log(512), abs=0.1)


@every_shape
def test_one_batch_is_learned_by_heart(shape):
    model = GPTCausalLM(GPTConfig(**{**SMALL, **SHAPES[shape]}))
    token_ids = _token_ids(2, 9)
    model.compile(keras.optimizers.Adam(0.03), _loss(), jit_compile=False)
    inputs, targets = {"token_ids": token_ids[:, :-1]}, token_ids[:, 1:]
    for _ in range(60):
        model.train_on_batch(inputs, targets)
    assert model.test_on_batch(inputs, targets) < 0.05


def test_untied_tables_differ_and_tied_ones_are_one():
    tied, untied = _model(), _model(tie_embeddings=False)
    assert untied.count_params() - tied.count_params() == 23 * 12
    names = [weight.path for weight in untied.weights]
    assert len(set(names)) == len(names)


def test_dropout_acts_in_training_only():
    model = _model(dropout_rate=0.5)
    inputs = {"token_ids": ops.array(_token_ids())}
    still = ops.convert_to_numpy(model(inputs, training=False))
    np.testing.assert_array_equal(still, ops.convert_to_numpy(model(inputs)))
    first = ops.convert_to_numpy(model(inputs, training=True))
    second = ops.convert_to_numpy(model(inputs, training=True))
    assert not np.allclose(first, second)
    assert not np.allclose(first, still)


def test_logits_are_float32_under_every_policy():
    for policy in ("float32", "mixed_bfloat16"):
        keras.config.set_dtype_policy(policy)
        model = GPTCausalLM(GPTConfig(**SMALL))
        logits = model({"token_ids": ops.array(_token_ids())})
        assert keras.backend.standardize_dtype(logits.dtype) == "float32"


def _losses_and_gradients(rematerialize, *, jit_compile):
    """Returns the outputs and gradients of a model in training."""
    model = GPTCausalLM(
        GPTConfig(**SMALL), rematerialize=rematerialize, name="gpt"
    )
    model.build()
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(size=w.shape) for w in model.weights])
    inputs = {
        "token_ids": _token_ids(),
        "segment_ids": ops.array([[1] * 5 + [2] * 3] * 2),
    }

    @tf.function(jit_compile=jit_compile)
    def differentiate():
        with tf.GradientTape() as tape:
            logits = model(inputs, training=True)
            loss = ops.mean(ops.square(logits))
        return logits, tape.gradient(loss, model.trainable_variables)

    return differentiate()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_rematerialised_blocks_give_the_same_gradients(jit_compile):
    expected, actual = (
        _losses_and_gradients(rematerialize, jit_compile=jit_compile)
        for rematerialize in (False, True)
    )
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5, atol=1e-5)
    for value, other in zip(actual[1], expected[1], strict=True):
        np.testing.assert_allclose(
            tf.convert_to_tensor(value),
            tf.convert_to_tensor(other),
            rtol=1e-4,
            atol=1e-4,
        )


def test_rematerialised_blocks_are_computed_twice_and_only_in_training():
    def num_products(rematerialize, training):
        model = GPTCausalLM(GPTConfig(**SMALL), rematerialize=rematerialize)
        model.build()

        @tf.function
        def differentiate():
            with tf.GradientTape() as tape:
                hidden_states = model.backbone(
                    {"token_ids": _token_ids()}, training=training
                )
            return tape.gradient(hidden_states, model.trainable_variables)

        graph = differentiate.get_concrete_function().graph
        return sum(op.type == "MatMul" for op in graph.get_operations())

    assert num_products(True, True) > num_products(False, True) > 0
    assert num_products(True, False) == num_products(False, False)


def test_dropout_cannot_be_rematerialised():
    config = GPTConfig(**SMALL, dropout_rate=0.1)
    with pytest.raises(ValueError, match="needs dropout_rate=0"):
        GPTCausalLM(config, rematerialize=True)


def test_rematerialisation_survives_json():
    model = GPTCausalLM(GPTConfig(**SMALL), rematerialize=True)
    for part in (model, model.backbone):
        config = json.loads(json.dumps(part.get_config()))
        assert type(part).from_config(config).get_config() == config
        assert config["rematerialize"]


def test_a_dtype_is_that_of_all_layers_but_the_logits():
    # Set on the model, not for all: a layer that was forgotten would clash.
    for rate in (0.0, 0.1):
        config = GPTConfig(**SMALL, dropout_rate=rate)
        model = GPTCausalLM(config, dtype="mixed_bfloat16")
        model.build()
        inputs = {"token_ids": _token_ids()}
        assert model.backbone(inputs, training=True).dtype == "bfloat16"
        assert model(inputs, training=True).dtype == "float32"
