"""Writes new tokens, by our Generator or by an export's signature.

Settings: model, a model folder, for the Generator; or export, a version's
folder, for `generate_ids` as a server without XLA runs it; new_tokens;
prompts, a dict from number of rows to lists of ids. A request has rows, too.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

import tensorflow as tf
import tensorflow_text  # noqa: F401 (registers the ops of our exports)

from experiments.benchmarks.workers.protocol import (
    repeat,
    serve,
    timed,
    versions,
)
from kerasgpt.checkpoints.model_folder import load_model
from kerasgpt.generation import Generator


def generator_of(folder, new_tokens):
    generator = Generator(*load_model(folder))
    return lambda rows: generator.generate_ids(rows, new_tokens)


def signature_of(folder, new_tokens):
    module = tf.saved_model.load(folder)
    generate_ids = module.signatures["generate_ids"]

    def generate(rows):
        count = len(rows)
        outputs = generate_ids(
            token_ids=tf.constant(rows, tf.int32),
            length=tf.fill([count], len(rows[0])),
            max_new_tokens=tf.fill([count], new_tokens),
            temperature=tf.zeros([count]),
            top_k=tf.zeros([count], tf.int32),
            top_p=tf.ones([count]),
            seed=tf.zeros([count], tf.int32),
        )
        return outputs["token_ids"].numpy().tolist()

    # The variables live as long as the module.
    generate.module = module
    return generate


def decode(settings):
    if "model" in settings:
        generate = generator_of(settings["model"], settings["new_tokens"])
    else:
        generate = signature_of(settings["export"], settings["new_tokens"])
    prompts = {int(n): rows for n, rows in settings["prompts"].items()}
    ids, compile_seconds = {}, {}
    for num_rows, rows in prompts.items():
        first, _ = timed(lambda rows=rows: generate(rows))
        second, ids[num_rows] = timed(lambda rows=rows: generate(rows))
        compile_seconds[num_rows] = first - second

    def run(request):
        num_rows = request["rows"]
        again = repeat(lambda: generate(prompts[num_rows]))
        return {"rows": num_rows, **again(request)}

    facts = {
        "ids": ids,
        "compile_seconds": compile_seconds,
        "versions": versions("keras", "tensorflow"),
    }
    return facts, run


if __name__ == "__main__":
    serve(decode)
