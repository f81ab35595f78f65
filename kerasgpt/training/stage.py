"""Owns one training stage: compile, fit, evaluate, save, resume.

Not: which data it trains on (pretrain.py, sft.py), what it leaves (outcome.py).
"""

import dataclasses
import importlib
import importlib.metadata
import math
import pathlib
import platform
import signal
import tempfile

import keras
import numpy as np

from kerasgpt.checkpoints.model_folder import (
    MODELS,
    build_task,
    load_model,
)
from kerasgpt.checkpoints.run_state import (
    STATES_FOLDER,
    RunState,
    load_run_state,
    save_run_state,
)
from kerasgpt.config import Config, InputError, setting
from kerasgpt.console import Interrupted
from kerasgpt.data.pipelines import (
    build_evaluation_dataset,
    build_training_dataset,
    training_row_numbers,
)
from kerasgpt.files import (
    BackgroundWriter,
    clear_leftovers,
    read_json,
    write_json,
)
from kerasgpt.training.callbacks import ProgressLog
from kerasgpt.training.distribution import (
    build_strategy,
    check_rows,
    is_chief,
    is_tensorflow,
    num_shares,
    on_chief,
    on_chief_only,
    resolve_jit_compile,
    spans_workers,
)
from kerasgpt.training.optimizers import build_optimizer
from kerasgpt.training.outcome import Outcome
from kerasgpt.training.run_folder import SOFTWARE
from kerasgpt.training.schedules import build_schedule
from kerasgpt.training.step import TrainStep
from kerasgpt.training.watch import Watch, stop_requests

# Of AdamW at a width of 128, found on the embedded world
# (experiments/LOG.md); wider models take smaller steps.
REFERENCE_LEARNING_RATE, REFERENCE_WIDTH = 3e-3, 128
# Of one call of TensorFlow: about a second on a slow processor, of which the
# call's own 0.3 ms are nothing.
GROUP_FLOPS = 20e9
# From one checkpoint: a loss that rises again and again is no bad batch.
MAX_ROLLBACKS = 3
# Where a run is computed, not what: another machine may go on with it.
HARDWARE_ONLY = ("distribute", "train.accumulate_steps")


