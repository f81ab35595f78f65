"""One of the processes that experiments/scaling_check.py starts, on one core.

Command   KERAS_BACKEND=jax python experiments/scaling_worker.py NUMBER COUNT \
              PORT
The first one prints the seconds of each round as JSON: a step of its own rows
(until all processes have done theirs), the sum of all gradients, that of one
large array, and a step of all rows together.
"""

import json
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import keras
import numpy as np
from jax import numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from kerasgpt.models import GPTCausalLM, GPTConfig
from kerasgpt.training.jax_step import JaxTrainStep
from kerasgpt.training.optimizers import build_optimizer
from kerasgpt.training.sharding import DATA_AXIS, build_distribution

CONFIG = GPTConfig.from_depth(4, vocabulary_size=2048, context_length=256)
ROWS, ROUNDS = 2, 12
LARGE_FLOATS = 4 * 2**20


def build_step():
    model = GPTCausalLM(CONFIG, name="gpt")
    model.build()
    step = JaxTrainStep(model)
    step.build()
    step.compile(build_optimizer("adamw", 1e-3, weight_decay=0.1))
    return step


def summing(shapes):
    """Returns a function that sums arrays of these shapes over processes."""
    count = jax.process_count()
    mesh = jax.make_mesh((count,), (DATA_AXIS,))
    whole = NamedSharding(mesh, PartitionSpec())
    cut = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    arrays = [
        jax.make_array_from_process_local_data(
            cut, np.ones((1, *shape), np.float32)
        )
        for shape in shapes
    ]
    add = jax.jit(
        lambda arrays: [jnp.sum(array, axis=0) for array in arrays],
        out_shardings=whole,
    )
    return lambda: jax.block_until_ready(add(arrays))


def batch(seed):
    ids = np.random.default_rng(seed).integers(
        CONFIG.vocabulary_size,
        size=(ROWS, CONFIG.context_length + 1),
        dtype=np.int32,
    )
    weights = np.ones((ROWS, CONFIG.context_length), np.float32)
    return {"token_ids": ids[:, :-1]}, ids[:, 1:], weights


def seconds(function):
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main(number, count, port):
    # Before XLA starts its threads.
    os.sched_setaffinity(0, {number})
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", count, number)
    keras.utils.set_random_seed(0)
    alone = build_step()
    keras.distribution.set_distribution(build_distribution(CONFIG))
    together = build_step()
    shapes = [weight.shape for weight in alone.model.trainable_variables]
    data = batch(number)
    meet = summing([(1,)])

    def step_alone():
        keras.distribution.set_distribution(None)
        alone.train_on_batch(*data)
        meet()

    def step_together():
        keras.distribution.set_distribution(distribution)
        together.train_on_batch(*data)

    distribution = keras.distribution.distribution()
    parts = {
        "alone": step_alone,
        "gradients": summing(shapes),
        "large": summing([(LARGE_FLOATS,)]),
        "together": step_together,
    }
    rounds = []
    for _ in range(ROUNDS):
        meet()
        rounds.append({name: seconds(part) for name, part in parts.items()})
    if number == 0:
        facts = {
            # The first rounds compile.
            "rounds": rounds[2:],
            "gradient_bytes": 4 * sum(map(np.prod, shapes)),
            "large_bytes": 4 * LARGE_FLOATS,
        }
        print(json.dumps(facts, default=int))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
