"""Owns one training stage: compile, fit, evaluate, save, resume.

Not: which data it trains on (pretrain.py, sft.py).
"""

import contextlib
import dataclasses
import math
import pathlib
import shutil
import signal
import threading

import keras
import numpy as np

from kerasgpt.checkpoints.model_folder import load_model, save_model
from kerasgpt.checkpoints.run_state import load_run_state, save_run_state
from kerasgpt.config import Config, InputError, setting
from kerasgpt.console import Interrupted
from kerasgpt.data.pipelines import (
    build_evaluation_dataset,
    build_training_dataset,
)
from kerasgpt.files import read_json, write_json
from kerasgpt.training.callbacks import ProgressLog
from kerasgpt.training.optimizers import build_optimizer
from kerasgpt.training.schedules import build_schedule
from kerasgpt.training.step import TrainStep

# Of AdamW at a width of 128, found on the embedded world
# (experiments/LOG.md); wider models take smaller steps.
REFERENCE_LEARNING_RATE, REFERENCE_WIDTH = 3e-3, 128
# Marks config.json as ours: no other folder is ever emptied.
SOFTWARE = "kerasgpt"
# All that is in a run's folder before its training begins.
UNTRAINED_NAMES = {"config.json", "sources.txt", "tokenizer", "data"}


@dataclasses.dataclass(frozen=True)
class TrainConfig(Config):
    """How one stage is trained."""

    steps: int = setting(1000, "optimizer updates", unit="steps", minimum=1)
    batch_tokens: int = setting(
        2048,
        "positions of one update; a multiple of the context",
        unit="tokens",
        minimum=1,
    )
    optimizer: str = setting(
        "muon",
        "muon for the blocks' matrices with adamw for the rest, or adamw",
        choices=("muon", "adamw"),
    )
    learning_rate: float | None = setting(
        None, "peak rate of adamw; none = from the width", minimum=1e-9
    )
    learning_rate_factor: float = setting(
        1.0,
        "times the rate from the width, if learning_rate is none",
        minimum=1e-6,
    )
    muon_learning_rate_ratio: float = setting(
        5.0, "rate of muon over that of adamw", minimum=1e-3
    )
    weight_decay: float = setting(
        0.01, "decoupled; of matrices only", minimum=0.0
    )
    schedule: str = setting(
        "wsd", "of the rate over the steps", choices=("wsd", "cosine")
    )
    warmup_fraction: float = setting(
        0.05, "share of the steps that rise", minimum=0.0, maximum=1.0
    )
    decay_fraction: float = setting(
        0.6, "share of the steps that fall (wsd)", minimum=0.0, maximum=1.0
    )
    final_fraction: float = setting(
        0.02, "of the peak rate, at the end", minimum=0.0, maximum=1.0
    )
    clip_norm: float = setting(
        1.0, "largest global norm of the gradients", minimum=1e-6
    )
    evaluate_steps: int = setting(
        200,
        "steps between validations, each of which saves",
        unit="steps",
        minimum=1,
    )
    evaluate_rows: int = setting(
        256, "most packed rows of a validation", minimum=1
    )
    patience: int = setting(
        5,
        "validations without a better loss before training stops",
        minimum=1,
    )
    keep_last: int = setting(
        2, "checkpoints kept besides the best model", minimum=1
    )
    log_steps: int = setting(
        20, "steps between progress lines", unit="steps", minimum=1
    )
    jit_compile: bool = setting(True, "compile the step with XLA")

    def peak_learning_rate(self, model_dim):
        """Returns the set rate, or the one a model of this width takes."""
        if self.learning_rate is not None:
            return self.learning_rate
        scale = self.learning_rate_factor * math.sqrt(
            REFERENCE_WIDTH / model_dim
        )
        return REFERENCE_LEARNING_RATE * scale


@dataclasses.dataclass(frozen=True)
class StageResult:
    """What a stage leaves behind.

    Attributes:
        model: GPTCausalLM with the weights of the best validation.
        tokenizer: Tokenizer.
        folder: pathlib.Path, with `model/` in it.
        metrics: dict of the best validation: step, loss, accuracy,
            perplexity, bits_per_byte; and "before", the same of the model
            that training began with.
    """

    model: keras.Model
    tokenizer: object
    folder: pathlib.Path
    metrics: dict


