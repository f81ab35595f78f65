"""Writes new tokens with KerasHub's GPT-2 and its `generate`.

Settings: a task of decode_task.py, and jit_compile.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

import keras_hub
import numpy as np

from experiments.benchmarks.workers.decode_task import (
    contestant,
    prompts,
    weights,
)
from experiments.benchmarks.workers.keras_hub_model import build_backbone
from experiments.benchmarks.workers.protocol import serve, versions


def decode(task):
    backbone = build_backbone(task, weights(task))
    model = keras_hub.models.GPT2CausalLM(backbone)
    model.compile(sampler="greedy", jit_compile=task["jit_compile"])
    length = task["prompt_length"]
    shape = (task["batch_size"], length + task["new_tokens"])
    token_ids, is_token = np.zeros(shape, np.int32), np.zeros(shape, bool)
    token_ids[:, :length], is_token[:, :length] = prompts(task), True

    def generate():
        rows = model.generate(
            {"token_ids": token_ids, "padding_mask": is_token},
            stop_token_ids=None,
        )
        return np.asarray(rows["token_ids"])[:, length:]

    return contestant(
        generate,
        parameters=model.count_params(),
        versions=versions("keras", "keras-hub", "tensorflow"),
    )


if __name__ == "__main__":
    serve(decode)
