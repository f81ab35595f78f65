import json
import os
import signal
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasgpt.config import InputError
from kerasgpt.training import distribution
from kerasgpt.training.distribution import (
    build_strategy,
    check_rows,
    is_chief,
    num_replicas,
    num_shares,
    read_cluster,
    resolve_jit_compile,
    spans_workers,
    sum_over_replicas,
)
from tests.training import replicas_worker

STEPS = 50


@pytest.fixture(autouse=True)
def forget_strategies():
    build_strategy.cache_clear()
    yield
    build_strategy.cache_clear()


def _cluster(*workers, index=0, kind="worker", **jobs):
    task = {"type": kind, "index": index}
    return json.dumps({"cluster": {"worker": workers, **jobs}, "task": task})


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def test_without_tf_config_and_gpus_there_is_one_device(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for distribute in ("auto", "none"):
        strategy = build_strategy(distribute)
        assert strategy.num_replicas_in_sync == num_replicas() == 1
        assert is_chief(strategy)
        assert not spans_workers(strategy)
        assert resolve_jit_compile(None, strategy)
        assert not resolve_jit_compile(False, strategy)
    assert sum_over_replicas([1.0, 2.0]) == [1.0, 2.0]


def test_a_cluster_of_one_is_one_device(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", _cluster("127.0.0.1:1"))
    assert not spans_workers(build_strategy("auto"))


@pytest.mark.parametrize(
    "backend, distribute, tf_config, told",
    [
        ("jax", "mirrored", "", "distribute=mirrored: is TensorFlow's"),
        ("jax", "tpu", "", "choose auto or none"),
        ("jax", "auto", _cluster("a:1", "b:1"), "its workers train under"),
        ("torch", "none", "", "KERAS_BACKEND=torch: training knows"),
    ],
)
def test_what_another_backend_cannot_do_is_refused(
    monkeypatch, backend, distribute, tf_config, told
):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    monkeypatch.setenv("TF_CONFIG", tf_config)
    with pytest.raises(InputError, match=told) as raised:
        build_strategy(distribute)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("distribute, num_devices", [("auto", 2), ("none", 1)])
def test_under_jax_all_devices_share_the_rows_unless_told_not_to(
    monkeypatch, distribute, num_devices
):
    class Shared:
        num_model_replicas = 2

    found = []
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(distribution, "build_distribution", Shared)
    monkeypatch.setattr(
        keras.distribution, "list_devices", lambda: ["cpu:0", "cpu:1"]
    )
    monkeypatch.setattr(keras.distribution, "set_distribution", found.append)
    monkeypatch.setattr(
        keras.distribution, "distribution", lambda: (found or [None])[0]
    )
    strategy = build_strategy(distribute)
    assert num_shares(strategy) == num_devices == 1 + len(found)
    build_strategy.cache_clear()
    # What is set already stays.
    build_strategy(distribute)
    assert num_shares(strategy) == num_devices


def test_the_chief_comes_before_the_workers():
    text = _cluster("b:1", "c:1", index=1, chief=["a:1"])
    assert read_cluster(text) == {
        "addresses": ["a:1", "b:1", "c:1"],
        "number": 2,
    }
    assert read_cluster("") is None


@pytest.mark.parametrize(
    "text, told",
    [
        ("{", r'must be \{"cluster".*received'),
        ("[]", "must be"),
        ('{"cluster": {"worker": 3}, "task": {}}', "must be"),
        (_cluster("a:1", index="one"), "must be"),
        (_cluster("a:1", "b:1", "a:1"), "names a:1 more than once"),
        (_cluster("a:1", chief=["a:1"]), "names a:1 more than once"),
        (_cluster("a"), "host:port; received 'a'"),
        (_cluster("a:99999"), "host:port; received 'a:99999'"),
        (_cluster(1), "host:port; received 1"),
        (_cluster("a:1", index=1), "this task, worker 1, is not in"),
        (_cluster("a:1", index=-1), "this task, worker -1, is not in"),
        (_cluster("a:1", kind="chief"), "this task, chief 0, is not in"),
        (_cluster("a:1", ps=["b:1"]), "no job 'ps'"),
    ],
)
def test_a_wrong_tf_config_is_told_in_one_line(text, told, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError, match=f"^TF_CONFIG: .*{told}") as caught:
        build_strategy("auto")
    assert "\n" not in str(caught.value)


def test_a_worker_that_does_not_come_is_named(monkeypatch):
    own, other = (f"127.0.0.1:{port}" for port in _free_ports(2))
    monkeypatch.setenv("TF_CONFIG", _cluster(own, other))
    monkeypatch.setattr(distribution, "WAIT_SECONDS", 0.1)
    with pytest.raises(InputError, match=f"no worker answers at {other}"):
        build_strategy("auto")


def test_a_worker_that_was_started_twice_is_told():
    with socket.socket() as first:
        first.bind(("", 0))
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} .*started twice"):
            distribution._wait_for_workers([f"127.0.0.1:{port}", "a:1"], 0)


def test_devices_that_are_not_there_are_told(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(InputError, match=r"multi_worker.*TF_CONFIG"):
        build_strategy("multi_worker")
    with pytest.raises(InputError, match="mirrored: this machine has one CPU"):
        build_strategy("mirrored")
    with pytest.raises(InputError, match="found no TPU"):
        build_strategy("tpu")


def test_what_would_silently_not_distribute_is_refused(monkeypatch):
    monkeypatch.setattr(keras.distribution, "distribution", lambda: "set")
    with pytest.raises(InputError, match="does nothing under TensorFlow"):
        build_strategy("auto")


def test_xla_on_several_devices_is_refused():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    assert resolve_jit_compile(None, strategy) is False
    with pytest.raises(InputError, match=r"=true: .*Mirrored"):
        resolve_jit_compile(True, strategy)


def test_rows_that_cannot_be_shared_equally_are_told():
    check_rows(8, replicas=2, accumulate_steps=2)
    for rows, replicas, accumulate_steps in ((7, 2, 1), (6, 2, 2), (2, 1, 4)):
        with pytest.raises(InputError, match=f"{rows} rows a step cannot be"):
            check_rows(
                rows, replicas=replicas, accumulate_steps=accumulate_steps
            )


def _start(job, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", replicas_worker.__name__, json.dumps(job)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _result(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def alone():
    """Returns what one device makes of the same batches."""
    strategy = tf.distribute.get_strategy()
    return replicas_worker.train(strategy, steps=STEPS)


def _check_same(result, alone):
    for name in alone["metrics"][0]:
        np.testing.assert_allclose(
            [metrics[name] for metrics in result["metrics"]],
            [metrics[name] for metrics in alone["metrics"]],
            # Sums in another order; a norm adds up more of them.
            atol=1e-4 if name == "gradient_norm" else 1e-5,
            rtol=0,
            err_msg=name,
        )
    assert result["evaluation"] == pytest.approx(alone["evaluation"], abs=1e-5)
    skipped = [metrics["skipped_steps"] for metrics in result["metrics"]]
    bad = [step for step, count in enumerate(skipped) if count]
    assert bad == list(replicas_worker.BAD_STEPS)
    assert max(skipped) == 1.0
    assert result["spread"] == 0.0


def test_two_replicas_train_as_one_device_does(alone):
    # Plain descent, whose way shows how often gradients were summed: others
    # take steps of one size.
    clipped = {"steps": 1, "optimizer": "sgd", "clip_norm": 0.05}
    cases = {"plain": {"steps": STEPS}, "clipped": clipped}
    results = _result(_start({"replicas": 2, "cases": cases}))
    _check_same(results["plain"], alone)
    strategy = tf.distribute.get_strategy()
    one = replicas_worker.train(strategy, **clipped)
    np.testing.assert_allclose(
        results["clipped"]["weights"], one["weights"], atol=1e-6
    )
    still = replicas_worker.train(strategy, **{**clipped, "clip_norm": 1e-9})
    way = np.subtract(one["weights"], still["weights"])
    assert np.linalg.norm(way) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.slow
def test_replicas_draw_their_own_dropout_and_leave_the_seeds_as_one_does():
    # Both replicas get the rows that one device gets.
    rates = {"dropout": 0.3, "none": 0.0}
    cases = {
        name: {"steps": 1, "dropout_rate": rate, "times": 2}
        for name, rate in rates.items()
    }
    results = _result(_start({"replicas": 2, "cases": cases}))
    strategy = tf.distribute.get_strategy()
    for name, rate in rates.items():
        one = replicas_worker.train(strategy, steps=1, dropout_rate=rate)
        norms = [
            result["metrics"][0]["gradient_norm"]
            for result in (one, results[name])
        ]
        assert (abs(norms[0] - norms[1]) < 1e-4) == (rate == 0.0)
        assert one["seeds"] == results[name]["seeds"]
        assert bool(one["seeds"]) == (rate > 0.0)


@pytest.mark.slow
def test_four_replicas_that_accumulate_do_too(alone):
    cases = {"plain": {"steps": STEPS, "accumulate_steps": 2}}
    results = _result(_start({"replicas": 4, "cases": cases}))
    _check_same(results["plain"], alone)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_replicas_train_in_mixed_precision(precision, alone):
    cases = {"plain": {"steps": STEPS, "precision": precision}}
    result = _result(_start({"replicas": 2, "cases": cases}))["plain"]
    assert result["spread"] == 0.0
    losses = [metrics["loss"] for metrics in result["metrics"]]
    expected = [metrics["loss"] for metrics in alone["metrics"]]
    np.testing.assert_allclose(losses, expected, rtol=0.02)


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_others_in_one_line():
    workers = [f"127.0.0.1:{port}" for port in _free_ports(2)]
    job = {"cases": {"plain": {"steps": 3, "kill_step": 1}}}
    first, killed = (
        _start(job, TF_CONFIG=_cluster(*workers, index=index))
        for index in range(2)
    )
    errors = first.communicate(timeout=300)[1]
    killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert "InputError: a worker was lost: start all of them again" in errors


@pytest.mark.slow
def test_two_workers_train_as_one_process_does_and_stop_together(alone):
    workers = [f"127.0.0.1:{port}" for port in _free_ports(2)]
    job = {
        "cases": {
            "plain": {"steps": STEPS},
            "stopped": {"steps": STEPS, "stop_step": 3},
        }
    }
    processes = [
        _start(job, TF_CONFIG=_cluster(*workers, index=index))
        for index in range(2)
    ]
    for result in map(_result, processes):
        _check_same(result["plain"], alone)
        # Asked after step 3 by one of them, all end with step 4.
        assert len(result["stopped"]["metrics"]) == 5
