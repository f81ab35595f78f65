"""Trains a small model on replicas, in a process or several of their own.

Command   python replicas_worker.py '{"replicas": 2, "cases": {"name": {…}}}'
          (with TF_CONFIG set: without replicas)
Prints what `train` returns, by case, as JSON.
"""

import json
import os
import signal
import sys

import keras
import numpy as np
import tensorflow as tf

from kerasgpt.models import GPTCausalLM, GPTConfig
from kerasgpt.training.distribution import build_strategy, is_chief
from kerasgpt.training.optimizers import build_optimizer
from kerasgpt.training.step import TrainStep

VOCABULARY_SIZE, ROWS, LENGTH = 32, 8, 16
EMPTY_STEPS, BAD_STEPS = (5, 6), (10, 20)


def uneven_batches(count):
    """Returns batches of which the last rows have most of the tokens.

    In some, half of the rows have none; in some, one weight is not a number.
    """
    rng = np.random.default_rng(0)
    batches = []
    for step in range(count):
        ids = rng.integers(VOCABULARY_SIZE, size=(ROWS, LENGTH + 1))
        ids = ids.astype("int32")
        share = np.linspace(0.1, 1.0, ROWS)[:, None]
        weights = (rng.random((ROWS, LENGTH)) < share).astype("float32")
        if step in EMPTY_STEPS:
            weights[: ROWS // 2] = 0.0
        if step in BAD_STEPS:
            weights[-1, -1] = np.nan
        batches.append(({"token_ids": ids[:, :-1]}, ids[:, 1:], weights))
    return batches


class _Record(keras.callbacks.Callback):
    """Keeps the metrics of each step, and may end all processes but one."""

    def __init__(self, stop_step, kill_step):
        super().__init__()
        self.stop_step = stop_step
        self.kill_step = kill_step
        self.steps = []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append({name: float(value) for name, value in logs.items()})
        self.model.reset_metrics()
        if is_chief(self.model.distribute_strategy):
            return
        if batch == self.stop_step:
            self.model.stop_training = True
        if batch == self.kill_step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(
    strategy,
    *,
    steps,
    accumulate_steps=1,
    clip_norm=1.0,
    dropout_rate=0.0,
    precision="float32",
    times=1,
    optimizer="muon",
    stop_step=None,
    kill_step=None,
):
    """Returns what training does, and what it leaves on each replica.

    Args:
        strategy: tf.distribute.Strategy.
        steps: int.
        times: int. Repeats the rows of each batch.
        stop_step: int. After it all workers but the chief ask to stop.
        kill_step: int. After it they are gone.

    Returns:
        dict: "metrics", list of dicts, one a step; "weights", list of floats;
        "seeds", of dropout; "spread", the largest difference of a weight
        between replicas; "evaluation", dict.
    """
    keras.utils.set_random_seed(1)
    config = GPTConfig.from_depth(
        1,
        vocabulary_size=VOCABULARY_SIZE,
        context_length=LENGTH,
        model_dim=32,
        dropout_rate=dropout_rate,
    )
    with strategy.scope():
        model = GPTCausalLM(config, dtype=precision)
        step = TrainStep(
            model,
            clip_norm=clip_norm,
            token_bytes=range(VOCABULARY_SIZE),
            accumulate_steps=accumulate_steps,
        )
        step.build()
        step.compile(
            keras.optimizers.SGD(1.0)
            if optimizer == "sgd"
            else build_optimizer(optimizer, 3e-3, weight_decay=0.1),
            jit_compile=False,
            # Keras fails on several replicas if this reaches it.
            steps_per_execution=1 if strategy.num_replicas_in_sync == 1 else 5,
        )
    batches = keras.tree.map_structure(
        lambda *arrays: np.concatenate([np.stack(arrays)] * times, axis=1),
        *uneven_batches(steps),
    )
    dataset = tf.data.Dataset.from_tensor_slices(batches)
    record = _Record(stop_step, kill_step)
    step.fit(dataset, callbacks=[record], shuffle=False, verbose=0)
    copies = [
        strategy.experimental_local_results(variable.value)
        for variable in model.trainable_variables
    ]
    return {
        "metrics": record.steps,
        "weights": np.concatenate(
            [np.ravel(first) for first, *_ in copies]
        ).tolist(),
        "seeds": [
            keras.ops.convert_to_numpy(variable).tolist()
            for variable in model.non_trainable_variables
        ],
        "spread": max(
            float(np.abs(other.numpy() - first.numpy()).max())
            for first, *others in copies
            for other in others or [first]
        ),
        "evaluation": step.evaluate(
            dataset.take(EMPTY_STEPS[-1]), verbose=0, return_dict=True
        ),
    }


def main(job):
    if "replicas" in job:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * job["replicas"],
        )
    strategy = build_strategy("mirrored" if "replicas" in job else "auto")
    results = {
        name: train(strategy, **case) for name, case in job["cases"].items()
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
