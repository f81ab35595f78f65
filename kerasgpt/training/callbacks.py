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
        self.step = self.first_step = self.last_step = 0
        self.writer = tf.summary.create_file_writer(
            str(self.folder / "tensorboard")
        )

    def start(self, step, end):
        """Begins a stretch of training from `step` to `end`."""
        self.step = self.first_step = self.last_step = step
        self.end = end
        self.skipped_steps = 0
        self.last_time = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        # Keras counts the last, shorter group of steps as a whole one.
        step = self.step = min(self.first_step + batch + 1, self.end)
        if step - self.last_step < self.log_steps and step < self.end:
            return
        now = time.monotonic()
        seconds = max(now - self.last_time, 1e-9)
        rate = (step - self.last_step) * self.batch_tokens / seconds
        optimizer = self.model.optimizer
        values = {name: float(value) for name, value in logs.items()}
        values["perplexity"] = math.exp(min(values["loss"], 50.0))
        # Muon's own rate is set, AdamW's is a part of it; adamw sets its own.
        rate_of_adamw = getattr(optimizer, "adam_lr_ratio", 1.0)
        values["learning_rate"] = float(optimizer.learning_rate) * rate_of_adamw
        values["tokens_per_second"] = rate
        eta = (self.total_steps - step) * self.batch_tokens / rate
        self.record(step, "train", values)
        self.tell(
            f"{self.name} {step}/{self.total_steps}  "
            f"loss {values['loss']:.4f}  acc {values['accuracy']:.3f}  "
            f"grad {values['gradient_norm']:.2f}  "
            f"lr {values['learning_rate']:.1e}  {rate:,.0f} tok/s  "
            f"ETA {int(eta) // 60}:{int(eta) % 60:02d}"
        )
        self.skipped_steps += int(values["skipped_steps"])
        if values["skipped_steps"]:
            self.tell(
                f"{self.name}: {values['skipped_steps']:.0f} steps were "
                f"skipped: loss or gradient was not finite."
            )
        self.model.reset_metrics()
        self.last_step, self.last_time = step, now

    def forget_after(self, step):
        """Removes events past `step`: a resumed run tells them again."""
        path = self.folder / "metrics.jsonl"
        if path.is_file():
            lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            write_text(path, "".join(kept))

    def record(self, step, split, values):
        """Appends one event to metrics.jsonl and TensorBoard."""
        event = {"step": step, "split": split, **values}
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(event) + "\n")
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
