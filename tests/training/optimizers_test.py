import json

import keras
import numpy as np
import pytest
from keras import ops

from kerasgpt.models import GPTCausalLM, GPTConfig
from kerasgpt.training.optimizers import (
    ScaledSchedule,
    build_optimizer,
    take_summed_gradients,
)
from kerasgpt.training.schedules import WarmupStableDecay


@pytest.fixture
def model():
    """Returns a model with every sort of parameter there is."""
    model = GPTCausalLM(
        GPTConfig(
            vocabulary_size=13,
            context_length=8,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=4,
            model_dim=8,
            inner_dim=12,
            activation="swiglu",
            norm="layer",
            position="learned",
            use_bias=True,
            tie_embeddings=False,
        )
    )
    model.build()
    model.set_weights([np.ones(w.shape) for w in model.weights])
    return model


def _changes(model, optimizer, gradients):
    """Returns what one update adds to each variable, by path."""
    variables = model.trainable_variables
    before = [ops.convert_to_numpy(v).copy() for v in variables]
    optimizer.apply(gradients, variables)
    return {
        variable.path: ops.convert_to_numpy(variable) - old
        for variable, old in zip(variables, before, strict=True)
    }


def _is_block_kernel(path):
    return "/block_" in path and path.endswith("/kernel")


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_norms_biases_and_embeddings_are_not_decayed(model, kind):
    optimizer = build_optimizer(
        kind, 0.1, weight_decay=0.5, muon_learning_rate_ratio=2.0
    )
    zeros = [ops.zeros(v.shape) for v in model.trainable_variables]
    changes = _changes(model, optimizer, zeros)
    names = {path.split("/")[-1] for path in changes}
    assert names >= {"kernel", "bias", "gamma", "beta", "embeddings"}
    rate = 0.1 if kind == "adamw" else 0.2
    for path, change in changes.items():
        expected = -rate * 0.5 if _is_block_kernel(path) else 0.0
        np.testing.assert_allclose(change, expected, atol=1e-6, err_msg=path)


def _gradients(model):
    rng = np.random.default_rng(0)
    return [
        ops.array(rng.normal(size=variable.shape), "float32")
        for variable in model.trainable_variables
    ]


def test_muon_gets_the_matrices_of_the_blocks_and_adamw_the_rest(model):
    optimizer = build_optimizer(
        "muon", 0.01, weight_decay=0.0, muon_learning_rate_ratio=5.0
    )
    changes = _changes(model, optimizer, _gradients(model))
    by_muon = set()
    for path, change in changes.items():
        # The first step of AdamW has one size everywhere: its rate.
        if np.allclose(np.abs(change), 0.01, rtol=1e-3):
            continue
        by_muon.add(path)
        # Muon turns the gradient into a matrix of nearly equal singular
        # values (Newton-Schulz brings them to between 0.7 and 1.2).
        values = np.linalg.svd(change, compute_uv=False)
        assert values.max() / values.min() < 2.0, path
    assert by_muon == {path for path in changes if _is_block_kernel(path)}
    # Query, key, value, output, up, gate and down of two blocks.
    assert len(by_muon) == 14


def test_adamw_moves_everything_by_its_rate(model):
    optimizer = build_optimizer("adamw", 0.01, weight_decay=0.0)
    for change in _changes(model, optimizer, _gradients(model)).values():
        np.testing.assert_allclose(np.abs(change), 0.01, rtol=1e-3)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_schedules_are_followed(model, kind):
    schedule = WarmupStableDecay(
        0.04, total_steps=8, warmup_steps=4, decay_steps=2
    )
    optimizer = build_optimizer(kind, schedule, weight_decay=0.0)
    for expected in (0.01, 0.02, 0.03):
        changes = _changes(model, optimizer, _gradients(model))
        bias = next(c for path, c in changes.items() if "up/bias" in path)
        np.testing.assert_allclose(np.abs(bias), expected, rtol=0.01)


def test_the_optimizer_does_not_clip():
    # The train step does, once for all replicas.
    for kind in ("adamw", "muon"):
        optimizer = build_optimizer(kind, 0.1, weight_decay=0.1)
        assert optimizer.global_clipnorm is None
        assert optimizer.clipnorm is None
        assert optimizer.clipvalue is None


@pytest.mark.parametrize("is_scaled", [False, True])
def test_gradients_that_were_summed_are_summed_no_more(is_scaled):
    inner = optimizer = keras.optimizers.SGD(1.0)
    if is_scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(inner)
    # By this method Keras sums them; replicas are tried in distribution_test.
    pairs = [(object(), object())]
    with pytest.raises((TypeError, ValueError)):
        inner._all_reduce_sum_gradients(pairs)
    take_summed_gradients(optimizer)
    assert inner._all_reduce_sum_gradients(pairs) == pairs


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"optimizer must be .*'sgd'"):
        build_optimizer("sgd", 0.1, weight_decay=0.1)


def test_a_scaled_schedule_survives_json():
    inner = keras.optimizers.schedules.PolynomialDecay(1.0, 10, 0.0)
    schedule = ScaledSchedule(inner, 3.0)
    text = json.dumps(keras.saving.serialize_keras_object(schedule))
    rebuilt = keras.saving.deserialize_keras_object(json.loads(text))
    for step in (0, 5, 10):
        assert float(rebuilt(step)) == float(schedule(step))
        assert float(schedule(step)) == pytest.approx(3.0 - 0.3 * step)
