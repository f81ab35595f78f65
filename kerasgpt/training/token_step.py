"""Owns what a train step computes, on any backend.

Not: gradients and devices (step.py, jax_step.py).
"""

import keras
from keras import ops

from kerasgpt.evaluation.metrics import BitsPerByte
from kerasgpt.training.losses import next_token_loss


class TokenStep(keras.Model):
    """The arithmetic of a train step, without its gradients.

    Not trained itself: a driver for each backend gives it `differentiate`,
    `apply` and, with several replicas that know of each other, `total`.

    Args:
        model: task model, of which `model.read(inputs, training=...)`
            gives hidden states and `model.output_kernel()` what turns them
            into logits, see `next_token_loss`.
        clip_norm: float. Largest global norm of the gradients.
        token_bytes: list of int, UTF-8 bytes of each token id. `None` = no
            bits per byte.
        accumulate_steps: int. Micro-batches that the rows are cut into, one
            after the other in memory; a divisor of their number.

    Call arguments:
        inputs: dict of tensors, as the model takes them.

    Returns:
        What the model returns.
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

    @property
    def validation_metrics(self):
        """List of the metrics that are also those of an evaluation."""
        trained_only = (self.norm_mean, self.skipped_sum)
        return [metric for metric in self.metrics if metric not in trained_only]

    @property
    def parts_at_once(self):
        """How many parts of a batch are computed at the same time."""
        return 1

    def build(self, input_shape=None):
        self.built = True

    def call(self, inputs, training=None):
        return self.model(inputs, training=training)

    def differentiate(self, data, total_weight, loss_scale):
        """Returns [loss, *gradients], losses and hits of these rows.

        Loss and gradients are shares, which add up to those of all rows; the
        gradients are those of the loss times its scale.
        """
        raise NotImplementedError

    def apply(self, gradients):
        """Lets the optimizer update the weights."""
        raise NotImplementedError

    def total(self, values):
        """Returns the sums of tensors over the replicas of a strategy."""
        return values

    def num_shares(self):
        """Returns how many replicas add up their metrics."""
        return 1

    def loss_of(self, data, total_weight=None, *, training):
        """Returns what `next_token_loss` does, of a batch."""
        inputs, targets, sample_weight = data
        return next_token_loss(
            self.model.read(inputs, training=training),
            self.model.output_kernel(),
            targets,
            sample_weight,
            total_weight=total_weight,
        )

    def update_on(self, data):
        """Trains on a batch, or leaves all as it is if that is not finite."""
        total_weight = self.total(ops.sum(data[2]))
        loss_scale = self.optimizer.scale_loss(1.0)
        sums, losses, hits = self.differentiate(data, total_weight, loss_scale)
        self.update_from(self.total(sums), losses, hits, data, loss_scale)

    def update_from(self, sums, losses, hits, data, loss_scale):
        """Trains on what `differentiate` returned, summed over replicas."""
        loss, *gradients = sums
        _, targets, sample_weight = data
        squares = [ops.sum(ops.square(gradient)) for gradient in gradients]
        norm = ops.sqrt(sum(squares)) / loss_scale
        is_finite = ops.logical_and(ops.isfinite(norm), ops.isfinite(loss))
        scale = self.clip_norm / ops.maximum(norm, self.clip_norm)
        self._apply_or_undo(
            [gradient * scale for gradient in gradients], is_finite
        )

        # A skipped step must not turn the means into NaN either.
        sample_weight = ops.where(is_finite, sample_weight, 0.0)
        losses = ops.where(is_finite, losses, 0.0)
        self.record(losses, hits, targets, sample_weight)
        counted = ops.cast(is_finite, "float32")
        self.norm_mean.update_state(ops.where(is_finite, norm, 0.0), counted)
        self.skipped_sum.update_state((1.0 - counted) / self.num_shares())

    def evaluate_on(self, data):
        """Adds a batch to the metrics of an evaluation."""
        _, targets, sample_weight = data
        _, losses, hits = self.loss_of(data, training=False)
        self.record(losses, hits, targets, sample_weight)

    def record(self, losses, hits, targets, sample_weight):
        """Adds tokens to the metrics; all arguments (batch, length)."""
        self.loss_mean.update_state(losses, sample_weight)
        self.accuracy_mean.update_state(hits, sample_weight)
        if self.bits_per_byte:
            self.bits_per_byte.update_state(losses, targets, sample_weight)

    def _apply_or_undo(self, gradients, is_finite):
        """Updates weights and optimizer, or leaves both as they are."""
        # The scale of the loss must fall when a step is skipped.
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        # Undone by a select, not avoided by a branch: optimizers may not be
        # applied inside a branch when several replicas train together.
        state = [*self.model.trainable_variables, *optimizer.variables]
        before = [ops.copy(variable.value) for variable in state]
        self.apply(gradients)
        for variable, value in zip(state, before, strict=True):
            variable.assign(ops.where(is_finite, variable.value, value))