def claim_folder(folder, config, *, overwrite, ignored=()):
    """Makes a run's folder its own, or finds that it already is.

    Args:
        folder: str or Path.
        config: Config of the run.
        overwrite: bool. Start anew: delete the run that is there.
        ignored: tuple of str. Settings or sections that may differ.

    Returns:
        pathlib.Path.

    Raises:
        InputError: if the folder belongs to another run, naming the setting
            that differs, or cannot be written.
    """
    folder = pathlib.Path(folder)
    wanted = {"software": SOFTWARE, **config.to_dict()}
    compared = {
        name: value
        for name, value in _flat(wanted).items()
        if not any(f"{name}.".startswith(f"{part}.") for part in ignored)
    }
    path = folder / "config.json"
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else {}
    found = read_json(path) if path.is_file() else {}
    found = _flat(found) if isinstance(found, dict) else {}
    if names and found.get("software") != SOFTWARE:
        raise InputError(
            f"{folder}: is not empty and no run of kerasgpt; choose another "
            f"run_dir."
        )
    # A run that was refused before it trained anything must not be in the way
    # of the corrected one.
    if names and (overwrite or names <= UNTRAINED_NAMES):
        shutil.rmtree(folder)
        names = {}
    if not names:
        write_json(path, wanted)
        return folder
    for name, value in compared.items():
        if found.get(name) != value:
            raise InputError(
                f"{folder}: holds a run with {name}={found.get(name)}, not "
                f"{value}; choose another run_dir, or set overwrite=true."
            )
    return folder


def _flat(values, prefix=""):
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def train(
    model, tokenizer, rows, config, folder, *, name, seed, sample, tell=print
):
    """Trains a model in `folder`, or goes on where it was stopped.

    Every `evaluate_steps` the model is validated and the state saved; the
    best model so far is kept as `folder/model`. A finished stage is returned
    at once.

    Args:
        model: GPTCausalLM.
        tokenizer: Tokenizer.
        rows: dict of "train" and "validation" PackedRows.
        config: TrainConfig.
        folder: str or Path.
        name: str, shown in progress lines.
        seed: int, of the order of the data.
        sample: function of the model, returns str: what it writes now.
        tell: function of one str, prints a line.

    Returns:
        StageResult.

    Raises:
        InputError: if the settings do not fit the data, or the loss stays
            non-finite.
        Interrupted: after SIGINT or SIGTERM, once the state is saved.
    """
    folder = pathlib.Path(folder)
    result_path = folder / "result.json"
    if result_path.is_file():
        tell(f"{name}: already trained, see {folder}.")
        model, tokenizer = load_model(folder)
        return StageResult(model, tokenizer, folder, read_json(result_path))

    for split, part in rows.items():
        if not len(part):
            raise InputError(
                f"{name}: there is too little text: nothing is left to "
                f"predict in the {split} split."
            )
    row_length = rows["train"].row_length
    batch_size = config.batch_tokens // row_length
    if batch_size < 1:
        raise InputError(
            f"batch_tokens={config.batch_tokens}: is less than one row of "
            f"{row_length} tokens; raise it or lower model.context_length."
        )
    step_model, validation = _compile(
        model, tokenizer, rows, config, batch_size
    )
    progress = {
        "best_loss": math.inf,
        "best_step": 0,
        "metrics": {},
        "before": {},
        "bad": 0,
    }
    restored = load_run_state(
        folder / "checkpoints", model=model, optimizer=step_model.optimizer
    )
    step = 0
    if restored:
        step, progress = restored
        tell(f"{name}: goes on at step {step}.")
    log = ProgressLog(
        folder,
        name=name,
        total_steps=config.steps,
        batch_tokens=batch_size * row_length,
        log_steps=config.log_steps,
        tell=tell,
    )
    # A new run tells its first validation, of step 0, again too.
    log.forget_after(step if restored else -1)

    def save():
        save_run_state(
            folder / "checkpoints",
            step=step,
            model=model,
            optimizer=step_model.optimizer,
            progress=progress,
            keep_last=config.keep_last,
        )

    def stopped():
        return Interrupted(
            request.signal_number,
            f"{name}: stopped at step {step} of {config.steps} and saved; the "
            f"same command (without overwrite=true) goes on from here.",
        )

    def validate():
        metrics = step_model.evaluate(validation, verbose=0, return_dict=True)
        metrics["perplexity"] = math.exp(min(metrics["loss"], 50.0))
        log.record(step, "validation", metrics)
        tell(
            f"{name} {step}/{config.steps}  validation: "
            f"loss {metrics['loss']:.4f}  acc {metrics['accuracy']:.3f}  "
            f"ppl {metrics['perplexity']:.2f}  "
            f"bits/byte {metrics['bits_per_byte']:.3f}"
        )
        return metrics

    if not progress["before"]:
        progress["before"] = validate()

    with _stop_requests() as request:
        while step < config.steps and progress["bad"] < config.patience:
            end = min(
                step - step % config.evaluate_steps + config.evaluate_steps,
                config.steps,
            )
            log.start(step, end)
            step_model.fit(
                build_training_dataset(
                    rows["train"],
                    batch_size=batch_size,
                    seed=seed,
                    start_step=step,
                    num_steps=end,
                ),
                callbacks=[log, request],
                shuffle=False,
                verbose=0,
            )
            step = log.step
            if log.skipped_steps == step - log.first_step > 1:
                raise InputError(
                    f"{name}: the loss was not finite in any of the last "
                    f"{log.skipped_steps} steps; lower the learning_rate."
                )
            # At the end of a stretch the validation comes first: a resumed
            # run begins with the next one.
            if request.signal_number and step < end:
                save()
                raise stopped()
            metrics = validate()
            log.record_sample(step, sample(model))
            if metrics["loss"] < progress["best_loss"]:
                progress = {
                    **progress,
                    "best_loss": metrics["loss"],
                    "best_step": step,
                    "metrics": metrics,
                    "bad": 0,
                }
                save_model(folder / "model", model, tokenizer, step=step)
            else:
                progress = {**progress, "bad": progress["bad"] + 1}
            save()
            if request.signal_number:
                raise stopped()
    if not progress["metrics"]:
        raise InputError(
            f"{name}: no validation gave a finite loss; lower the "
            f"learning_rate."
        )
    if step < config.steps:
        tell(
            f"{name}: stopped early; the best validation was at step "
            f"{progress['best_step']}."
        )
    metrics = {
        "step": progress["best_step"],
        **progress["metrics"],
        "before": progress["before"],
    }
    best, tokenizer = load_model(folder)
    write_json(result_path, metrics)
    return StageResult(best, tokenizer, folder, metrics)


