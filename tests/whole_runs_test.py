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


def _start(folder, *settings, python=(), **environment):
    return subprocess.Popen(
        [
            sys.executable,
            *python,
            "experiments/run_pretrain.py",
            *SETTINGS,
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


def _check_same(folder, alone):
    losses = _losses(folder)
    assert list(losses) == list(alone)
    np.testing.assert_allclose(
        list(losses.values()), list(alone.values()), atol=1e-5, rtol=0
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
