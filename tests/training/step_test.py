import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from kerasgpt.models import GPTCausalLM, GPTConfig
from kerasgpt.training.optimizers import build_optimizer
from kerasgpt.training.step import TrainStep
from tests.training import replicas_worker

LN = np.log


class Table(keras.Model):
    """Logits are a row of a table, times a number that comes with the data.

    A root of zero is added, whose gradient is infinite, if asked for.
    """

    def __init__(self, table, *, with_root=False, dtype=None):
        super().__init__(dtype=dtype)
        self.start = np.array(table, "float32")
        self.with_root = with_root

    def build(self, input_shape=None):
        self.table = self.add_weight(
            shape=self.start.shape, initializer="zeros", name="table"
        )
        self.table.assign(self.start)
        if self.with_root:
            self.root = self.add_weight(
                shape=(), initializer="zeros", name="root"
            )
        self.built = True

    def read(self, inputs, training=None):
        logits = ops.take(self.table, inputs["token_ids"], axis=0)
        if self.with_root:
            logits = logits + ops.sqrt(self.root) * ops.arange(2.0)
        return logits * inputs["scale"][:, :, None]

    def output_kernel(self):
        return ops.eye(2)


# Token 0 gives the probabilities 3/4 and 1/4, token 1 a half each.
TABLE = [[LN(3), 0.0], [0.0, 0.0]]


def _batch(token_ids, targets, weights, scale=1.0):
    token_ids = np.array(token_ids, "int32")
    scale = np.full(token_ids.shape, scale, "float32")
    return (
        {"token_ids": token_ids, "scale": scale},
        np.array(targets, "int32"),
        np.array(weights, "float32"),
    )


# Rows with 3 tokens and with 1: rows may not count the same.
UNEVEN = _batch(
    [[0, 0, 1], [1, 0, 0]], [[0, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 0, 0]]
)
UNEVEN_LOSS = (LN(4 / 3) + LN(4) + LN(2) + LN(2)) / 4
# Per token 0: (3/4 - 1, 1/4) and (3/4, 1/4 - 1), over 4 tokens; the two
# tokens 1 pull in opposite directions.
UNEVEN_GRADIENT = np.array([[0.125, -0.125], [0.0, 0.0]])
NOT_A_NUMBER = _batch([[0, 1]], [[1, 1]], [[1, 1]], scale=np.nan)


def _step(
    optimizer=None, *, table=TABLE, with_root=False, dtype=None, **settings
):
    model = Table(table, with_root=with_root, dtype=dtype)
    step = TrainStep(model, **settings)
    step.build()
    # Plain: one step is not worth a second of compiling.
    step.compile(optimizer or keras.optimizers.SGD(1.0), jit_compile=False)
    return step


def _run(step, *batches):
    """Returns the metrics after one pass over some batches."""
    step.reset_metrics()
    for batch in batches:
        logs = step.train_step(keras.tree.map_structure(tf.constant, batch))
    return {name: float(value) for name, value in logs.items()}


def _table(step):
    return ops.convert_to_numpy(step.model.table)


def _built(step):
    step.optimizer.build(step.model.trainable_variables)
    return step


def test_loss_and_update_are_means_over_the_tokens_that_count():
    step = _built(_step())
    logs = _run(step, UNEVEN)
    assert logs["loss"] == pytest.approx(UNEVEN_LOSS, rel=1e-5)
    assert logs["gradient_norm"] == pytest.approx(
        np.linalg.norm(UNEVEN_GRADIENT), rel=1e-5
    )
    np.testing.assert_allclose(
        _table(step), np.array(TABLE) - UNEVEN_GRADIENT, atol=1e-6
    )


