"""Owns the search for settings by KerasTuner. Not: what a trial trains."""

import contextlib
import dataclasses
import io
import pathlib

import tensorflow as tf

from kerasgpt.config import InputError

# What KerasTuner keeps, and TensorBoard's HParams reads, in a search's folder.
TUNER_FOLDER, HPARAMS_FOLDER = "tuner", "hparams"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One set of settings and how good it was.

    Attributes:
        number: int, from 0, in the order of trying.
        values: dict of setting to value.
        metrics: dict of name to float; empty if it failed.
    """

    number: int
    values: dict
    metrics: dict


def search(
    folder, choose, evaluate, *, objective, num_trials, seed=0, tell=print
):
    """Tries settings at random, and returns the trials, the best first.

    Failed ones stand last. KerasTuner's Gaussian process is not offered: it
    needs scikit-learn, and draws its first 3 trials a setting at random, too.

    Killed at any time, the same call goes on: with the trial it was in, if
    `evaluate` goes on in its folder.

    Args:
        folder: str or Path of the search.
        choose: function of a `keras_tuner.HyperParameters`, returns dict of
            setting to the value it drew.
        evaluate: function of such a dict and a Path of the trial's own, which
            is not made. Returns dict of name to number. An InputError, such as
            of a loss that is not finite, is a failed trial.
        objective: str, the number that shall be low.
        num_trials: int. A finished search may be given more.
        seed: int, of what is drawn.
        tell: function of one str, prints a line.

    Returns:
        list of Trial.

    Raises:
        InputError: if KerasTuner is not installed, or the first trials all
            fail.

    Reference: O'Malley et al. 2019, KerasTuner; Bergstra and Bengio 2012,
    Random search, section 2.
    """
    try:
        import keras_tuner
    except ImportError as error:
        raise InputError(
            "searching needs KerasTuner; pip install 'kerasgpt[tune]'."
        ) from error
    folder = pathlib.Path(folder)
    space = keras_tuner.HyperParameters()
    choose(space)
    oracle = keras_tuner.oracles.RandomSearchOracle(
        hyperparameters=space,
        objective=keras_tuner.Objective(objective, "min"),
        max_trials=num_trials,
        # 0 would be any.
        seed=seed + 1,
    )

    reasons = []

    class Tuner(keras_tuner.Tuner):
        def run_trial(self, trial, *args, **kwargs):
            number = int(trial.trial_id)
            values = choose(trial.hyperparameters)
            shown = " ".join(f"{key}={_shown(values[key])}" for key in values)
            tell(f"trial {number}: {shown}")
            try:
                found = evaluate(values, folder / f"trial_{number}")
            except InputError as error:
                tell(f"trial {number}: failed: {error}")
                reasons.append(error)
                raise keras_tuner.errors.FailedTrialError(str(error)) from error
            except Exception as error:
                # It, too, would be no more than a failed trial.
                raise keras_tuner.errors.FatalError(str(error)) from error
            metrics = {name: float(value) for name, value in found.items()}
            _write_hparams(
                folder / HPARAMS_FOLDER / f"trial_{number}", values, metrics
            )
            tell(f"trial {number}: {objective} {metrics[objective]:.4f}")
            return metrics

    # It prints tables of its own.
    with contextlib.redirect_stdout(io.StringIO()):
        tuner = Tuner(
            oracle=oracle, directory=str(folder), project_name=TUNER_FOLDER
        )
        # Now, not after the first trial: it may be killed in that.
        tuner.save()
    try:
        tuner.search(verbose=0)
    except keras_tuner.errors.FatalError as error:
        raise error.__cause__ from None
    except RuntimeError as error:
        if not reasons:
            raise
        raise InputError(
            f"{folder}: too many trials failed one after the other; the last: "
            f"{reasons[-1]}"
        ) from error
    trials = [
        Trial(
            int(trial.trial_id),
            choose(trial.hyperparameters),
            {
                name: trial.metrics.get_best_value(name)
                for name in trial.metrics.metrics
            }
            if trial.status == "COMPLETED"
            else {},
        )
        for trial in oracle.trials.values()
    ]
    return sorted(
        trials, key=lambda trial: trial.metrics.get(objective, float("inf"))
    )


def trial_table(trials, objective):
    """Returns a Markdown table: a row a trial.

    Example:
        >>> print(trial_table([Trial(1, {"train.steps": 20}, {"loss": 0.5}),
        ...                    Trial(0, {"train.steps": 10}, {})], "loss"))
        | trial | train.steps | loss |
        |---|---|---|
        | 1 | 20 | 0.5000 |
        | 0 | 10 | failed |
    """
    names = list(trials[0].values)
    lines = [
        f"| trial | {' | '.join(names)} | {objective} |",
        f"|---|{'---|' * (len(names) + 1)}",
    ]
    for trial in trials:
        cells = [_shown(trial.values[name]) for name in names]
        value = trial.metrics.get(objective)
        cells.append("failed" if value is None else f"{value:.4f}")
        lines.append(f"| {trial.number} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(value):
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _write_hparams(folder, values, metrics):
    """Writes one session of TensorBoard's HParams page."""
    # Slow to import, and needed when a trial ends only.
    from tensorboard.plugins.hparams import api

    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default(step=0):
        api.hparams(values, trial_id=folder.name)
        for name, value in metrics.items():
            tf.summary.scalar(name, value)
    writer.close()
