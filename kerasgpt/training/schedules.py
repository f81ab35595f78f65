"""Owns learning-rate schedules. Not: which optimizer follows them."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("kerasgpt")
class WarmupStableDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly, stays, then falls linearly to a fraction of the peak.

    Args:
        peak_learning_rate: float. Value of the plateau.
        total_steps: int. Steps until the end of the fall.
        warmup_steps: int. Steps of the rise.
        decay_steps: int. Steps of the fall.
        final_fraction: float. Of the peak, at the end.

    Example:
        >>> schedule = WarmupStableDecay(1.0, total_steps=10, warmup_steps=2,
        ...                              decay_steps=4)
        >>> [round(float(schedule(step)), 2) for step in (0, 1, 5, 8, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]

    Reference: Hu et al. 2024, MiniCPM (arXiv 2404.06395), section 4.
    """

    def __init__(
        self,
        peak_learning_rate,
        *,
        total_steps,
        warmup_steps,
        decay_steps,
        final_fraction=0.0,
    ):
        self.peak_learning_rate = peak_learning_rate
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.decay_steps = decay_steps
        self.final_fraction = final_fraction

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rise = (step + 1.0) / max(self.warmup_steps, 1)
        left = (self.total_steps - step) / max(self.decay_steps, 1)
        fall = self.final_fraction + (1.0 - self.final_fraction) * left
        factor = ops.minimum(1.0, ops.minimum(rise, fall))
        return self.peak_learning_rate * ops.maximum(
            factor, self.final_fraction
        )

    def get_config(self):
        return {
            "peak_learning_rate": self.peak_learning_rate,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "decay_steps": self.decay_steps,
            "final_fraction": self.final_fraction,
        }


def build_schedule(
    kind,
    peak_learning_rate,
    *,
    total_steps,
    warmup_fraction,
    decay_fraction,
    final_fraction,
):
    """Returns a learning-rate schedule over `total_steps`.

    Args:
        kind: "wsd" (`WarmupStableDecay`) or "cosine"
            (`keras.optimizers.schedules.CosineDecay` with its warm-up).
        peak_learning_rate: float.
        total_steps: int, optimizer updates.
        warmup_fraction: float. Share of the steps that rise.
        decay_fraction: float. Share of the steps that fall ("wsd").
        final_fraction: float. Of the peak, at the end.

    Raises:
        ValueError: for an unknown kind.
    """
    warmup_steps = max(1, round(warmup_fraction * total_steps))
    if kind == "wsd":
        return WarmupStableDecay(
            peak_learning_rate,
            total_steps=total_steps,
            warmup_steps=warmup_steps,
            decay_steps=max(1, round(decay_fraction * total_steps)),
            final_fraction=final_fraction,
        )
    if kind == "cosine":
        return keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=peak_learning_rate / warmup_steps,
            decay_steps=max(1, total_steps - warmup_steps),
            alpha=final_fraction,
            warmup_target=peak_learning_rate,
            warmup_steps=warmup_steps,
        )
    raise ValueError(f'schedule must be "wsd" or "cosine"; received {kind!r}.')
