"""Owns the train step under TensorFlow. Not: its arithmetic (token_step.py)."""

import contextlib
import functools
import math
import os

import keras
import tensorflow as tf
from keras import tree

from kerasgpt.training.distribution import (
    compile_on_workers,
    lost_workers_told,
    num_replicas,
    spans_workers,
    sum_over_replicas,
)
from kerasgpt.training.optimizers import take_summed_gradients
from kerasgpt.training.token_step import TokenStep

# Between the seeds of neighbouring replicas: a prime far from the few hundred
# generators of a model, whose own seeds are drawn from below 1e9.
SEED_STRIDE = 1_000_000_007
# Between 6 million weights, of which two halves of a batch are faster at once
# than a whole, and 124 million, of which they are not (LOG.md) and the second
# gradient takes half a gigabyte.
_MOST_WEIGHTS_IN_HALVES = 32_000_000


class TrainStep(TokenStep):
    """Wraps a task model so that `compile` and `fit` train it per token.

    What it does that the stock step does not:

    - the loss is the mean over the tokens that count (weight > 0) of the
      whole batch, not over elements or rows, micro-batches or replicas;
    - gradients are clipped by their global norm, which is logged, once they
      are summed over micro-batches and replicas;
    - a step whose loss or gradient is not finite changes nothing: weights,
      optimizer and schedule stay as they were, and the step is counted. All
      replicas decide alike, for they look at the same sums.

    Under a strategy it is created in its scope, as the model is; replicas get
    equal numbers of rows. Under mixed_float16 the loss is scaled.

    Args:
        model: task model, of which `model.read(inputs, training=...)`
            gives hidden states and `model.output_kernel()` what turns them
            into logits, see `next_token_loss`.
        clip_norm: float. Largest global norm of the gradients.
        token_bytes: list of int, UTF-8 bytes of each token id. `None` = no
            bits per byte.
        accumulate_steps: int. Micro-batches that a replica's rows are cut
            into, one after the other in memory; a divisor of their number.

    Call arguments:
        inputs: dict of tensors, as the model takes them.

    Returns:
        What the model returns.

    Batches are (inputs, targets, sample_weight): targets int (batch, length),
    sample_weight float (batch, length).
    """

    # Until it is compiled.
    _halves = None

    @property
    def parts_at_once(self):
        return 2 if self._halves else 1

    def compile(self, *args, steps_per_execution=1, **kwargs):
        # On several replicas Keras cannot run steps in groups.
        if self.distribute_strategy.num_replicas_in_sync > 1:
            steps_per_execution = 1
        super().compile(
            *args, steps_per_execution=steps_per_execution, **kwargs
        )
        take_summed_gradients(self.optimizer)
        # The scale of the loss must exist before the first step is traced.
        if not self.optimizer.built:
            self.optimizer.build(self.model.trainable_variables)
        self._halves = None
        if self.jit_compile and self._is_faster_in_halves():
            self._halves = _Halves(self)

    def make_train_function(self, force=False):
        # Of halves that Keras compiles together XLA makes one program.
        jit_compile = self.jit_compile
        self.jit_compile = jit_compile and not self._halves
        super().make_train_function(force)
        self.jit_compile = jit_compile

    def fit(self, x, *, callbacks=None, **settings):
        """Trains as `keras.Model.fit` does, also where that fails.

        Several workers train for one epoch on a tf.data.Dataset of global
        batches, the same in each process.
        """
        if not spans_workers(self.distribute_strategy):
            return super().fit(x, callbacks=callbacks, **settings)
        callbacks = keras.callbacks.CallbackList(callbacks, model=self)
        self.reset_metrics()
        self.stop_training = False
        callbacks.on_train_begin()
        callbacks.on_epoch_begin(0)
        with lost_workers_told():
            for step, batch in enumerate(x):
                callbacks.on_train_batch_begin(step)
                logs, is_last = self._train_on_workers(
                    batch, self.stop_training
                )
                callbacks.on_train_batch_end(step, logs)
                if is_last:
                    break
        return callbacks.on_train_end()

    def evaluate(self, x, **settings):
        """Evaluates as `keras.Model.evaluate` does, see `fit`."""
        if not spans_workers(self.distribute_strategy):
            return super().evaluate(x, **settings)
        self.reset_metrics()
        with lost_workers_told():
            for batch in x:
                logs, _ = self._test_on_workers(batch, False)
            return {name: float(value) for name, value in logs.items()}

    @functools.cached_property
    def _train_on_workers(self):
        return compile_on_workers(self.distribute_strategy, self.train_step)

    @functools.cached_property
    def _test_on_workers(self):
        return compile_on_workers(self.distribute_strategy, self.test_step)

    def train_step(self, data):
        (self._halves or self).update_on(data)
        return _results(self.metrics)

    def test_step(self, data):
        self.evaluate_on(data)
        return _results(self.validation_metrics)

    def differentiate(self, data, total_weight, loss_scale):
        with _seeds_of_replica(self.model):
            if self.accumulate_steps == 1:
                return self._differentiate_at_once(
                    data, total_weight, loss_scale
                )
            return self._accumulate(data, total_weight, loss_scale)

    def _is_faster_in_halves(self):
        """Tells whether to compute two halves of a batch at the same time."""
        num_weights = sum(
            math.prod(variable.shape) for variable in self.model.variables
        )
        return (
            num_weights <= _MOST_WEIGHTS_IN_HALVES
            and self.distribute_strategy.num_replicas_in_sync == 1
            and len(os.sched_getaffinity(0)) > 1
            and not tf.config.list_physical_devices("GPU")
            # Halves that draw random numbers would have to wait in turn.
            and not _seeds(self.model)
        )

    def apply(self, gradients):
        self.optimizer.apply(gradients, self.model.trainable_variables)

    def total(self, values):
        return sum_over_replicas(values)

    def num_shares(self):
        return num_replicas()

    def _differentiate_at_once(self, data, total_weight, loss_scale):
        """Returns what `differentiate` does, with all rows in memory."""
        with tf.GradientTape() as tape:
            loss, losses, hits = self.loss_of(data, total_weight, training=True)
            scaled_loss = loss * loss_scale
        gradients = tape.gradient(scaled_loss, self.model.trainable_variables)
        return [loss, *map(tf.convert_to_tensor, gradients)], losses, hits

    def _accumulate(self, data, total_weight, loss_scale):
        """Returns what `differentiate` does, of one micro-batch at a time."""
        count = self.accumulate_steps
        parts = tree.map_structure(
            lambda rows: tf.reshape(rows, (count, -1, *rows.shape[1:])), data
        )

        def advance(index, sums, losses, hits):
            part = tree.map_structure(lambda rows: rows[index], parts)
            added, part_losses, part_hits = self._differentiate_at_once(
                part, total_weight, loss_scale
            )
            return (
                index + 1,
                [value + more for value, more in zip(sums, added, strict=True)],
                losses.write(index, part_losses),
                hits.write(index, part_hits),
            )

        zeros = [
            tf.zeros(variable.shape)
            for variable in self.model.trainable_variables
        ]
        _, sums, losses, hits = tf.while_loop(
            lambda index, *state: index < count,
            advance,
            (
                0,
                [tf.zeros(()), *zeros],
                tf.TensorArray(tf.float32, count),
                tf.TensorArray(tf.float32, count),
            ),
            # Else the next micro-batch begins while this one is in memory.
            parallel_iterations=1,
        )
        shape = tf.shape(data[1])
        return (
            sums,
            tf.reshape(losses.stack(), shape),
            tf.reshape(hits.stack(), shape),
        )


