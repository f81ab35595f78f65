"""Trains a small model under the backend of the environment.

Command   KERAS_BACKEND=jax python backend_worker.py MODEL_FOLDER \
              '{"name": {…}}'
Prints what `train` returns, by case, as JSON. Weights are those of
MODEL_FOLDER.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasgpt.checkpoints.model_folder import load_model, save_model
from kerasgpt.models import GPTCausalLM, GPTConfig
from kerasgpt.tokenizers import ByteTokenizer
from kerasgpt.training import losses
from kerasgpt.training.optimizers import build_optimizer
from tests.training.replicas_worker import LENGTH, ROWS, uneven_batches

STEPS, NUM_DEVICES = 50, 4
# Devices cut it into equal parts.
CONFIG = GPTConfig.from_depth(
    1,
    vocabulary_size=NUM_DEVICES
    * -(-ByteTokenizer().vocabulary_size // NUM_DEVICES),
    context_length=LENGTH,
    model_dim=32,
    head_dim=8,
)


def packed_batches(count):
    """Returns `uneven_batches` whose rows are two documents each."""
    half = np.arange(LENGTH // 2, dtype="int32")
    shape = (ROWS, LENGTH)
    layout = {
        "positions": np.broadcast_to(np.tile(half, 2), shape),
        "segment_ids": np.broadcast_to(np.repeat([1, 2], len(half)), shape),
    }
    return [
        ({**inputs, **layout}, *others)
        for inputs, *others in uneven_batches(count)
    ]


class _Record(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.steps = []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append({name: float(value) for name, value in logs.items()})
        self.model.reset_metrics()


def train(
    build_step,
    folder,
    *,
    steps=STEPS,
    save="",
    optimizer="muon",
    precision="float32",
    with_plain=True,
    **settings,
):
    """Returns what training does.

    Args:
        build_step: TrainStep of the backend.
        folder: str, of the model that training begins with.
        steps: int.
        save: str, folder to write the trained model to.
        optimizer, precision: see `build_optimizer` and Keras.
        with_plain: bool. Compute "plain".
        **settings: of the train step.

    Returns:
        dict: "metrics", list of dicts, one a step; "evaluation", dict; "plain"
        and "packed", logits before and after training, of rows without and
        with positions; "variables", those of the model and its optimizer.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    model, tokenizer = load_model(folder)
    keras.config.set_dtype_policy(policy)
    step = build_step(model, token_bytes=tokenizer.token_bytes, **settings)
    step.build()
    step.compile(build_optimizer(optimizer, 3e-3, weight_decay=0.1))
    batches = packed_batches(steps)
    packed, *_ = batches[0]
    plain = {"token_ids": packed["token_ids"]}
    before = model.predict_on_batch(plain) if with_plain else []
    data = tf.data.Dataset.from_tensor_slices(
        keras.tree.map_structure(lambda *arrays: np.stack(arrays), *batches)
    )
    record = _Record()
    step.fit(data, callbacks=[record], shuffle=False, verbose=0)
    evaluation = step.evaluate(data.take(5), verbose=0, return_dict=True)
    if save:
        save_model(save, model, tokenizer)
    return {
        "metrics": record.steps,
        "evaluation": evaluation,
        "plain": np.array(before).tolist(),
        "packed": np.array(model.predict_on_batch(packed)).tolist(),
        "variables": [*model.variables, *step.optimizer.variables],
    }


def save_first(folder):
    """Writes a model with fresh weights, for training to begin with."""
    model = GPTCausalLM(CONFIG, name="gpt")
    model.build()
    save_model(folder, model, ByteTokenizer())


def start_jax(folder, cases):
    """Returns a process that trains cases under JAX."""
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(folder), json.dumps(cases)],
        env={
            **os.environ,
            "KERAS_BACKEND": "jax",
            "XLA_FLAGS": "--xla_force_host_platform_device_count="
            f"{NUM_DEVICES}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process):
    """Returns what a process of `start_jax` prints."""
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output.splitlines()[-1])


@functools.cache
def start():
    """Returns a folder, and a process that trains what several tests look at.

    The folder holds the model "first" and, once `results` are there, as
    "saved" what one device made of it.
    """
    folder = tempfile.TemporaryDirectory()
    save_first(f"{folder.name}/first")
    cases = {
        "one": {"save": f"{folder.name}/saved"},
        "both": {"model_devices": 2, "with_plain": False},
    }
    return folder, start_jax(f"{folder.name}/first", cases)


@functools.cache
def results():
    """Returns the results of that process by case."""
    return result(start()[1])


def check_same(result, expected, *, atol=1e-5):
    """Checks that two trainings told the same at each step and at the end."""
    for name in expected["metrics"][0]:
        np.testing.assert_allclose(
            [metrics[name] for metrics in result["metrics"]],
            [metrics[name] for metrics in expected["metrics"]],
            # A norm adds up more numbers.
            atol=10 * atol if name == "gradient_norm" else atol,
            rtol=0,
            err_msg=name,
        )
    assert result["evaluation"] == pytest.approx(
        expected["evaluation"], abs=atol
    )


def _shards(variables):
    """Returns {path: [shape, that of a part, devices, different parts]}."""
    found = {}
    for variable in variables:
        parts = variable.value.addressable_shards
        (shape,) = {part.data.shape for part in parts}
        found[variable.path] = [
            variable.value.shape,
            shape,
            len({part.device for part in parts}),
            len({str(part.index) for part in parts}),
        ]
    return found


def _main(folder, cases):
    # Not where the other backend runs, whose loss stays in one chunk.
    from kerasgpt.training.jax_step import JaxTrainStep
    from kerasgpt.training.sharding import build_distribution

    losses.CHUNK_BYTES, losses.LEAST_KERNELS = 2**14, 0.0
    found = {}
    for name, case in cases.items():
        model_devices = case.pop("model_devices", None)
        distribution = model_devices and build_distribution(
            CONFIG, model_devices=model_devices
        )
        keras.distribution.set_distribution(distribution)
        found[name] = train(JaxTrainStep, folder, **case)
        found[name]["shards"] = _shards(found[name].pop("variables"))
    print(json.dumps(found))


if __name__ == "__main__":
    _main(sys.argv[1], json.loads(sys.argv[2]))
