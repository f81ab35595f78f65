import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from kerasgpt.training import losses
from kerasgpt.training.losses import distillation_loss, next_token_loss


def _from_logits(logits, targets, sample_weight, total_weight=None):
    """Logits as hidden states, which the identity turns into themselves."""
    logits = ops.array(logits, "float32")
    kernel = ops.eye(logits.shape[-1])
    return next_token_loss(
        logits,
        kernel,
        ops.array(targets),
        sample_weight,
        total_weight=total_weight,
    )


def test_the_loss_of_a_token_worked_by_hand():
    # Logits (ln 3, 0) give the probabilities 3/4 and 1/4.
    logits = [[[np.log(3.0), 0.0], [np.log(3.0), 0.0]]]
    loss, each, hits = _from_logits(logits, [[0, 1]], [[1.0, 3.0]])
    np.testing.assert_allclose(each, [[np.log(4 / 3), np.log(4)]], rtol=1e-6)
    mean = (np.log(4 / 3) + 3 * np.log(4)) / 4
    assert float(loss) == pytest.approx(mean, rel=1e-6)
    np.testing.assert_array_equal(hits, [[1.0, 0.0]])


def test_of_equal_logits_the_first_is_the_guess():
    _, _, hits = _from_logits(np.zeros((1, 3, 3)), [[0, 1, 2]], np.ones((1, 3)))
    np.testing.assert_array_equal(hits, [[1.0, 0.0, 0.0]])


def test_the_losses_of_parts_add_up_to_that_of_the_whole():
    logits = np.random.default_rng(0).normal(size=(4, 3, 2))
    targets = np.array([[0, 1, 1]] * 4)
    weights = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 0, 1]], "float32")
    whole, *_ = _from_logits(logits, targets, weights)
    total = ops.sum(weights)
    parts = [
        _from_logits(logits[i:j], targets[i:j], weights[i:j], total)[0]
        for i, j in ((0, 1), (1, 2), (2, 4))
    ]
    assert float(parts[1]) == 0.0
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-6)


def test_large_logits_stay_finite():
    loss, each, _ = _from_logits([[[1e4, 0.0]]], [[1]], [[1.0]])
    assert float(each[0, 0]) == pytest.approx(1e4)
    assert float(loss) == pytest.approx(1e4)


def test_without_a_counted_token_the_loss_is_zero():
    loss, _, _ = _from_logits([[[1.0, 0.0]]], [[1]], [[0.0]])
    assert float(loss) == 0.0


def test_losses_are_float32_whatever_the_hidden_states_are():
    hidden_states = ops.cast(ops.zeros((1, 1, 2)), "bfloat16")
    loss, each, _ = next_token_loss(
        hidden_states, ops.zeros((3, 2)), [[1]], [[1.0]]
    )
    assert loss.dtype == each.dtype == "float32"
    assert float(loss) == pytest.approx(np.log(3), rel=1e-6)


def _random_case():
    rng = np.random.default_rng(0)
    return (
        tf.constant(rng.normal(size=(3, 7, 5)), tf.float32),
        tf.constant(rng.normal(size=(11, 5)), tf.float32),
        rng.integers(0, 11, (3, 7)),
        tf.constant(
            rng.random((3, 7)) * (rng.random((3, 7)) < 0.7), tf.float32
        ),
    )


def _loss_and_gradients(function, hidden_states, kernel, *rest):
    with tf.GradientTape() as tape:
        tape.watch([hidden_states, kernel])
        loss, *outputs = function(hidden_states, kernel, *rest)
        # A factor, so that the gradient from above is not one.
        doubled = 2.0 * loss
    return doubled, *tape.gradient(doubled, [hidden_states, kernel]), *outputs


def _plain(hidden_states, kernel, targets, sample_weight):
    """Keras' own cross-entropy, over logits that exist whole."""
    logits = ops.matmul(hidden_states, ops.transpose(kernel))
    each = ops.sparse_categorical_crossentropy(
        targets, logits, from_logits=True
    )
    loss = ops.sum(each * sample_weight) / ops.sum(sample_weight)
    hits = ops.equal(ops.argmax(logits, axis=-1), targets)
    return loss, each, ops.cast(hits, "float32")


# 21 tokens of 11 logits: one chunk; chunks that fit; a last one to fill up.
@pytest.mark.parametrize("tokens_a_chunk", [21, 7, 4])
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("is_wide", [False, True])
def test_losses_and_gradients_equal_those_of_keras(
    tokens_a_chunk, jit_compile, is_wide, monkeypatch
):
    monkeypatch.setattr(losses, "is_faster_wide", lambda *shape: is_wide)
    monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * 11 * tokens_a_chunk)
    monkeypatch.setattr(losses, "LEAST_KERNELS", 0)
    case = _random_case()
    chunked = tf.function(
        lambda: _loss_and_gradients(next_token_loss, *case),
        jit_compile=jit_compile,
    )
    expected = _loss_and_gradients(_plain, *case)
    for actual, value in zip(chunked(), expected, strict=True):
        np.testing.assert_allclose(actual, value, rtol=1e-5, atol=1e-6)


def test_logits_never_exist_whole(monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * 11 * 7)
    monkeypatch.setattr(losses, "LEAST_KERNELS", 0)
    graph = (
        tf.function(
            lambda: _loss_and_gradients(next_token_loss, *_random_case())
        )
        .get_concrete_function()
        .graph
    )
    shapes = [
        tuple(output.shape)
        for part in [graph, *graph._functions.values()]
        for operation in getattr(part, "graph", part).get_operations()
        for output in operation.outputs
        if output.shape.rank is not None
    ]
    assert (7, 11) in shapes
    assert all(
        np.prod(shape) < 21 * 11 for shape in shapes if None not in shape
    )