@dataclasses.dataclass(frozen=True)
class TrainConfig(Config):
    """How one stage is trained."""

    steps: int = setting(1000, "optimizer updates", unit="steps", minimum=1)
    epochs: float | None = setting(
        None, "passes over the training rows, in place of steps", minimum=1e-6
    )
    batch_tokens: int = setting(
        2048,
        "positions of one update; a multiple of the context",
        unit="tokens",
        minimum=1,
    )
    accumulate_steps: int = setting(
        1,
        "parts of a device's rows that are computed one after the other, to "
        "save memory",
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
        2, "checkpoints kept besides the best one", minimum=1
    )
    max_skipped_steps: int = setting(
        20,
        "steps in a row whose loss or gradient is not finite that end training",
        unit="steps",
        minimum=1,
    )
    spike_rise: float | None = setting(
        None,
        "rise of the loss over its lowest that takes training back to the last "
        "validation and past the batches since; none = never",
        unit="nats",
        minimum=1e-6,
    )
    log_steps: int = setting(
        20, "steps between progress lines", unit="steps", minimum=1
    )
    precision: str = setting(
        "float32",
        "of products and activations; weights stay float32. bfloat16 is slow "
        "on processors without units for it",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
    )
    rematerialize: bool = setting(
        False,
        "compute what is inside the blocks twice instead of keeping it, to "
        "save memory",
    )
    jit_compile: bool | None = setting(
        None, "compile the step with XLA; none = on one device"
    )

    def for_batches(self, num_batches):
        """Returns the config with the steps that its epochs take.

        Args:
            num_batches: float. Training rows over those of one update.

        Example:
            >>> TrainConfig(epochs=3).for_batches(10.5).steps
            32
        """
        if self.epochs is None:
            return self
        steps = math.ceil(self.epochs * num_batches)
        return dataclasses.replace(self, steps=steps, epochs=None)

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
        model: task model with the weights of the best validation.
        tokenizer: Tokenizer.
        folder: pathlib.Path, with `model/` in it.
        metrics: dict of the best validation: step, loss, accuracy,
            perplexity, bits_per_byte; and "before", the same of the model
            that training began with.
        is_chief: bool. This process is the one, of several workers, that
            goes on to report and export. None does under JAX, where neither
            is possible.
    """

    model: keras.Model
    tokenizer: object
    folder: pathlib.Path
    metrics: dict
    is_chief: bool = True


def build_model(model_config, config, strategy):
    """Returns a task model to be trained, with fresh weights.

    Args:
        model_config: GPTConfig, or another of a task model.
        config: TrainConfig.
        strategy: tf.distribute.Strategy.

    Raises:
        InputError: if it cannot be trained so.
    """
    try:
        with strategy.scope():
            settings = {"dtype": config.precision}
            if config.rematerialize:
                settings["rematerialize"] = True
            return build_task(model_config, **settings)
    except ValueError as error:
        raise InputError(f"model: {error}") from error


def train(
    model,
    tokenizer,
    rows,
    config,
    folder,
    *,
    name,
    seed,
    sample,
    strategy=None,
    counts_bytes=True,
    build_step=None,
    lora=None,
    tell=print,
):
    """Trains a model in `folder`, or goes on where it was stopped.

    Every `evaluate_steps` the model is validated and the state saved; the
    best model so far is kept as `folder/model`. A finished stage is returned
    at once. Of several workers, which share `folder`, only the chief writes
    and tells.

    Args:
        model: task model, see `build_model`.
        tokenizer: Tokenizer.
        rows: dict of "train" and "validation" rows: PackedRows, MaskedRows or
            PairRows.
        config: TrainConfig.
        folder: str or Path.
        name: str, shown in progress lines.
        seed: int, of the order of the data.
        sample: function of a float32 model on one device, returns str: what
            it writes now.
        strategy: tf.distribute.Strategy in whose scope the model was built.
            `None` = that of one device.
        counts_bytes: bool. Targets are tokens of texts: report bits per byte.
        build_step: function of what `TrainStep` takes, returns one. `None` =
            that of the backend.
        lora: LoRAConfig of the model's adapters, which are then kept as
            `folder/adapter` and merged into `folder/model`. `None` = none.
        tell: function of one str, prints a line.

    Returns:
        StageResult.

    Raises:
        InputError: if the settings do not fit the data, the loss stays
            non-finite, or a checkpoint cannot be written.
        Interrupted: after SIGINT or SIGTERM, once the state is saved.
    """
    folder = pathlib.Path(folder)
    strategy = strategy or build_strategy("none")
    tell = on_chief_only(tell, strategy)
    result_path = folder / "result.json"
    if result_path.is_file():
        tell(f"{name}: already trained, see {folder}.")
        return _result(folder, strategy)

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
    config = config.for_batches(len(rows["train"]) / batch_size)
    check_rows(
        batch_size,
        replicas=num_shares(strategy),
        accumulate_steps=config.accumulate_steps,
    )
    # The writer ends first: a second signal must reach it, too.
    with (
        tempfile.TemporaryDirectory() as unread,
        stop_requests() as request,
        BackgroundWriter() as writer,
    ):
        stage = _Stage(
            model,
            tokenizer,
            rows,
            config,
            folder,
            name=name,
            seed=seed,
            batch_size=batch_size,
            sample=sample,
            strategy=strategy,
            log_folder=folder if is_chief(strategy) else unread,
            counts_bytes=counts_bytes,
            build_step=build_step,
            lora=lora,
            tell=tell,
            request=request,
            writer=writer,
        )
        progress = stage.run()
    if not progress.metrics:
        raise InputError(
            f"{name}: no validation gave a finite loss; lower the "
            f"learning_rate."
        )
    if progress.validated_step < config.steps:
        tell(
            f"{name}: stopped early; the best validation was at step "
            f"{progress.best_step}."
        )
    metrics = {
        "step": progress.best_step,
        **progress.metrics,
        "before": progress.before,
    }
    on_chief(strategy, lambda: write_json(result_path, metrics))
    return _result(folder, strategy)


def _result(folder, strategy):
    model, tokenizer = load_model(folder, kinds=tuple(MODELS))
    metrics = read_json(folder / "result.json")
    goes_on = is_chief(strategy) and is_tensorflow()
    return StageResult(model, tokenizer, folder, metrics, goes_on)


@dataclasses.dataclass(frozen=True)
class _Progress:
    """Where training stands, besides weights and optimizer.

    Attributes:
        before: dict, metrics of the model that training began with.
        best_loss, best_step, metrics: of the best validation.
        bad: int, validations since then.
        validated_step: int, of the last validation.
        data_offset: int, batches that were left out after spikes.
        num_rollbacks: int, since the last validation.
        watch: see `Watch.state`.
        sums: see `ProgressLog.sums`.
    """

    before: dict = dataclasses.field(default_factory=dict)
    best_loss: float = math.inf
    best_step: int = 0
    metrics: dict = dataclasses.field(default_factory=dict)
    bad: int = 0
    validated_step: int = -1
    data_offset: int = 0
    num_rollbacks: int = 0
    watch: dict | None = None
    sums: list | None = None

    def after(self, **changes):
        return dataclasses.replace(self, **changes)


class _Stage:
    """What one call of `train` works with."""

    def __init__(
        self,
        model,
        tokenizer,
        rows,
        config,
        folder,
        *,
        name,
        seed,
        batch_size,
        sample,
        strategy,
        log_folder,
        counts_bytes,
        build_step,
        lora,
        tell,
        request,
        writer,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.rows = rows
        self.config = config
        self.folder = folder
        self.name = name
        self.order = {"batch_size": batch_size, "seed": seed}
        self.sample = sample
        self.strategy = strategy
        self.outcome = Outcome(
            folder, model, tokenizer, strategy=strategy, lora=lora
        )
        self.tell = tell
        self.request = request
        self.writer = writer
        self.step_model = _compile(
            model,
            config,
            strategy,
            token_bytes=_token_bytes(model, tokenizer)
            if counts_bytes
            else None,
            build_step=build_step,
        )
        # The same rows each time, spread over the split.
        count = min(len(rows["validation"]), config.evaluate_rows)
        chosen = np.linspace(0, len(rows["validation"]) - 1, count).astype(int)
        self.validation = build_evaluation_dataset(
            rows["validation"], batch_size=batch_size, row_numbers=chosen
        )
        self.log = ProgressLog(
            log_folder,
            name=name,
            total_steps=config.steps,
            batch_tokens=batch_size * rows["train"].row_length,
            log_steps=config.log_steps,
            tell=tell,
        )
        self.watch = Watch(
            request,
            self.log,
            row_numbers=self._row_numbers,
            max_skipped_steps=config.max_skipped_steps,
            spike_rise=config.spike_rise,
            check=writer.check,
        )
        self.states = folder / STATES_FOLDER
        self.step, self.progress = 0, _Progress(watch=self.watch.state())

    def run(self):
        """Trains to the end; returns the _Progress."""
        self._resume()
        config = self.config
        while True:
            is_due = (
                self.step % config.evaluate_steps == 0
                or self.step == config.steps
            )
            if is_due and self.progress.validated_step < self.step:
                self._validate()
            if (
                self.step == config.steps
                or self.progress.bad >= config.patience
            ):
                return self.progress
            self._fit()

    def _resume(self):
        if is_chief(self.strategy):
            clear_leftovers(self.folder, "model")
        saved = self._load()
        if saved:
            self._check(saved["facts"])
            self.tell(f"{self.name}: goes on at step {self.step}.")
        # A new run tells its first validation again, too.
        self.log.restore(saved["metrics"] if saved else "")

    def _check(self, before):
        """Refuses the state of another run, and tells what else differs."""
        here = self._facts()
        for name in ("data", "tokenizer"):
            if before.get(name) != here[name]:
                raise InputError(
                    f"{self.states}: belong to a run with {name} "
                    f"{before.get(name)}, not {here[name]}; choose another "
                    f"run_dir, or set overwrite=true."
                )
        for name, value in here["software"].items():
            began_with = before.get("software", {}).get(name)
            if began_with != value:
                self.tell(
                    f"{self.name}: this run began with {name} {began_with}; "
                    f"with {value} its last digits may differ."
                )

    def _load(self, at_most=None):
        """Goes to the newest whole state; returns it, None without one."""
        saved = load_run_state(
            self.states,
            model=self.model,
            optimizer=self.step_model.optimizer,
            at_most=at_most,
            tell=lambda line: self.tell(f"{self.name}: {line}"),
        )
        if saved:
            self.step = saved["step"]
            try:
                self.progress = _Progress(**saved["progress"])
                self.watch.restore(self.progress.watch)
            except (KeyError, TypeError) as error:
                raise InputError(
                    f"{self.states}: were written by another version of "
                    f"{SOFTWARE}; start again with overwrite=true."
                ) from error
        return saved

    def _validate(self):
        metrics = self.step_model.evaluate(
            self.validation,
            callbacks=[self.watch],
            verbose=0,
            return_dict=True,
        )
        if self._is_stopped():
            # It ended before its time, and is the first thing on resuming.
            self._save()
            self._stop()
        step, config = self.step, self.config
        metrics["perplexity"] = math.exp(min(metrics["loss"], 50.0))
        self.log.record(step, "validation", metrics)
        told = (
            f"{self.name} {step}/{config.steps}  validation: "
            f"loss {metrics['loss']:.4f}  acc {metrics['accuracy']:.3f}  "
            f"ppl {metrics['perplexity']:.2f}"
        )
        if "bits_per_byte" in metrics:
            told += f"  bits/byte {metrics['bits_per_byte']:.3f}"
        self.tell(told)
        self.progress = self.progress.after(
            validated_step=step, num_rollbacks=0, sums=None
        )
        is_best = False
        if step == 0:
            self.progress = self.progress.after(before=metrics)
        else:
            # Texts are decoded under TensorFlow only.
            if is_chief(self.strategy) and is_tensorflow():
                text = self.sample(self.outcome.usable_model())
                self.log.record_sample(step, text)
            is_best = metrics["loss"] < self.progress.best_loss
            self.progress = (
                self.progress.after(
                    best_loss=metrics["loss"],
                    best_step=step,
                    metrics=metrics,
                    bad=0,
                )
                if is_best
                else self.progress.after(bad=self.progress.bad + 1)
            )
        self._save(is_best=is_best)
        if self._is_stopped():
            self._stop()

    def _fit(self):
        """Trains until the next validation, a signal or another reason."""
        config, progress, begin = self.config, self.progress, self.step
        begin -= begin % config.evaluate_steps
        end = min(begin + config.evaluate_steps, config.steps)
        self.log.start(self.step, begin=begin, end=end, sums=progress.sums)

        def finish_saving(batch, logs=None):
            # Before the last steps, so that a checkpoint is whole when the
            # next is due: a kill costs less than two intervals.
            last = self.step + batch + self.step_model.steps_per_execution
            if last >= end:
                self.writer.wait()

        self.step_model.fit(
            build_training_dataset(
                self.rows["train"],
                **self.order,
                start_step=self.step + progress.data_offset,
                num_steps=end + progress.data_offset,
            ),
            callbacks=[
                self.log,
                self.watch,
                keras.callbacks.LambdaCallback(
                    on_train_batch_begin=finish_saving
                ),
            ],
            shuffle=False,
            verbose=0,
        )
        self.step = self.log.step
        self.progress = progress.after(
            watch=self.watch.state(),
            sums=None if self.log.event else self.log.sums(),
        )
        if self.watch.has_diverged:
            raise InputError(
                f"{self.name}: loss or gradient was not finite in any of the "
                f"last {self.watch.skipped_in_a_row} steps, up to step "
                f"{self.step}; their rows are in {self.folder}/metrics.jsonl; "
                f"lower the learning_rate."
            )
        if self.watch.has_spike:
            self._roll_back()
        elif self.step < end:
            self._save()
            self._stop()

    def _roll_back(self):
        """Goes back to the last validation, and past the batches since."""
        spike, before = self.step, self.progress
        if before.num_rollbacks == MAX_ROLLBACKS:
            raise InputError(
                f"{self.name}: the loss rose again by spike_rise="
                f"{self.config.spike_rise} after {MAX_ROLLBACKS} returns to "
                f"step {before.validated_step}; lower the learning_rate or "
                f"raise spike_rise."
            )
        self.writer.wait()
        self._load(at_most=before.validated_step)
        self.progress = self.progress.after(
            data_offset=before.data_offset + spike - self.step,
            num_rollbacks=before.num_rollbacks + 1,
        )
        self.log.note(
            spike,
            "rollback",
            {"to": self.step, "data_offset": self.progress.data_offset},
        )
        self.tell(
            f"{self.name}: the loss rose by more than "
            f"{self.config.spike_rise} nats up to step {spike}: back to step "
            f"{self.step}, and past the batches since."
        )

    def _save(self, *, is_best=False):
        """Copies the state and lets it be written while training goes on."""
        if not is_chief(self.strategy):
            return
        # First, so that there is never more than one copy.
        self.writer.wait()
        state = RunState.of(
            self.model,
            self.step_model.optimizer,
            step=self.step,
            progress=dataclasses.asdict(self.progress),
            metrics=self.log.text(),
            facts=self._facts(),
        )
        keep_steps = {self.progress.best_step, self.progress.validated_step}

        def write():
            # The model first: if the state is lost, it is found again.
            if is_best:
                self.outcome.save(state.weights, step=state.step)
            save_run_state(
                self.states,
                state,
                keep_last=self.config.keep_last,
                keep_steps=keep_steps,
            )

        self.writer.start(write)

    def _is_stopped(self):
        """Returns whether to stop now; several workers stop in a step."""
        return self.request.signal_number and not spans_workers(self.strategy)

    def _stop(self):
        self.writer.wait()
        raise Interrupted(
            # None came if another worker was told to stop.
            self.request.signal_number or signal.SIGTERM,
            f"{self.name}: stopped at step {self.step} of "
            f"{self.config.steps} and saved; the same command (without "
            f"overwrite=true) goes on from here.",
        )

    def _row_numbers(self, step):
        numbers = training_row_numbers(
            step + self.progress.data_offset,
            num_rows=len(self.rows["train"]),
            **self.order,
        )
        return numbers.numpy().tolist()

    def _facts(self):
        """Returns what must, and what should, be the same on resuming."""
        versions = {
            name: importlib.metadata.version(name)
            for name in ("keras", "tensorflow", "numpy")
        }
        return {
            "config": self.config.to_dict(),
            "tokenizer": self.tokenizer.fingerprint(),
            "data": {**self.order, "num_rows": len(self.rows["train"])},
            "software": {
                **versions,
                "python": platform.python_version(),
                "backend": keras.backend.backend(),
                "jit_compile": self.step_model.jit_compile,
                "replicas": num_shares(self.strategy),
                "accumulate_steps": self.config.accumulate_steps,
                "parts_at_once": self.step_model.parts_at_once,
            },
        }


def _token_bytes(model, tokenizer):
    """Returns a list of int; ids after the tokenizer's are the model's own."""
    known = tokenizer.token_bytes
    return [*known, *[0] * (model.config.vocabulary_size - len(known))]


def _compile(model, config, strategy, *, token_bytes, build_step):
    """Returns the compiled TokenStep."""
    schedule = build_schedule(
        config.schedule,
        config.peak_learning_rate(model.config.model_dim),
        total_steps=config.steps,
        warmup_fraction=config.warmup_fraction,
        decay_fraction=config.decay_fraction,
        final_fraction=config.final_fraction,
    )
    jit_compile = resolve_jit_compile(config.jit_compile, strategy)
    with strategy.scope():
        step_model = (build_step or _step_type())(
            model,
            clip_norm=config.clip_norm,
            token_bytes=token_bytes,
            accumulate_steps=config.accumulate_steps,
        )
        step_model.build()
        step_model.compile(
            optimizer=build_optimizer(
                config.optimizer,
                schedule,
                weight_decay=config.weight_decay,
                muon_learning_rate_ratio=config.muon_learning_rate_ratio,
            ),
            jit_compile=jit_compile,
            steps_per_execution=_group_steps(model.config, config),
        )
    return step_model


def _step_type():
    """Returns the TokenStep of the backend."""
    if is_tensorflow():
        return TrainStep
    # Not above: it needs jax, which need not be there.
    return importlib.import_module("kerasgpt.training.jax_step").JaxTrainStep


def _group_steps(model_config, config):
    """Returns how many steps one call of the backend makes.

    As many as pay for the call, few enough to stop soon after a signal; a
    divisor of `log_steps`, so that events fall between two calls.
    """
    flops = model_config.training_flops_per_token * config.batch_tokens
    most = min(config.log_steps, config.evaluate_steps)
    most = min(most, max(1, int(GROUP_FLOPS / flops)))
    return next(
        count for count in range(most, 0, -1) if config.log_steps % count == 0
    )
