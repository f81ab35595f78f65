"""Owns tf.data batches of (inputs, targets, sample_weight). Not: packing."""

import functools

import numpy as np
import tensorflow as tf


def build_training_dataset(rows, *, batch_size, seed, start_step, num_steps):
    """Returns batches of packed rows, every row once an epoch, shuffled.

    The order is a pure function of `seed` and the step, so training resumes
    at any step without reading what came before.

    Args:
        rows: PackedRows, MaskedRows or PairRows.
        batch_size: int, rows a step.
        seed: int.
        start_step: int. The first step to yield.
        num_steps: int. Steps of the whole run; `num_steps - start_step`
            batches are yielded.

    Returns:
        tf.data.Dataset of (inputs, targets, sample_weight): inputs a dict of
        what the rows' `input_names` says; all (batch_size, row_length).
    """
    numbers = functools.partial(
        training_row_numbers,
        num_rows=len(rows),
        batch_size=batch_size,
        seed=seed,
    )
    dataset = tf.data.Dataset.range(start_step, num_steps).map(numbers)
    return _assemble(dataset, rows, batch_size)


def training_row_numbers(step, *, num_rows, batch_size, seed):
    """Returns int64 (batch_size,): which rows a step trains on.

    Args:
        step: int64 scalar.
        num_rows: int, rows of an epoch.
        batch_size, seed: see `build_training_dataset`.
    """
    samples = step * batch_size + tf.range(batch_size, dtype=tf.int64)
    epochs = samples // num_rows
    seeds = tf.stack(
        [
            tf.fill([batch_size], tf.constant(seed, tf.int64)),
            epochs,
            tf.zeros_like(epochs),
        ],
        axis=1,
    )
    # The raw op: tf.random.experimental.index_shuffle, its wrapper, takes
    # one seed for all indices, but a batch may cross into the next epoch.
    return tf.raw_ops.RandomIndexShuffle(
        index=samples % num_rows,
        seed=seeds,
        max_index=tf.constant(num_rows - 1, tf.int64),
        rounds=4,
    )


def build_evaluation_dataset(rows, *, batch_size, row_numbers=None):
    """Returns rows once, in order; the last batch is filled up.

    Rows that fill up weigh nothing, so that every batch has one shape and
    nothing is compiled twice.

    Args:
        rows: as of `build_training_dataset`.
        batch_size: int, rows a step.
        row_numbers: int (count,). Which rows. `None` = all.

    Returns:
        tf.data.Dataset as `build_training_dataset` returns.
    """
    if row_numbers is None:
        row_numbers = np.arange(len(rows))
    num_batches = -(-len(row_numbers) // batch_size)
    numbers = np.full(num_batches * batch_size, -1, np.int64)
    numbers[: len(row_numbers)] = row_numbers
    dataset = tf.data.Dataset.from_tensor_slices(
        numbers.reshape(num_batches, batch_size)
    )
    return _assemble(dataset, rows, batch_size)


def _assemble(dataset, rows, batch_size):
    def arrays(numbers):
        *parts, sample_weight = rows.assemble(np.maximum(numbers, 0))
        sample_weight[numbers < 0] = 0.0
        return *parts, sample_weight

    def batch(numbers):
        parts = tf.numpy_function(
            arrays,
            [numbers],
            [tf.int32] * (len(rows.input_names) + 1) + [tf.float32],
            stateful=False,
        )
        *inputs, targets, sample_weight = (
            tf.ensure_shape(part, (batch_size, rows.row_length))
            for part in parts
        )
        named = dict(zip(rows.input_names, inputs, strict=True))
        return named, targets, sample_weight

    options = tf.data.Options()
    # With autotune, the end of fit can wait for the tuning thread, which
    # sleeps in doubling periods: up to half the time of a short run.
    options.autotune.enabled = False
    options.deterministic = True
    return dataset.map(batch).prefetch(4).with_options(options)