# Prints the loss, and FLOPs of a device, by number of devices.
ON_DEVICES = """
import json
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from kerasgpt.training import losses

losses.CHUNK_BYTES, losses.LEAST_KERNELS = 2**17, 0.0
rng = np.random.default_rng(0)
states = rng.normal(size=(8, 32, 16)).astype("float32")
kernel = rng.normal(size=(512, 16)).astype("float32")
targets = rng.integers(512, size=(8, 32))
found = {}
for count in (1, 4):
    mesh = Mesh(np.array(jax.devices()[:count]), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    arguments = (
        jax.device_put(states, rows),
        jax.device_put(kernel, whole),
        jax.device_put(targets, rows),
    )
    compiled = jax.jit(
        jax.value_and_grad(
            lambda states, kernel, targets: losses.next_token_loss(
                states, kernel, targets, np.ones((8, 32), "float32")
            )[0],
            argnums=(0, 1),
        ),
        out_shardings=(whole, (rows, whole)),
    ).lower(*arguments).compile()
    loss, gradients = compiled(*arguments)
    sums = [float(abs(gradient).sum()) for gradient in gradients]
    found[count] = [[float(loss), *sums], compiled.cost_analysis()["flops"]]
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="jax is not installed"
)
def test_devices_that_share_a_batch_share_each_chunk():
    process = subprocess.run(
        [sys.executable, "-c", ON_DEVICES],
        env={
            **os.environ,
            "KERAS_BACKEND": "jax",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    found = json.loads(process.stdout.splitlines()[-1])
    (alone, flops), (together, part) = found["1"], found["4"]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert part < 0.3 * flops


def _distilled(logits, teacher, targets, weights, **settings):
    """Logits as hidden states, which the identity turns into themselves."""
    eye = ops.eye(np.shape(logits)[-1])
    return distillation_loss(
        ops.array(logits, "float32"),
        eye,
        ops.array(targets),
        ops.array(weights, "float32"),
        teacher_states=ops.array(teacher, "float32"),
        teacher_kernel=eye,
        **settings,
    )


def test_a_distilled_token_worked_by_hand():
    # Student (1/2, 1/2), teacher (3/4, 1/4); at T = 2 the teacher has
    # (sqrt 3, 1) / (1 + sqrt 3).
    share = np.sqrt(3) / (1 + np.sqrt(3))
    divergence = share * np.log(2 * share) + (1 - share) * np.log(
        2 * (1 - share)
    )
    loss, each, hits = _distilled(
        [[[0.0, 0.0]]],
        [[[np.log(3.0), 0.0]]],
        [[0]],
        [[1.0]],
        temperature=2.0,
        teacher_fraction=0.25,
    )
    expected = 0.75 * np.log(2) + 0.25 * 4 * divergence
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(each, [[np.log(2)]], rtol=1e-6)
    np.testing.assert_array_equal(hits, [[1.0]])


@pytest.mark.parametrize("chunk_bytes", [16 * 2**20, 64])
def test_gradients_of_distillation_are_those_of_the_formula(
    monkeypatch, chunk_bytes
):
    monkeypatch.setattr(losses, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(losses, "LEAST_KERNELS", 0.0)
    rng = np.random.default_rng(0)
    hidden = tf.Variable(rng.normal(size=(2, 3, 4)).astype("float32"))
    kernel = tf.Variable(rng.normal(size=(5, 4)).astype("float32"))
    states = tf.constant(rng.normal(size=(2, 3, 6)).astype("float32"))
    teacher_kernel = tf.constant(rng.normal(size=(5, 6)).astype("float32"))
    targets = rng.integers(0, 5, (2, 3))
    weights = np.array([[1, 0, 2], [1, 1, 0]], "float32")
    temperature, fraction = 2.5, 0.7

    def formula():
        logits = hidden @ tf.transpose(kernel)
        own = tf.nn.log_softmax(logits / temperature)
        other = tf.nn.log_softmax(
            states @ tf.transpose(teacher_kernel) / temperature
        )
        divergence = tf.reduce_sum(tf.exp(other) * (other - own), -1)
        text = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
        costs = (1 - fraction) * text + fraction * temperature**2 * divergence
        return tf.reduce_sum(costs * weights) / weights.sum()

    def ours():
        return distillation_loss(
            hidden,
            kernel,
            targets,
            weights,
            teacher_states=states,
            teacher_kernel=teacher_kernel,
            temperature=temperature,
            teacher_fraction=fraction,
        )[0]

    found = []
    for loss_of in (formula, ours):
        with tf.GradientTape() as tape:
            loss = loss_of()
        found.append([loss, *tape.gradient(loss, [hidden, kernel])])
    for expected, actual in zip(*found, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_a_student_that_says_what_its_teacher_does_has_no_gradient():
    hidden = tf.Variable([[[0.3, -1.0, 2.0]]])
    with tf.GradientTape() as tape:
        loss, *_ = _distilled(
            hidden,
            hidden,
            [[0]],
            [[1.0]],
            temperature=3.0,
            teacher_fraction=1.0,
        )
    assert float(loss) == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(tape.gradient(loss, hidden), 0.0, atol=1e-6)