class _Halves:
    """The update of a TrainStep by programs of XLA that run at the same time.

    Args:
        step: TrainStep.
    """

    def __init__(self, step):
        self.step = step
        self._differentiate = tf.function(step.differentiate, jit_compile=True)
        self._update = tf.function(self._update_from, jit_compile=True)

    def update_on(self, data):
        """See `TokenStep.update_on`."""
        total_weight = tf.reduce_sum(data[2])
        loss_scale = tf.convert_to_tensor(self.step.optimizer.scale_loss(1.0))
        # TensorFlow runs what does not wait for each other in threads.
        parts = [
            self._differentiate(part, total_weight, loss_scale)
            for part in self._cut(data)
        ]
        self._update(parts, data, loss_scale)

    def _cut(self, data):
        rows = data[1].shape[0]
        count = 2
        if rows is None or rows % (count * self.step.accumulate_steps):
            return [data]
        flat = [tf.split(tensor, count) for tensor in tf.nest.flatten(data)]
        return [
            tf.nest.pack_sequence_as(data, part)
            for part in zip(*flat, strict=True)
        ]

    def _update_from(self, parts, data, loss_scale):
        sums, losses, hits = zip(*parts, strict=True)
        self.step.update_from(
            [tf.add_n(values) for values in zip(*sums, strict=True)],
            tf.concat(losses, axis=0),
            tf.concat(hits, axis=0),
            data,
            loss_scale,
        )


def _results(metrics):
    """Returns dict of name to result, over all replicas."""
    if num_replicas() == 1:
        return {metric.name: metric.result() for metric in metrics}
    # Inside a replica a metric sees its own share only.
    states = sum_over_replicas([metric.variables for metric in metrics])
    return {
        metric.name: metric.stateless_result(state)
        for metric, state in zip(metrics, states, strict=True)
    }


@contextlib.contextmanager
def _seeds_of_replica(model):
    """Lets each replica draw its own dropout; outside all have one seed.

    So the state that is saved is the same whatever the number of replicas.
    """
    if num_replicas() == 1:
        yield
        return
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    offset = SEED_STRIDE * tf.cast(tf.stack([replica, 0]), tf.int64)
    seeds = _seeds(model)
    for seed in seeds:
        seed.assign(seed.value + offset)
    yield
    for seed in seeds:
        seed.assign(seed.value - offset)


def _seeds(model):
    """Returns the variables that random numbers are drawn from."""
    return [
        variable
        for variable in model.non_trainable_variables
        if variable.path.endswith("seed_generator_state")
    ]
