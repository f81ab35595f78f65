"""Owns which parameter gets which optimizer. Not: the rate over time."""

import keras

# Vectors and tables: decaying them pulls norms off one and rare tokens to
# zero (names of Keras' own weights: norms, biases, embeddings).
NOT_DECAYED = ("scale", "gamma", "beta", "bias", "embeddings")


def build_optimizer(
    kind,
    learning_rate,
    *,
    weight_decay,
    muon_learning_rate_ratio=5.0,
    beta_1=0.9,
    beta_2=0.95,
):
    """Returns a Keras optimizer with parameter groups.

    "adamw" is AdamW for all. "muon" is Muon for the 2-D kernels of the blocks
    and AdamW for the rest: embeddings, output head, norms and biases. Norms,
    biases and embeddings are never decayed. Clipping is the train step's: the
    optimizer would clip each replica before their gradients are summed.

    Args:
        kind: "adamw" or "muon".
        learning_rate: LearningRateSchedule or float, of AdamW.
        weight_decay: float, decoupled.
        muon_learning_rate_ratio: float. Rate of Muon over that of AdamW.
        beta_1, beta_2: floats. Of AdamW.

    Raises:
        ValueError: for an unknown kind.

    Reference: Loshchilov and Hutter 2019, AdamW (arXiv 1711.05101); Jordan et
    al. 2024, Muon; Liu et al. 2025 (arXiv 2502.16982), section 2.
    """
    if kind == "adamw":
        optimizer = keras.optimizers.AdamW(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            beta_1=beta_1,
            beta_2=beta_2,
        )
    elif kind == "muon":
        optimizer = keras.optimizers.Muon(
            learning_rate=_scaled(learning_rate, muon_learning_rate_ratio),
            adam_lr_ratio=1.0 / muon_learning_rate_ratio,
            adam_beta_1=beta_1,
            adam_beta_2=beta_2,
            weight_decay=weight_decay,
            adam_weight_decay=weight_decay,
        )
    else:
        raise ValueError(
            f'optimizer must be "adamw" or "muon"; received {kind!r}.'
        )
    optimizer.exclude_from_weight_decay(var_names=list(NOT_DECAYED))
    return optimizer


def take_summed_gradients(optimizer):
    """Lets an optimizer take gradients as they are, under any strategy.

    Keras would sum them over the replicas when they are applied, too late to
    clip them; the train step has summed them before.

    Args:
        optimizer: keras.optimizers.Optimizer, changed in place.
    """
    summing = getattr(optimizer, "inner_optimizer", optimizer)
    summing._all_reduce_sum_gradients = list


def _scaled(learning_rate, factor):
    if isinstance(
        learning_rate, keras.optimizers.schedules.LearningRateSchedule
    ):
        return ScaledSchedule(learning_rate, factor)
    return learning_rate * factor


@keras.saving.register_keras_serializable("kerasgpt")
class ScaledSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule times a factor.

    Example:
        >>> decay = keras.optimizers.schedules.PolynomialDecay(1.0, 10, 0.0)
        >>> float(ScaledSchedule(decay, 3.0)(5))
        1.5
    """

    def __init__(self, schedule, factor):
        self.schedule = (
            keras.saving.deserialize_keras_object(schedule)
            if (isinstance(schedule, dict))
            else schedule
        )
        self.factor = factor

    def __call__(self, step):
        return self.schedule(step) * self.factor

    def get_config(self):
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "factor": self.factor,
        }
