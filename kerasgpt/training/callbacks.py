"""Owns what is told while training. Not: when to stop or save (stage.py)."""

import json
import math
import pathlib
import time

import keras
import tensorflow as tf

from kerasgpt.files import write_text


class ProgressLog(keras.callbacks.Callback):
    """Tells how training goes: on the terminal, in a file, in TensorBoard.

    Writes `metrics.jsonl` (one JSON object an event, appended, so a resumed
    run goes on in it) and TensorBoard scalars and sample texts. Means cover
    the steps since the last event.

    Args:
        folder: str or Path of the stage.
        name: str, shown before each line.
        total_steps: int.
        batch_tokens: int, positions a step.
        log_steps: int. Steps between events.
        tell: function of one str, prints a line.
    """

    def __init__(
        self, folder, *, name, total_steps, batch_tokens, log_steps, tell=print
    ):
        super().__init__()
        self.folder = pathlib.Path(folder)
        self.name = name
        self.total_steps = total_steps
        self.batch_tokens = batch_tokens
        self.log_steps = log_steps
        self.tell = tell
        self.step = 0
        self.writer = tf.summary.create_file_writer(
            str(self.folder / "tensorboard")
        )

    def start(self, step, *, begin, end, sums=None):
        """Goes on at `step` in the stretch of training from `begin` to `end`.

        Args:
            step, begin, end: ints. Events are counted from `begin`.
            sums: what `sums` gave when training stopped here. `None` = this
                is the first step after an event.
        """
        self.step = self.first_step = self.last_step = step
        self.begin, self.end = begin, end
        self.held_sums = sums
        self.last_time = time.monotonic()

    def sums(self):
        """Returns the metrics since the last event, as lists of numbers."""
        return [variable.numpy().tolist() for variable in self._variables()]

    def on_epoch_begin(self, epoch, logs=None):
        # Not earlier: fit begins with metrics of its own.
        if self.held_sums:
            pairs = zip(self._variables(), self.held_sums, strict=True)
            for variable, held in pairs:
                variable.assign(held)

    def on_train_batch_end(self, batch, logs=None):
        # Keras counts the last, shorter group of steps as a whole one.
        step = self.step = min(self.first_step + batch + 1, self.end)
        self.event = None
        if (step - self.begin) % self.log_steps and step < self.end:
            return
        now = time.monotonic()
        seconds = max(now - self.last_time, 1e-9)
        rate = (step - self.last_step) * self.batch_tokens / seconds
        # Scaling the loss, it holds the one that is meant.
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        values = {name: float(value) for name, value in logs.items()}
        values["perplexity"] = math.exp(min(values["loss"], 50.0))
        # Muon's own rate is set, AdamW's is a part of it; adamw sets its own.
        rate_of_adamw = getattr(optimizer, "adam_lr_ratio", 1.0)
        values["learning_rate"] = float(optimizer.learning_rate) * rate_of_adamw
        values["tokens_per_second"] = rate
        eta = (self.total_steps - step) * self.batch_tokens / rate
        self.record(step, "train", values)
        self.event = values
        self.tell(
            f"{self.name} {step}/{self.total_steps}  "
            f"loss {values['loss']:.4f}  acc {values['accuracy']:.3f}  "
            f"grad {values['gradient_norm']:.2f}  "
            f"lr {values['learning_rate']:.1e}  {rate:,.0f} tok/s  "
            f"ETA {int(eta) // 60}:{int(eta) % 60:02d}"
        )
        if values["skipped_steps"]:
            self.tell(
                f"{self.name}: {values['skipped_steps']:.0f} steps were "
                f"skipped: loss or gradient was not finite."
            )
        self.model.reset_metrics()
        self.last_step, self.last_time = step, now

    def text(self):
        """Returns what metrics.jsonl holds: a part of the run's state."""
        path = self.folder / "metrics.jsonl"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def restore(self, text):
        """Makes metrics.jsonl hold `text`: a resumed run tells the rest."""
        write_text(self.folder / "metrics.jsonl", text)

    def note(self, step, split, values):
        """Appends one event to metrics.jsonl: JSON values of any kind."""
        event = {"step": step, "split": split, **values}
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(event) + "\n")

    def record(self, step, split, values):
        """Appends one event of numbers to metrics.jsonl and TensorBoard."""
        self.note(step, split, values)
        with self.writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(f"{split}/{name}", value)
        self.writer.flush()

    def record_sample(self, step, text):
        """Writes a sample of the model's text to TensorBoard."""
        with self.writer.as_default(step=step):
            # Four spaces make Markdown show the text as it is.
            block = "\n".join(f"    {line}" for line in text.splitlines())
            tf.summary.text("sample", block)
        self.writer.flush()

    def _variables(self):
        return [
            variable
            for metric in self.model.metrics
            for variable in metric.variables
        ]