def test_fit_gives_the_same_and_so_does_xla():
    for jit_compile in (False, True):
        step = _step()
        step.compile(keras.optimizers.SGD(1.0), jit_compile=jit_compile)
        data = tf.data.Dataset.from_tensors(UNEVEN)
        history = step.fit(data, verbose=0).history
        assert history["loss"] == pytest.approx([UNEVEN_LOSS], rel=1e-5)
        assert history["skipped_steps"] == [0.0]
        np.testing.assert_allclose(
            _table(step), np.array(TABLE) - UNEVEN_GRADIENT, atol=1e-6
        )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_micro_batches_do_not_count_the_same_either(jit_compile):
    step = _step(accumulate_steps=2, token_bytes=[2, 3])
    step.compile(keras.optimizers.SGD(1.0), jit_compile=jit_compile)
    data = tf.data.Dataset.from_tensors(UNEVEN)
    history = step.fit(data, shuffle=False, verbose=0).history
    assert history["loss"] == pytest.approx([UNEVEN_LOSS], rel=1e-5)
    assert history["accuracy"] == pytest.approx([2 / 4])
    assert history["gradient_norm"] == pytest.approx(
        [np.linalg.norm(UNEVEN_GRADIENT)], rel=1e-5
    )
    np.testing.assert_allclose(
        _table(step), np.array(TABLE) - UNEVEN_GRADIENT, atol=1e-6
    )


def test_fifty_accumulated_steps_are_fifty_whole_ones():
    strategy = tf.distribute.get_strategy()
    whole, cut = (
        replicas_worker.train(strategy, steps=50, accumulate_steps=count)
        for count in (1, 4)
    )
    for metrics, expected in zip(cut["metrics"], whole["metrics"], strict=True):
        for name, tolerance in (("loss", 1e-5), ("gradient_norm", 1e-4)):
            assert metrics[name] == pytest.approx(expected[name], abs=tolerance)
        for name in ("accuracy", "skipped_steps"):
            assert metrics[name] == expected[name]
    assert sum(step["skipped_steps"] for step in cut["metrics"]) == 2.0


def test_a_scaled_loss_teaches_the_same_and_is_scaled_less_after_a_bad_step():
    step = _step(clip_norm=0.05, dtype="mixed_float16")
    optimizer = step.optimizer
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    scale = float(optimizer.dynamic_scale)
    logs = _run(step, UNEVEN)
    norm = np.linalg.norm(UNEVEN_GRADIENT)
    assert logs["loss"] == pytest.approx(UNEVEN_LOSS, rel=1e-5)
    assert logs["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    change = _table(step) - np.array(TABLE)
    np.testing.assert_allclose(
        change, -UNEVEN_GRADIENT * 0.05 / norm, atol=1e-6
    )
    before = _table(step)
    assert _run(step, NOT_A_NUMBER)["skipped_steps"] == 1.0
    np.testing.assert_array_equal(_table(step), before)
    assert int(optimizer.iterations) == 1
    assert float(optimizer.dynamic_scale) == scale / 2


def test_accuracy_counts_the_tokens_that_count():
    # Token 0 says 0; of two equal logits the first one is taken.
    logs = _run(_built(_step()), UNEVEN)
    assert logs["accuracy"] == pytest.approx(2 / 4)


def test_bits_per_byte_are_those_of_the_counted_tokens():
    step = _built(_step(token_bytes=[2, 3]))
    logs = _run(step, UNEVEN)
    bits = UNEVEN_LOSS * 4 / LN(2)
    assert logs["bits_per_byte"] == pytest.approx(bits / (2 + 3 + 2 + 3))


def test_metrics_are_means_over_tokens_of_all_batches():
    step = _built(_step(keras.optimizers.SGD(0.0)))
    few = _batch([[0, 0, 0]], [[1, 1, 1]], [[1, 0, 0]])
    logs = _run(step, UNEVEN, few)
    assert logs["loss"] == pytest.approx((4 * UNEVEN_LOSS + LN(4)) / 5)
    assert logs["accuracy"] == pytest.approx(2 / 5)


def test_gradients_are_clipped_by_their_common_norm():
    norm = np.linalg.norm(UNEVEN_GRADIENT)
    step = _built(_step(clip_norm=0.05))
    logs = _run(step, UNEVEN)
    change = _table(step) - np.array(TABLE)
    assert np.linalg.norm(change) == pytest.approx(0.05, rel=1e-4)
    np.testing.assert_allclose(
        change, -UNEVEN_GRADIENT * 0.05 / norm, atol=1e-6
    )
    # The norm that is told is the one before clipping.
    assert logs["gradient_norm"] == pytest.approx(norm, rel=1e-5)


def test_a_batch_without_a_counted_token_teaches_nothing():
    step = _built(_step())
    logs = _run(step, _batch([[0, 1]], [[1, 0]], [[0, 0]]))
    assert logs["gradient_norm"] == 0.0
    assert logs["skipped_steps"] == 0.0
    assert logs["loss"] == 0.0
    np.testing.assert_allclose(_table(step), TABLE, atol=1e-6)


def _state(step):
    variables = [*step.model.variables, *step.optimizer.variables]
    return {v.path: ops.convert_to_numpy(v).copy() for v in variables}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_batch_that_is_not_a_number_changes_nothing(kind):
    optimizer = build_optimizer(kind, 0.1, weight_decay=0.1)
    step = _built(_step(optimizer))
    _run(step, UNEVEN)
    before = _state(step)
    assert len(before) > 3
    logs = _run(step, NOT_A_NUMBER)
    for path, value in _state(step).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)
    assert logs["skipped_steps"] == 1.0
    assert all(np.isfinite(value) for value in logs.values())
    assert int(step.optimizer.iterations) == 1


