"""Owns the train step under JAX. Not: its arithmetic (token_step.py)."""

import itertools

import jax
import keras
from jax import numpy as jnp
from keras import tree

from kerasgpt.training.token_step import TokenStep


class JaxTrainStep(TokenStep):
    """`TrainStep` for KERAS_BACKEND=jax: same arguments, batches and numbers.

    Under a `keras.distribution` (sharding.py), set before the model is
    built, the same program runs on all its devices: sums over a batch are
    those over the whole of it, whatever device its rows are on.

    Args:
        model, clip_norm, token_bytes, accumulate_steps: see `TokenStep`.
    """

    def compile(self, *args, **kwargs):
        super().compile(*args, **kwargs)
        # Slots stand where the weights do, and the scale of the loss must
        # exist before the first step is traced.
        if not self.optimizer.built:
            self.optimizer.build(self.model.trainable_variables)

    def fit(self, x, *, callbacks=None, **settings):
        """Trains as `keras.Model.fit` does; callbacks see the weights."""
        return super().fit(
            x, callbacks=[_Synchronise(), *(callbacks or ())], **settings
        )

    def train_step(self, state, data):
        groups = [
            self.trainable_variables,
            self.non_trainable_variables,
            self.optimizer.variables,
            self.metrics_variables,
        ]
        with _scope(groups, state) as scope:
            self.update_on(data)
            logs = {metric.name: metric.result() for metric in self.metrics}
        return logs, tuple(_values(scope, group) for group in groups)

    def test_step(self, state, data):
        groups = [
            self.trainable_variables,
            self.non_trainable_variables,
            self.metrics_variables,
        ]
        with _scope(groups, state) as scope:
            self.evaluate_on(data)
            logs = {
                metric.name: metric.result()
                for metric in self.validation_metrics
            }
        return logs, tuple(_values(scope, group) for group in groups)

    def differentiate(self, data, total_weight, loss_scale):
        variables = self.model.trainable_variables
        # Random states, which each micro-batch moves on.
        states = self.model.non_trainable_variables
        weights = [variable.value for variable in variables]

        def scaled_loss(weights, state, part):
            with _scope((variables, states), (weights, state)) as scope:
                loss, losses, hits = self.loss_of(
                    part, total_weight, training=True
                )
            kept = loss, losses, hits, _values(scope, states)
            return loss * loss_scale, kept

        differentiate = jax.value_and_grad(scaled_loss, has_aux=True)

        def advance(carry, part):
            sums, state = carry
            (_, kept), gradients = differentiate(weights, state, part)
            loss, losses, hits, state = kept
            sums = tree.map_structure(jnp.add, sums, [loss, *gradients])
            return (sums, state), (losses, hits)

        zeros = tree.map_structure(jnp.zeros_like, [jnp.zeros(()), *weights])
        (sums, state), (losses, hits) = jax.lax.scan(
            advance,
            (zeros, [variable.value for variable in states]),
            tree.map_structure(self._cut, data),
        )
        for variable, value in zip(states, state, strict=True):
            variable.assign(value)
        return sums, self._join(losses), self._join(hits)

    def apply(self, gradients):
        # Not `optimizer.apply`, of which a scale of the loss makes a branch
        # that assigns.
        weights, slots = (
            self.model.trainable_variables,
            self.optimizer.variables,
        )
        values = self.optimizer.stateless_apply(
            [variable.value for variable in slots],
            gradients,
            [variable.value for variable in weights],
        )
        for variables, new in zip((weights, slots), values, strict=True):
            for variable, value in zip(variables, new, strict=True):
                variable.assign(value)

    def _cut(self, rows):
        """Returns (accumulate_steps, fewer rows, …).

        Each micro-batch takes rows of every device: of those that stand
        together all would be on a few.
        """
        rows = rows.reshape(-1, self.accumulate_steps, *rows.shape[1:])
        return rows.swapaxes(0, 1)

    def _join(self, parts):
        """Returns rows in the order that they had before `_cut`."""
        return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])


class _Synchronise(keras.callbacks.Callback):
    """Puts the state of a step into the variables, before others look."""

    def on_train_batch_end(self, batch, logs=None):
        self.model.jax_state_sync()


def _scope(groups, values):
    """Returns a scope in which variables, in groups, have other values."""
    pairs = zip(itertools.chain(*groups), itertools.chain(*values), strict=True)
    return keras.StatelessScope(state_mapping=list(pairs))


def _values(scope, variables):
    return [scope.get_current_value(variable) for variable in variables]
