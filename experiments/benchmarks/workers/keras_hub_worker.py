"""Trains KerasHub's GPT-2 with the stock `fit`, compiled by XLA.

Its projections have biases and its GELU is the tanh one, so that losses are
near ours but not the same.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

import keras
import numpy as np
import tensorflow as tf

from experiments.benchmarks.workers.gpt_task import (
    EMBEDDINGS,
    batches,
    first_weights,
)
from experiments.benchmarks.workers.keras_hub_model import build_backbone
from experiments.benchmarks.workers.protocol import (
    repeat,
    serve,
    timed,
    versions,
)


def train_step(task):
    backbone = build_backbone(task, first_weights(task))
    logits = backbone.token_embedding(backbone.output, reverse=True)
    model = keras.Model(backbone.input, logits)
    optimizer = keras.optimizers.AdamW(
        task["learning_rate"],
        weight_decay=task["weight_decay"],
        beta_2=task["beta_2"],
        global_clipnorm=1.0,
    )
    optimizer.exclude_from_weight_decay(
        var_names=["beta", "gamma", "bias", *EMBEDDINGS]
    )
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
        steps_per_execution=task["num_batches"],
    )
    tokens = batches(task)
    inputs = {
        "token_ids": tokens[..., :-1],
        "padding_mask": np.ones(tokens[..., 1:].shape, np.int32),
    }
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = (
        tf.data.Dataset.from_tensor_slices((inputs, tokens[..., 1:]))
        .prefetch(4)
        .with_options(options)
    )

    def epoch():
        return model.fit(dataset, verbose=0).history["loss"][0]

    (first, loss), (second, next_loss) = timed(epoch), timed(epoch)
    facts = {
        "parameters": model.count_params(),
        "losses": [loss, next_loss],
        "compile_seconds": first - second,
        "versions": versions("keras", "keras-hub", "tensorflow"),
    }
    return facts, repeat(epoch)


if __name__ == "__main__":
    serve(train_step)
