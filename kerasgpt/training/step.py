"""Owns the train step. Not: the model, nor the loop around it (fit)."""

import keras
import tensorflow as tf

from kerasgpt.evaluation.metrics import BitsPerByte
from kerasgpt.training.losses import next_token_loss


class TrainStep(keras.Model):
    """Wraps a task model so that `compile` and `fit` train it per token.

    What it does that the stock step does not:

    - the loss is the mean over the tokens that count (weight > 0) of the
      whole batch, not over elements or rows;
    - gradients are clipped by their global norm, which is logged;
    - a step whose loss or gradient is not finite changes nothing: weights,
      optimizer and schedule stay as they were, and the step is counted.

    On one device: under a strategy with several replicas each would average
    and clip its own part of the batch.

    Args:
        model: task model, of which `model.backbone(inputs, training=...)`
            gives hidden states and `model.output_kernel()` what turns them
            into logits, see `next_token_loss`.
        clip_norm: float. Largest global norm of the gradients.
        token_bytes: list of int, UTF-8 bytes of each token id. `None` = no
            bits per byte.

    Call arguments:
        inputs: dict of tensors, as the model takes them.

    Returns:
        What the model returns.

    Batches are (inputs, targets, sample_weight): targets int (batch, length),
    sample_weight float (batch, length).
    """

    def __init__(self, model, *, clip_norm=1.0, token_bytes=None, **kwargs):
        super().__init__(name="train_step", **kwargs)
        if not model.built:
            model.build()
        self.model = model
        self.clip_norm = clip_norm
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

    def call(self, inputs, training=None):
        return self.model(inputs, training=training)

    def train_step(self, data):
        inputs, targets, sample_weight = data
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            hidden_states = self.model.backbone(inputs, training=True)
            loss, losses, hits = next_token_loss(
                hidden_states,
                self.model.output_kernel(),
                targets,
                sample_weight,
            )
        gradients = [
            tf.convert_to_tensor(gradient)
            for gradient in tape.gradient(loss, variables)
        ]
        norm = tf.linalg.global_norm(gradients)
        is_finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
        scale = self.clip_norm / tf.maximum(norm, self.clip_norm)
        gradients = [gradient * scale for gradient in gradients]

        # Undone by a select, not avoided by a branch: optimizers may not be
        # applied inside a branch when several replicas train together.
        state = [*variables, *self.optimizer.variables]
        before = [tf.identity(variable.value) for variable in state]
        self.optimizer.apply(gradients, variables)
        for variable, value in zip(state, before, strict=True):
            variable.assign(tf.where(is_finite, variable.value, value))

        # A skipped step must not turn the means into NaN either.
        sample_weight = tf.where(is_finite, sample_weight, 0.0)
        losses = tf.where(is_finite, losses, 0.0)
        self._update_metrics(losses, hits, targets, sample_weight)
        self.norm_mean.update_state(
            tf.where(is_finite, norm, 0.0), tf.cast(is_finite, tf.float32)
        )
        self.skipped_sum.update_state(1.0 - tf.cast(is_finite, tf.float32))
        return {metric.name: metric.result() for metric in self.metrics}

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
        return {
            metric.name: metric.result()
            for metric in self.metrics
            if metric not in trained_only
        }

    def _update_metrics(self, losses, hits, targets, sample_weight):
        self.loss_mean.update_state(losses, sample_weight)
        self.accuracy_mean.update_state(hits, sample_weight)
        if self.bits_per_byte:
            self.bits_per_byte.update_state(losses, targets, sample_weight)
