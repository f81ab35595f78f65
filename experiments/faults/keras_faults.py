"""Owns the same faults with Keras' own means."""

import contextlib
import math
import os
import random
import sys

import keras
import numpy as np

from experiments.faults.trial import (
    ENDED,
    SEED,
    Outcome,
    start,
    told_path,
    wait_until_told,
)


def keras_model():
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential(
        [keras.Input((256,)), keras.layers.Dense(2048), keras.layers.Dense(256)]
    )
    model.compile(keras.optimizers.Adam(1e-3), "mse", jit_compile=False)
    return model


def keras_data():
    generator = np.random.default_rng(SEED)
    return generator.normal(size=(64, 256)), generator.normal(size=(64, 256))


def run_keras(folder):
    """Is a process: trains with BackupAndRestore, a save an epoch."""
    folder.mkdir(exist_ok=True)
    told = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: told_path(folder).write_text(
            str(epoch)
        )
    )
    model = keras_model()
    model.fit(
        *keras_data(),
        batch_size=32,
        epochs=40,
        shuffle=False,
        verbose=0,
        callbacks=[
            keras.callbacks.BackupAndRestore(folder / "backup"),
            told,
        ],
    )
    np.save(
        folder / "end.npy",
        np.concatenate([weight.ravel() for weight in model.get_weights()]),
    )


def run_keras_quietly(folder):
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
        try:
            run_keras(folder)
        except Exception:  # whatever Keras says of its own file
            sys.exit(1)


def kill_keras(seed, folder, truth):
    process = start(run_keras_quietly, folder)
    wait_until_told(folder, process)
    wait = random.Random(seed).uniform(0.0, truth.keras_seconds)
    process.join(wait)
    process.kill()
    process.join()
    if process.exitcode == 0:
        return Outcome(seed, ENDED)
    start(run_keras_quietly, folder).join()
    lost = "its backup cannot be read"
    if (folder / "end.npy").is_file():
        ends = [
            np.load(place / "end.npy") for place in (folder, truth.keras_folder)
        ]
        lost = "" if np.array_equal(*ends) else "another end"
    return Outcome(seed, f"SIGKILL after {wait:.3f} s", lost)


def damage_keras_weights(seed, folder, truth, *, change):
    generator = random.Random(seed)
    model, path = keras_model(), folder / "model.weights.h5"
    folder.mkdir()
    model.save_weights(path)
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content, generator))
    try:
        model.load_weights(path)
    except Exception:  # whatever Keras and HDF5 say: they say something
        return Outcome(seed, change.__name__)
    return Outcome(seed, change.__name__, "loaded")


def flipped(content, generator):
    place = generator.randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    return content


def cut(content, generator):
    return content[: generator.randrange(len(content))]


def spoil_a_keras_batch(seed, folder, truth):
    generator = random.Random(seed)
    inputs, targets = keras_data()
    value = generator.choice((math.nan, math.inf))
    targets[generator.randrange(len(targets))] = value
    model = keras_model()
    model.fit(inputs, targets, batch_size=32, verbose=0)
    is_finite = all(np.isfinite(w).all() for w in model.get_weights())
    lost = "" if is_finite else "the weights are not finite"
    return Outcome(seed, f"{value} in a target", lost)