def _compile(model, tokenizer, rows, config, batch_size):
    """Returns the compiled TrainStep and the validation dataset."""
    step_model = TrainStep(
        model, clip_norm=config.clip_norm, token_bytes=tokenizer.token_bytes
    )
    step_model.build()
    schedule = build_schedule(
        config.schedule,
        config.peak_learning_rate(model.config.model_dim),
        total_steps=config.steps,
        warmup_fraction=config.warmup_fraction,
        decay_fraction=config.decay_fraction,
        final_fraction=config.final_fraction,
    )
    optimizer = build_optimizer(
        config.optimizer,
        schedule,
        weight_decay=config.weight_decay,
        muon_learning_rate_ratio=config.muon_learning_rate_ratio,
    )
    optimizer.build(model.trainable_variables)
    step_model.compile(
        optimizer=optimizer,
        jit_compile=config.jit_compile,
        steps_per_execution=min(config.log_steps, config.evaluate_steps),
    )
    # The same rows each time, spread over the split.
    count = min(len(rows["validation"]), config.evaluate_rows)
    chosen = np.linspace(0, len(rows["validation"]) - 1, count).astype(int)
    validation = build_evaluation_dataset(
        rows["validation"], batch_size=batch_size, row_numbers=chosen
    )
    return step_model, validation


class _StopRequest(keras.callbacks.Callback):
    """Ends fit between two steps after a signal came."""

    signal_number = 0

    def on_train_batch_end(self, batch, logs=None):
        if self.signal_number:
            self.model.stop_training = True


@contextlib.contextmanager
def _stop_requests():
    """Turns the first SIGINT or SIGTERM into a request, the second into exit.

    Python's own handling would stop in the middle of an update.
    """
    request = _StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    handled = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in handled}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number, frame):
        request.signal_number = number
        restore()

    for number in handled:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        restore()
