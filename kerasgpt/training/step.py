"""Owns the train step. Not: the model, nor the loop around it (fit)."""

import contextlib
import functools

import keras
import tensorflow as tf
from keras import tree

from kerasgpt.evaluation.metrics import BitsPerByte
from kerasgpt.training.distribution import (
    compile_on_workers,
    lost_workers_told,
    num_replicas,
    spans_workers,
    sum_over_replicas,
)
from kerasgpt.training.losses import next_token_loss
from kerasgpt.training.optimizers import take_summed_gradients

# Between the seeds of neighbouring replicas: a prime far from the few hundred
# generators of a model, whose own seeds are drawn from below 1e9.
SEED_STRIDE = 1_000_000_007


class TrainStep(keras.Model):
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
        model: task model, of which `model.backbone(inputs, training=...)`
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

    def __init__(
        self,
        model,
        *,
        clip_norm=1.0,
        token_bytes=None,
        accumulate_steps=1,
        **kwargs,
    ):
        super().__init__(name="train_step", dtype=model.dtype_policy, **kwargs)
        if not model.built:
            model.build()
        self.model = model
        self.clip_norm = clip_norm
        self.accumulate_steps = accumulate_steps
        self.loss_mean = keras.metrics.Mean(name="loss")
        self.accuracy_mean = keras.metrics.Mean(name="accuracy")
        self.norm_mean = keras.metrics.Mean(name="gradient_norm")
        self.skipped_sum = keras.metrics.Sum(name="skipped_steps")
        self.bits_per_byte = (
            BitsPerByte(token_bytes) if token_bytes is not None else None
        )

    @property
    def metrics(self):
        return (
            [self.loss_mean, self.accuracy_mean]
            + ([self.bits_per_byte] if self.bits_per_byte else [])
            + [self.norm_mean, self.skipped_sum]
        )

    def build(self, input_shape=None):
        self.built = True

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

    def call(self, inputs, training=None):
        return self.model(inputs, training=training)

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
        _, targets, sample_weight = data
        total_weight = sum_over_replicas(tf.reduce_sum(sample_weight))
        loss_scale = self.optimizer.scale_loss(1.0)
        with _seeds_of_replica(self.model):
            sums, losses, hits = (
                self._differentiate(data, total_weight, loss_scale)
                if self.accumulate_steps == 1
                else self._accumulate(data, total_weight, loss_scale)
            )
        loss, *gradients = sum_over_replicas(sums)
        norm = tf.linalg.global_norm(gradients) / loss_scale
        is_finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
        scale = self.clip_norm / tf.maximum(norm, self.clip_norm)
        gradients = [gradient * scale for gradient in gradients]
        self._apply(gradients, is_finite)

        # A skipped step must not turn the means into NaN either.
        sample_weight = tf.where(is_finite, sample_weight, 0.0)
        losses = tf.where(is_finite, losses, 0.0)
        self._update_metrics(losses, hits, targets, sample_weight)
        self.norm_mean.update_state(
            tf.where(is_finite, norm, 0.0), tf.cast(is_finite, tf.float32)
        )
        # Each replica counts its share, for metrics are summed over them.
        self.skipped_sum.update_state(
            (1.0 - tf.cast(is_finite, tf.float32)) / num_replicas()
        )
        return _results(self.metrics)

    def test_step(self, data):
        inputs, targets, sample_weight = data
        _, losses, hits = next_token_loss(
            self.model.backbone(inputs, training=False),
            self.model.output_kernel(),
            targets,
            sample_weight,
        )
        self._update_metrics(losses, hits, targets, sample_weight)
        trained_only = (self.norm_mean, self.skipped_sum)
        return _results(
            [metric for metric in self.metrics if metric not in trained_only]
        )

    def _differentiate(self, data, total_weight, loss_scale):
        """Returns [loss, *gradients], losses and hits of these rows.

        Loss and gradients are shares, which add up to those of all rows.
        """
        inputs, targets, sample_weight = data
        with tf.GradientTape() as tape:
            hidden_states = self.model.backbone(inputs, training=True)
            loss, losses, hits = next_token_loss(
                hidden_states,
                self.model.output_kernel(),
                targets,
                sample_weight,
                total_weight=total_weight,
            )
            scaled_loss = loss * loss_scale
        gradients = tape.gradient(scaled_loss, self.model.trainable_variables)
        return [loss, *map(tf.convert_to_tensor, gradients)], losses, hits

    def _accumulate(self, data, total_weight, loss_scale):
        """Returns what `_differentiate` does, of one micro-batch at a time."""
        count = self.accumulate_steps
        parts = tree.map_structure(
            lambda rows: tf.reshape(rows, (count, -1, *rows.shape[1:])), data
        )

        def advance(index, sums, losses, hits):
            part = tree.map_structure(lambda rows: rows[index], parts)
            added, part_losses, part_hits = self._differentiate(
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

    def _apply(self, gradients, is_finite):
        """Updates weights and optimizer, or leaves both as they are."""
        # The scale of the loss must fall when a step is skipped.
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        variables = self.model.trainable_variables
        # Undone by a select, not avoided by a branch: optimizers may not be
        # applied inside a branch when several replicas train together.
        state = [*variables, *optimizer.variables]
        before = [tf.identity(variable.value) for variable in state]
        self.optimizer.apply(gradients, variables)
        for variable, value in zip(state, before, strict=True):
            variable.assign(tf.where(is_finite, variable.value, value))

    def _update_metrics(self, losses, hits, targets, sample_weight):
        self.loss_mean.update_state(losses, sample_weight)
        self.accuracy_mean.update_state(hits, sample_weight)
        if self.bits_per_byte:
            self.bits_per_byte.update_state(losses, targets, sample_weight)


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
    seeds = [
        variable
        for variable in model.non_trainable_variables
        if variable.path.endswith("seed_generator_state")
    ]
    for seed in seeds:
        seed.assign(seed.value + offset)
    yield
    for seed in seeds:
        seed.assign(seed.value - offset)
