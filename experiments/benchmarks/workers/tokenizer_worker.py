"""Encodes with kerasgpt or KerasHub, or trains with kerasgpt.

Settings: folder, of tokenizer_task.py; who; kind; vocabulary_size.
"""

import itertools
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

import tensorflow as tf

from experiments.benchmarks.workers.protocol import serve, versions
from experiments.benchmarks.workers.tokenizer_task import (
    encoder,
    read_texts,
    trainer,
)
from kerasgpt.tokenizers.huggingface import load_huggingface_tokenizer
from kerasgpt.tokenizers.kinds import train_tokenizer

# Divides the texts of a round.
BATCH = 512


def in_tf_data(encode_strings, texts):
    """Returns a function that encodes texts in tf.data, one thread.

    One iterator goes round and round, as a new one would compile its graph
    anew; it computes a batch when it is asked for it and none ahead. So the
    texts that are given must be those whose turn it is.
    """
    dataset = tf.data.Dataset.from_tensor_slices(tf.constant(texts))
    dataset = dataset.batch(BATCH).map(encode_strings).repeat()
    options = tf.data.Options()
    options.autotune.enabled = False
    batches = iter(dataset.with_options(options))

    def encode(chosen):
        num_batches = len(chosen) // BATCH
        return [row for _ in range(num_batches) for row in _rows(next(batches))]

    return encode


def _rows(batch):
    values, splits = batch.values.numpy(), batch.row_splits.numpy()
    return [values[start:end] for start, end in itertools.pairwise(splits)]


def build_encoder(task):
    texts = read_texts(task, "texts")
    folder = pathlib.Path(task["folder"], task["kind"])
    if task["who"] == "keras_hub":
        import keras_hub

        hub = keras_hub.tokenizers.BytePairTokenizer(
            vocabulary=json.loads((folder / "vocab.json").read_text()),
            merges=(folder / "merges.txt").read_text().split("\n"),
        )
        encode = in_tf_data(hub, texts)
        names = ("keras-hub", "tensorflow")
    else:
        tokenizer = load_huggingface_tokenizer(folder)
        encode = in_tf_data(tokenizer.encode_strings, texts)
        if task["who"] == "eager":

            def encode(chosen):
                return _rows(tokenizer.encode_strings(tf.constant(chosen)))

        elif task["who"] == "one":

            def encode(chosen):
                return [tokenizer.encode(text) for text in chosen]

        names = ("tensorflow", "tensorflow-text")
    return encoder(encode, task, texts, versions=versions(*names))


def build_trainer(task):
    texts = read_texts(task, "learn")
    # What is loaded once is no memory of the training.
    train_tokenizer(task["kind"], ["to be"] * 9, vocabulary_size=300)

    def train():
        return train_tokenizer(
            task["kind"], texts, vocabulary_size=task["vocabulary_size"]
        ).encode_batch

    return trainer(
        train, read_texts(task, "held_out"), versions=versions("tensorflow")
    )


def build(task):
    if task["job"] == "train":
        return build_trainer(task)
    return build_encoder(task)


if __name__ == "__main__":
    serve(build)
