"""Checks whole runs of a script: stopped, and on several devices."""

import hashlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.run_sft import TINY

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = (
    "model.depth=1",
    "model.model_dim=32",
    "model.context_length=32",
    "tokenizer.kind=byte",
    "data.num_products=20",
    "data.num_documents=60",
    "data.num_chats=10",
    "data.validation_fraction=0.1",
    "train.batch_tokens=256",
    "train.log_steps=5",
    "train.evaluate_steps=10",
    "train.jit_compile=none",
    "train.steps=50",
)
# Logical devices must be asked for before anything is computed.
REPLICAS = """
import runpy, sys
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

pytestmark = pytest.mark.slow


def _start(
    folder,
    *settings,
    python=(),
    script="run_pretrain",
    defaults=SETTINGS,
    **environment,
):
    return subprocess.Popen(
        [
            sys.executable,
            *python,
            f"experiments/{script}.py",
            *defaults,
            f"run_dir={folder}",
            *settings,
        ],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _start_workers(folder, *settings, count=2):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return [
        _start(
            folder,
            *settings,
            TF_CONFIG=json.dumps(
                {
                    "cluster": {"worker": addresses},
                    "task": {"type": "worker", "index": index},
                }
            ),
        )
        for index in range(count)
    ]


def _end(process):
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def _finish(process):
    code, output, errors = _end(process)
    assert code == 0, errors[-3000:]
    return output


def _wait_for(process, folder, step):
    """Returns once a run has told of a step."""
    path = folder / "metrics.jsonl"
    while process.poll() is None:
        text = path.read_text() if path.is_file() else ""
        if any(json.loads(line)["step"] >= step for line in text.splitlines()):
            return
        time.sleep(0.02)
    pytest.fail(f"ended before step {step}: {_end(process)}")


def _losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return {(e["step"], e["split"]): e["loss"] for e in events if "loss" in e}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The losses that one device has."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    _finish(_start(folder))
    return _losses(folder)


def _check_same(folder, alone, *, atol=1e-5):
    losses = _losses(folder)
    assert list(losses) == list(alone)
    np.testing.assert_allclose(
        list(losses.values()), list(alone.values()), atol=atol, rtol=0
    )


def _bits(folder):
    """Returns hashes of all that a run leaves but for the times."""
    told = (folder / "metrics.jsonl").read_text()
    told = re.sub(r'"tokens_per_second": [^,}]+', "", told)
    files = [*folder.glob("**/*.safetensors"), folder / "result.json"]
    return told, {
        file.relative_to(folder): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


@pytest.mark.parametrize("jit_compile", ["true", "false"])
def test_a_run_that_another_process_ends_has_the_same_bits(
    jit_compile, tmp_path
):
    settings = f"train.jit_compile={jit_compile}", "model.dropout_rate=0.2"
    _finish(_start(tmp_path / "undisturbed", *settings))
    for stop in (10, 25):
        process = _start(tmp_path / "stopped", *settings)
        _wait_for(process, tmp_path / "stopped", stop)
        process.send_signal(signal.SIGINT)
        assert _end(process)[0] == 128 + signal.SIGINT
    assert "goes on at step" in _finish(_start(tmp_path / "stopped", *settings))
    assert _bits(tmp_path / "stopped") == _bits(tmp_path / "undisturbed")


def test_two_workers_run_the_script_as_one_process_does(tmp_path, alone):
    folder = tmp_path / "run"
    chief, other = map(_finish, _start_workers(folder))
    _check_same(folder, alone)
    # Only the first one writes and tells.
    assert "bits a byte" in chief and "base 50/50" in chief
    assert not other.strip()
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_killed_worker_is_told_and_all_go_on_from_the_checkpoint(
    tmp_path, alone
):
    folder = tmp_path / "run"
    chief, other = _start_workers(folder)
    _wait_for(chief, folder, 25)
    other.kill()
    code, _, errors = _end(chief)
    assert code == 2
    assert errors.strip().splitlines()[-1] == (
        "error: a worker was lost: start all of them again, they go on from "
        "the last checkpoint."
    )
    assert "Traceback" not in errors
    _end(other)
    chief, _ = map(_finish, _start_workers(folder))
    assert "goes on at step 20" in chief
    _check_same(folder, alone)


def test_one_worker_that_is_told_to_stop_stops_all_of_them(tmp_path, alone):
    folder = tmp_path / "run"
    workers = _start_workers(folder)
    _wait_for(workers[0], folder, 15)
    workers[1].send_signal(signal.SIGTERM)
    ends = list(map(_end, workers))
    assert [code for code, *_ in ends] == [128 + signal.SIGTERM] * 2
    assert "and saved; the same command" in ends[0][2]
    # One device goes on with what two had.
    assert "goes on at step" in _finish(_start(folder))
    _check_same(folder, alone)


def test_replicas_go_on_with_what_parts_on_one_device_began(tmp_path, alone):
    folder = tmp_path / "run"
    first = _start(folder, "train.accumulate_steps=4")
    _wait_for(first, folder, 25)
    first.send_signal(signal.SIGTERM)
    assert _end(first)[0] == 128 + signal.SIGTERM
    output = _finish(
        _start(folder, "distribute=mirrored", python=("-c", REPLICAS))
    )
    assert "this run began with replicas 1; with 2" in output
    _check_same(folder, alone)


def test_what_replicas_cannot_do_is_told_before_anything_is_done(tmp_path):
    cases = {
        "train.jit_compile=true": "XLA compiles for one device",
        "train.batch_tokens=224": "7 rows a step cannot be cut into 2",
    }
    for setting, told in cases.items():
        process = _start(
            tmp_path / "run",
            "distribute=mirrored",
            setting,
            python=("-c", REPLICAS),
        )
        code, _, errors = _end(process)
        assert code == 2
        assert told in errors.strip().splitlines()[-1]
        assert "Traceback" not in errors


FOUR_DEVICES = "--xla_force_host_platform_device_count=4"


@pytest.mark.parametrize(
    "backends", [("jax", "tensorflow"), ("tensorflow", "jax")]
)
def test_a_backend_goes_on_with_what_another_began(backends, tmp_path, alone):
    pytest.importorskip("jax", reason="jax is not installed")
    folder = tmp_path / "run"
    first = _start(folder, KERAS_BACKEND=backends[0])
    _wait_for(first, folder, 25)
    first.send_signal(signal.SIGTERM)
    assert _end(first)[0] == 128 + signal.SIGTERM
    # Four devices share the rows of a step under JAX.
    output = _finish(
        _start(folder, KERAS_BACKEND=backends[1], XLA_FLAGS=FOUR_DEVICES)
    )
    assert f"this run began with backend {backends[0]}" in output
    assert "goes on at step" in output
    losses = _losses(folder)
    assert list(losses) == list(alone)
    # Fresh weights are drawn otherwise under JAX.
    if backends[0] == "tensorflow":
        # Muon makes much of the last digits: 1e-6 apart five steps later, 1e-4
        # at the end.
        _check_same(folder, alone, atol=3e-4)
        assert losses[30, "train"] == pytest.approx(
            alone[30, "train"], abs=1e-5
        )
        assert "left to TensorFlow" in output
        # What is left, TensorFlow does.
        assert "bits a byte" in _finish(_start(folder))


def test_a_run_under_jax_has_the_same_bits_when_another_process_ends_it(
    tmp_path,
):
    pytest.importorskip("jax", reason="jax is not installed")
    settings = ("model.dropout_rate=0.2",)
    jax = {"KERAS_BACKEND": "jax"}
    _finish(_start(tmp_path / "undisturbed", *settings, **jax))
    process = _start(tmp_path / "stopped", *settings, **jax)
    _wait_for(process, tmp_path / "stopped", 25)
    process.send_signal(signal.SIGINT)
    assert _end(process)[0] == 128 + signal.SIGINT
    _finish(_start(tmp_path / "stopped", *settings, **jax))
    assert _bits(tmp_path / "stopped") == _bits(tmp_path / "undisturbed")


def test_both_stages_of_a_chat_model_train_under_jax(tmp_path):
    pytest.importorskip("jax", reason="jax is not installed")
    rows = TINY.describe()
    arguments = {
        "script": "run_sft",
        "defaults": [
            f"{key}={'none' if value is None else value}"
            for key, _, _, value, _ in rows
            if key not in ("run_dir", "export_dir")
        ],
    }
    settings = tmp_path / "run", f"export_dir={tmp_path / 'export'}"
    output = _finish(_start(*settings, **arguments, KERAS_BACKEND="jax"))
    assert "base 4/4" in output and "chat 4/4" in output
    assert output.splitlines()[-1].endswith("without KERAS_BACKEND goes on.")
    assert not list((tmp_path / "export").iterdir())
    # What is left, TensorFlow does with the same weights.
    output = _finish(_start(*settings, **arguments))
    assert "base: already trained" in output
    assert "chat: already trained" in output
    assert (tmp_path / "run" / "report.md").is_file()
    assert (tmp_path / "export" / "1" / "saved_model.pb").is_file()


def test_rows_that_devices_cannot_share_are_refused_under_jax(tmp_path):
    pytest.importorskip("jax", reason="jax is not installed")
    code, _, errors = _end(
        _start(
            tmp_path / "run",
            "train.batch_tokens=192",
            KERAS_BACKEND="jax",
            XLA_FLAGS=FOUR_DEVICES,
        )
    )
    assert code == 2
    assert "6 rows a step cannot be cut into 4" in errors.splitlines()[-1]
    assert "Traceback" not in errors