@pytest.mark.parametrize("scale", [np.inf, -np.inf, np.nan])
def test_a_skipped_batch_leaves_no_trace(scale):
    bad = _batch([[0, 1]], [[1, 1]], [[1, 1]], scale=scale)

    def run(*batches):
        step = _built(_step(build_optimizer("adamw", 0.1, weight_decay=0.1)))
        return _run(step, *batches), _state(step)

    logs, state = run(UNEVEN, bad, UNEVEN, bad)
    expected_logs, expected = run(UNEVEN, UNEVEN)
    for value, other in zip(state.values(), expected.values(), strict=True):
        np.testing.assert_array_equal(value, other)
    assert logs.pop("skipped_steps") == 2.0
    assert expected_logs.pop("skipped_steps") == 0.0
    assert logs == pytest.approx(expected_logs)


def test_an_infinite_gradient_of_a_finite_loss_is_skipped_too():
    step = _built(_step(with_root=True))
    before = _state(step)
    logs = _run(step, UNEVEN)
    assert logs["skipped_steps"] == 1.0
    for path, value in _state(step).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)


def test_skipped_steps_are_counted_under_xla_too():
    step = _step()
    step.compile(keras.optimizers.SGD(1.0), jit_compile=True)
    padded = [np.tile(array, (2, 1)) for array in ([[0, 1, 1]], [[1, 1, 1]])]
    bad = _batch(*padded, np.ones((2, 3)), scale=np.nan)
    good = tf.data.Dataset.from_tensors(UNEVEN)
    data = good.concatenate(tf.data.Dataset.from_tensors(bad))
    history = step.fit(data, verbose=0).history
    assert history["skipped_steps"] == [1.0]
    assert history["loss"] == pytest.approx([UNEVEN_LOSS], rel=1e-5)
    np.testing.assert_allclose(
        _table(step), np.array(TABLE) - UNEVEN_GRADIENT, atol=1e-6
    )


def _small_gpt(**changes):
    config = GPTConfig.from_depth(
        1, vocabulary_size=17, context_length=8, model_dim=32, **changes
    )
    keras.utils.set_random_seed(0)
    return GPTCausalLM(config)


def _random_batches(num_rows, count=3):
    rng = np.random.default_rng(num_rows)
    for _ in range(count):
        token_ids = rng.integers(0, 17, (num_rows, 9)).astype("int32")
        # Of unequal weight, so that halves may not count the same.
        weights = (rng.random((num_rows, 8)) < 0.7).astype("float32")
        yield {"token_ids": token_ids[:, :-1]}, token_ids[:, 1:], weights


def _fitted(model, batches, *, jit_compile=True, **settings):
    """Returns the step, its metrics and state after a pass over batches."""
    step = TrainStep(model, token_bytes=[2] * 17, **settings)
    step.build()
    step.compile(
        build_optimizer("adamw", 0.01, weight_decay=0.1),
        jit_compile=jit_compile,
    )
    batches = list(batches)
    data = tf.data.Dataset.from_tensors(batches[0])
    for batch in batches[1:]:
        data = data.concatenate(tf.data.Dataset.from_tensors(batch))
    return step, step.fit(data, verbose=0).history, _state(step)


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})


