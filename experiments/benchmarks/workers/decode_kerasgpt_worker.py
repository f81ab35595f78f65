"""Writes new tokens with our Generator.

Settings: a task of decode_task.py.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

from experiments.benchmarks.workers.decode_task import (
    contestant,
    prompts,
    weights,
)
from experiments.benchmarks.workers.kerasgpt_model import (
    GPT2,
    build_model,
    model_config,
)
from experiments.benchmarks.workers.protocol import serve, versions
from kerasgpt.generation import Generator
from kerasgpt.tokenizers import ByteTokenizer


def decode(task):
    # Keras Hub has no other GELU.
    settings = {**GPT2, "activation": "gelu_tanh"}
    model = build_model(model_config(task, **settings), weights(task))
    # Any tokenizer with our control ids: only ids go in and out.
    generator = Generator(model, ByteTokenizer())
    rows = prompts(task).tolist()
    return contestant(
        lambda: generator.generate_ids(rows, task["new_tokens"]),
        parameters=model.config.num_parameters,
        versions=versions("keras", "tensorflow"),
    )


if __name__ == "__main__":
    serve(decode)
