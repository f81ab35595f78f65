"""Loads a folder of transformers, compares its logits, and writes it again.

Settings: folder, which holds expected.npz too; out, which is made; started,
time.time() of when this process was started.
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

import numpy as np

from experiments.benchmarks.workers.protocol import (
    serve,
    status_bytes,
    timed,
    versions,
)
from kerasgpt.checkpoints.huggingface import load_huggingface, save_huggingface


def build(settings):
    phases = {"import": time.time() - settings["started"]}
    phases["load"], model = timed(lambda: load_huggingface(settings["folder"]))
    peak = status_bytes("VmHWM")
    phases["save"], _ = timed(
        lambda: save_huggingface(settings["out"], model, overwrite=True)
    )
    expected = np.load(f"{settings['folder']}/expected.npz")
    logits = model({"token_ids": expected["token_ids"].astype("int32")})
    difference = np.abs(np.asarray(logits) - expected["logits"]).max()
    facts = {
        "phases": phases,
        "loaded_peak_bytes": peak,
        "difference": float(difference),
        "versions": versions("keras", "tensorflow", "safetensors"),
    }
    return facts, lambda request: {"seconds": []}


if __name__ == "__main__":
    serve(build)
