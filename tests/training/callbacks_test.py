import json
import math

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.util import tensor_util

from kerasgpt.training import callbacks
from kerasgpt.training.callbacks import ProgressLog
from kerasgpt.training.optimizers import build_optimizer

LOGS = {
    "loss": 2.0,
    "accuracy": 0.25,
    "bits_per_byte": 1.5,
    "gradient_norm": 0.75,
    "skipped_steps": 0.0,
}


class Model:
    """Stands for the compiled model that fit hands to callbacks."""

    def __init__(self):
        self.optimizer = keras.optimizers.SGD(0.125)
        self.num_resets = 0
        self.metrics = [keras.metrics.Mean(name="loss")]

    def reset_metrics(self):
        self.num_resets += 1


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when the test says so."""
    times = [100.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: times[0])
    return times


@pytest.fixture
def log(tmp_path, clock):
    lines = []
    log = ProgressLog(
        tmp_path,
        name="base",
        total_steps=100,
        batch_tokens=50,
        log_steps=10,
        tell=lines.append,
    )
    log.lines = lines
    log.set_model(Model())
    return log


def events(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def summaries(folder):
    """Returns (step, tag, value) of all TensorBoard events below a folder."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        for event in event_file_loader.EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                array = tensor_util.make_ndarray(value.tensor)
                found.append((event.step, value.tag, array))
    return found


def test_an_event_is_written_every_log_steps(log, tmp_path):
    log.start(0, begin=0, end=40)
    for batch in (4, 9, 14, 19, 24):
        log.on_train_batch_end(batch, LOGS)
    assert [event["step"] for event in events(tmp_path)] == [10, 20]
    assert len(log.lines) == log.model.num_resets == 2


def test_the_end_of_a_stretch_is_always_written(log, tmp_path):
    log.start(40, begin=40, end=47)
    log.on_train_batch_end(4, LOGS)
    # Keras counts a shorter last group of steps as a whole one.
    log.on_train_batch_end(9, LOGS)
    assert log.step == 47
    assert [event["step"] for event in events(tmp_path)] == [47]


def test_an_event_holds_all_numbers(log, tmp_path, clock):
    log.start(20, begin=20, end=60)
    clock[0] += 5.0
    log.on_train_batch_end(9, LOGS)
    (event,) = events(tmp_path)
    assert event == {
        "step": 30,
        "split": "train",
        **LOGS,
        "perplexity": pytest.approx(math.exp(2.0)),
        "learning_rate": 0.125,
        # 10 steps of 50 tokens in 5 seconds.
        "tokens_per_second": 100.0,
    }


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_rate_is_that_of_adamw(log, tmp_path, kind):
    log.model.optimizer = build_optimizer(
        kind, 0.125, weight_decay=0.0, muon_learning_rate_ratio=5.0
    )
    log.start(0, begin=0, end=100)
    log.on_train_batch_end(9, LOGS)
    (event,) = events(tmp_path)
    assert event["learning_rate"] == pytest.approx(0.125)


def test_a_line_tells_progress_and_the_time_left(log, clock):
    log.start(0, begin=0, end=100)
    clock[0] += 5.0
    log.on_train_batch_end(9, LOGS)
    # 90 steps of 50 tokens are left, at 100 tokens a second.
    assert log.lines == [
        "base 10/100  loss 2.0000  acc 0.250  grad 0.75  lr 1.2e-01  "
        "100 tok/s  ETA 0:45"
    ]


def test_skipped_steps_are_told(log):
    log.start(0, begin=0, end=100)
    log.on_train_batch_end(9, {**LOGS, "skipped_steps": 3.0})
    assert "3 steps were skipped" in log.lines[-1]
    assert "not finite" in log.lines[-1]


def test_a_huge_loss_gives_a_finite_perplexity(log, tmp_path):
    log.start(0, begin=0, end=100)
    log.on_train_batch_end(9, {**LOGS, "loss": 1e6})
    assert math.isfinite(events(tmp_path)[0]["perplexity"])


def test_a_resumed_run_goes_on_in_the_same_file(log, tmp_path):
    log.record(1, "train", {"loss": 3.0})
    again = ProgressLog(
        tmp_path, name="base", total_steps=9, batch_tokens=1, log_steps=1
    )
    again.record(2, "validation", {"loss": 2.0})
    assert events(tmp_path) == [
        {"step": 1, "split": "train", "loss": 3.0},
        {"step": 2, "split": "validation", "loss": 2.0},
    ]


def test_events_are_counted_from_the_begin_of_the_stretch(log, tmp_path):
    log.start(27, begin=20, end=45)
    for batch in range(18):
        log.on_train_batch_end(batch, LOGS)
        assert bool(log.event) == (log.step in (30, 40, 45))
    assert [event["step"] for event in events(tmp_path)] == [30, 40, 45]


def test_the_rate_is_of_the_steps_since_training_went_on(log, tmp_path, clock):
    log.start(27, begin=20, end=45)
    clock[0] += 1.5
    log.on_train_batch_end(2, LOGS)
    (event,) = events(tmp_path)
    assert event["tokens_per_second"] == 100.0


def test_a_mean_goes_on_where_training_was_stopped(log):
    (mean,) = log.model.metrics
    mean.update_state([1.0, 3.0])
    sums = json.loads(json.dumps(log.sums()))
    mean.reset_state()
    log.start(5, begin=0, end=10, sums=sums)
    log.on_epoch_begin(0)
    assert float(mean.result()) == 2.0
    mean.reset_state()
    log.start(5, begin=0, end=10)
    log.on_epoch_begin(0)
    assert float(mean.result()) == 0.0


def test_what_was_told_since_the_checkpoint_is_forgotten(log, tmp_path):
    assert log.text() == ""
    for step in (0, 2, 4):
        log.record(step, "train", {"loss": 3.0})
    text = log.text()
    log.note(4, "skipped", {"rows": [[1, 2]]})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "half an eve')
    log.restore(text)
    assert log.text() == text
    log.record(5, "train", {"loss": 3.0})
    assert [event["step"] for event in events(tmp_path)] == [0, 2, 4, 5]


def test_tensorboard_gets_scalars_and_samples(log, tmp_path):
    log.start(0, begin=0, end=100)
    log.on_train_batch_end(9, LOGS)
    log.record(10, "validation", {"loss": 1.75})
    log.record_sample(10, "Hi → Hello.\n你好 → 您好。")
    found = {tag: (step, value) for step, tag, value in summaries(tmp_path)}
    step, value = found["train/gradient_norm"]
    assert (step, float(value)) == (10, 0.75)
    step, value = found["validation/loss"]
    assert (step, float(value)) == (10, 1.75)
    for name in (*LOGS, "perplexity", "learning_rate", "tokens_per_second"):
        assert np.isfinite(found[f"train/{name}"][1])
    step, value = found["sample"]
    assert step == 10
    text = value.item().decode()
    assert text == "    Hi → Hello.\n    你好 → 您好。"