@pytest.mark.parametrize(("num_rows", "accumulate_steps"), [(4, 1), (8, 2)])
def test_two_halves_are_a_batch(num_rows, accumulate_steps, two_cores):
    batches = list(_random_batches(num_rows))
    step, history, state = _fitted(
        _small_gpt(), batches, accumulate_steps=accumulate_steps
    )
    assert step.parts_at_once == 2
    plain, expected_history, expected = _fitted(
        _small_gpt(), batches, jit_compile=False
    )
    assert plain.parts_at_once == 1
    assert len(history) == 5
    for name, values in history.items():
        assert values == pytest.approx(expected_history[name], rel=1e-5)
    # Variables are named after their step's number.
    for one, other in zip(state.values(), expected.values(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_rows_that_have_no_halves_are_a_batch_too(two_cores):
    batches = list(_random_batches(3))
    step, history, _ = _fitted(_small_gpt(), batches)
    assert step.parts_at_once == 2
    _, expected, _ = _fitted(_small_gpt(), batches, jit_compile=False)
    assert history["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_a_bad_half_leaves_no_trace(two_cores):
    good, *more = _random_batches(4)
    bad_rows = good[2].copy()
    bad_rows[3, 0] = np.nan
    bad = (*good[:2], bad_rows)
    _, history, state = _fitted(_small_gpt(), [good, bad, *more])
    _, _, expected = _fitted(_small_gpt(), [good, *more])
    assert history["skipped_steps"] == [1.0]
    for one, other in zip(state.values(), expected.values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_draws_random_numbers_is_not_cut(two_cores):
    for rate, parts in ((0.0, 2), (0.1, 1)):
        step = TrainStep(_small_gpt(dropout_rate=rate))
        step.build()
        step.compile("sgd", jit_compile=True)
        assert step.parts_at_once == parts


def test_evaluation_tells_the_loss_and_changes_nothing():
    step = _step(token_bytes=[2, 3])
    data = tf.data.Dataset.from_tensors(UNEVEN)
    logs = step.evaluate(data, verbose=0, return_dict=True)
    assert sorted(logs) == ["accuracy", "bits_per_byte", "loss"]
    assert logs["loss"] == pytest.approx(UNEVEN_LOSS, rel=1e-5)
    np.testing.assert_allclose(_table(step), TABLE, atol=1e-6)


def test_evaluation_ignores_rows_that_fill_up():
    step = _step()
    whole = step.evaluate(
        tf.data.Dataset.from_tensors(UNEVEN), verbose=0, return_dict=True
    )
    filled = _batch(*(np.concatenate([a, a]) for a in _plain(UNEVEN)))
    filled[2][2:] = 0.0
    logs = step.evaluate(
        tf.data.Dataset.from_tensors(filled), verbose=0, return_dict=True
    )
    assert logs == pytest.approx(whole)


def _plain(batch):
    inputs, targets, weights = batch
    return inputs["token_ids"], targets, weights


def test_the_wrapped_model_is_what_is_trained_and_called():
    config = GPTConfig.from_depth(1, vocabulary_size=11, model_dim=32)
    model = GPTCausalLM(config)
    step = TrainStep(model)
    step.build()
    inputs = {"token_ids": ops.array([[1, 2, 3]])}
    np.testing.assert_array_equal(step(inputs), model(inputs))
    trained = {weight.path for weight in step.trainable_weights}
    assert trained == {weight.path for weight in model.trainable_weights}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_one_batch_is_learned_by_heart(kind):
    config = GPTConfig.from_depth(
        1, vocabulary_size=17, context_length=8, model_dim=32
    )
    step = TrainStep(GPTCausalLM(config))
    step.build()
    optimizer = build_optimizer(kind, 0.01, weight_decay=0.0)
    step.compile(optimizer, jit_compile=False)
    token_ids = np.random.default_rng(0).integers(0, 17, (2, 9))
    token_ids = token_ids.astype("int32")
    batch = (
        {"token_ids": token_ids[:, :-1]},
        token_ids[:, 1:],
        np.ones((2, 8), "float32"),
    )
    for _ in range(60):
        logs = step.train_on_batch(*batch, return_dict=True)
        step.reset_metrics()
    assert logs["loss"] < 0.1
