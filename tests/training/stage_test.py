import dataclasses
import errno
import json
import math
import os
import re
import signal
import time

import keras
import numpy as np
import pytest
import safetensors.numpy
from tensorboard.backend.event_processing import event_file_loader

from kerasgpt.checkpoints import list_run_states, load_model
from kerasgpt.checkpoints.adapter import load_adapter, merge_adapters
from kerasgpt.checkpoints.model_folder import name_variables
from kerasgpt.config import InputError
from kerasgpt.console import Interrupted
from kerasgpt.data.packing import pack
from kerasgpt.data.pipelines import training_row_numbers
from kerasgpt.files import write_manifest
from kerasgpt.models import GPTCausalLM
from kerasgpt.models.lora import LoRAConfig, add_lora
from kerasgpt.tokenizers import ByteTokenizer
from kerasgpt.training import stage
from kerasgpt.training.callbacks import ProgressLog
from kerasgpt.training.stage import (
    TrainConfig,
    train,
)
from tests.descriptors import tiny_config

LENGTH = 16
CONFIG = TrainConfig(
    steps=8,
    max_skipped_steps=4,
    batch_tokens=2 * LENGTH,
    optimizer="adamw",
    learning_rate=1e-2,
    evaluate_steps=4,
    log_steps=2,
    jit_compile=False,
)
TEXT = "to be, or not to be, that is the question: " * 20


@pytest.fixture(scope="module")
def tokenizer():
    return ByteTokenizer()


@pytest.fixture(scope="module")
def rows(tokenizer):
    token_ids = np.array(tokenizer.encode(TEXT))
    parts = {"train": token_ids[:600], "validation": token_ids[600:]}
    return {
        name: pack(
            part,
            np.ones(len(part), np.uint8),
            np.array([0, len(part)]),
            row_length=LENGTH,
        )
        for name, part in parts.items()
    }


def build_model(**changes):
    keras.utils.set_random_seed(5)
    fields = {"vocabulary_size": 265, "context_length": LENGTH}
    config = tiny_config(**fields, num_layers=1, **changes)
    model = GPTCausalLM(config, name="gpt")
    model.build()
    return model


class Teller:
    """Keeps progress lines; a line with `at` in it is followed by a signal."""

    def __init__(self, at=None, number=signal.SIGINT):
        self.lines = []
        self.at = at
        self.number = number

    def __call__(self, line):
        self.lines.append(line)
        if self.at and self.at in line:
            os.kill(os.getpid(), self.number)

    def has(self, text):
        return any(text in line for line in self.lines)


@pytest.fixture
def start(rows, tokenizer):
    """Returns a function that trains a new model, or `model`, in a folder."""

    def start(
        folder,
        config=CONFIG,
        *,
        told=None,
        model=None,
        rows=rows,
        lora=None,
    ):
        return train(
            model or build_model(),
            tokenizer,
            rows,
            config,
            folder,
            name="base",
            seed=3,
            sample=lambda model: "a sample",
            lora=lora,
            tell=told or Teller(),
        )

    return start


def weights(folder):
    model, _ = load_model(folder)
    return model.get_weights()


def last_state(folder):
    """Returns the bytes of the newest weights and optimizer variables."""
    state = list_run_states(folder / "checkpoints")[-1]
    return {
        name: (state / name).read_bytes()
        for name in ("model.safetensors", "optimizer.safetensors")
    }


def events(folder, split):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        event for event in map(json.loads, lines) if event["split"] == split
    ]


@pytest.fixture(scope="module")
def finished(rows, tokenizer, tmp_path_factory):
    """A stage that trained undisturbed: (its result, its progress lines)."""
    told = Teller()
    folder = tmp_path_factory.mktemp("finished") / "run"
    result = train(
        build_model(),
        tokenizer,
        rows,
        CONFIG,
        folder,
        name="base",
        seed=3,
        sample=lambda model: "a sample",
        tell=told,
    )
    return result, told


def test_epochs_are_counted_in_steps(start, rows, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=0.25, steps=1)
    told = Teller()
    start(tmp_path, config, told=told)
    steps = math.ceil(0.25 * len(rows["train"]) / 2)
    assert steps > 1
    assert told.has(f"base {steps}/{steps}  validation")


def test_training_learns_and_returns_the_best_validation(finished):
    result, _ = finished
    first, *later = events(result.folder, "validation")
    losses = [event["loss"] for event in later]
    assert losses[0] < math.log(265)
    assert result.metrics["loss"] == min(losses) < first["loss"]
    assert result.metrics["step"] in (4, 8)
    assert {"accuracy", "perplexity", "bits_per_byte"} <= set(result.metrics)
    saved = json.loads((result.folder / "result.json").read_text())
    assert saved == result.metrics


def test_the_model_is_validated_before_the_first_step(finished, start):
    result, told = finished
    lines = (result.folder / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert (first.pop("step"), first.pop("split")) == (0, "validation")
    assert result.metrics["before"] == first
    # A new model knows nothing: it gives all 265 ids much the same chance.
    assert first["loss"] == pytest.approx(math.log(265), abs=0.5)
    assert told.lines[0].startswith("base 0/8  validation: loss ")


def test_a_crash_before_the_first_checkpoint_tells_no_event_twice(
    finished, start, tmp_path
):
    def crash(line):
        if "base 2/8" in line:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        start(tmp_path, told=crash)
    assert len(events(tmp_path, "validation")) == 1
    assert_same_end(start(tmp_path), finished[0])
    train_events = events(tmp_path, "train")
    assert [event["step"] for event in train_events] == [2, 4, 6, 8]


def test_every_event_has_its_numbers(finished):
    result, _ = finished
    train_events = events(result.folder, "train")
    assert [event["step"] for event in train_events] == [2, 4, 6, 8]
    means = {"loss", "accuracy", "perplexity", "bits_per_byte"}
    rates = {"learning_rate", "gradient_norm", "tokens_per_second"}
    for event in train_events:
        assert means | rates <= set(event)
        assert all(math.isfinite(event[name]) for name in means | rates)
    validation_events = events(result.folder, "validation")
    assert [event["step"] for event in validation_events] == [0, 4, 8]
    assert all(means <= set(event) for event in validation_events)


def test_tensorboard_shows_both_splits_and_a_sample(finished):
    result, _ = finished
    found = {}
    for path in (result.folder / "tensorboard").iterdir():
        for event in event_file_loader.EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    assert found["validation/loss"] == [0, 4, 8]
    assert found["sample"] == [4, 8]
    scalars = ("loss", "accuracy", "perplexity", "bits_per_byte")
    rates = ("learning_rate", "gradient_norm", "tokens_per_second")
    for name in (*scalars, *rates):
        assert found[f"train/{name}"] == [2, 4, 6, 8]


def test_a_finished_stage_is_returned_at_once(finished, start):
    result, _ = finished
    before = weights(result.folder)
    told = Teller()
    again = start(result.folder, told=told, model="is not even looked at")
    assert told.lines == [f"base: already trained, see {result.folder}."]
    assert again.metrics == result.metrics
    for one, other in zip(before, again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_of_the_states_the_last_ones_are_kept(start, tmp_path):
    config = dataclasses.replace(CONFIG, evaluate_steps=2, keep_last=2)
    start(tmp_path, config)
    names = [path.name for path in list_run_states(tmp_path / "checkpoints")]
    assert names == ["step_00000006", "step_00000008"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files if "tfevents" not in path.name} == {
        ".json",
        ".jsonl",
        ".safetensors",
    }


class StateLog(ProgressLog):
    """Notes which checkpoints are whole when an event is told."""

    whole = None

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        states = list_run_states(self.folder / "checkpoints")
        self.whole[self.step] = [int(path.name[-8:]) for path in states]


def test_a_slow_disk_costs_less_than_two_intervals(
    start, tmp_path, monkeypatch
):
    save = stage.save_run_state

    def save_slowly(*args, **fields):
        time.sleep(0.5)
        save(*args, **fields)

    monkeypatch.setattr(stage, "save_run_state", save_slowly)
    monkeypatch.setattr(stage, "ProgressLog", StateLog)
    monkeypatch.setattr(StateLog, "whole", whole := {})
    start(tmp_path, dataclasses.replace(CONFIG, evaluate_steps=2))
    assert set(whole) >= {4, 6, 8}
    for step, states in whole.items():
        if step > 2:
            assert max(states) > step - 4


def assert_same_end(one, other):
    """Asserts that two stages ended alike, to the last bit."""
    assert one.metrics == other.metrics
    assert last_state(one.folder) == last_state(other.folder)
    pairs = zip(weights(one.folder), weights(other.folder), strict=True)
    for first, second in pairs:
        np.testing.assert_array_equal(first, second)
    assert told_of(one.folder) == told_of(other.folder)


def told_of(folder):
    """Returns the lines of metrics.jsonl, as they are but for the time."""
    text = (folder / "metrics.jsonl").read_text()
    return re.sub(r'"tokens_per_second": [^,}]+', "", text).splitlines()


class StoppingLog(ProgressLog):
    """Sends a signal after step `at`."""

    at = None

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if self.step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("jit_compile", "stops"),
    [(False, [3, 6, 11]), (True, [5])],
    ids=["plain", "xla"],
)
def test_a_run_stopped_at_any_step_ends_with_the_same_bits(
    start, tmp_path, monkeypatch, jit_compile, stops
):
    config = dataclasses.replace(
        CONFIG,
        steps=13,
        evaluate_steps=6,
        log_steps=4,
        optimizer="muon",
        jit_compile=jit_compile,
    )
    monkeypatch.setattr(stage, "ProgressLog", StoppingLog)
    # One step a call, so that it can be stopped after each.
    monkeypatch.setattr(stage, "GROUP_FLOPS", 1.0)
    runs = {}
    for name, places in {"undisturbed": [], "stopped": stops}.items():
        for at in [*places, None]:
            monkeypatch.setattr(StoppingLog, "at", at)
            try:
                runs[name] = start(
                    tmp_path / name,
                    config,
                    model=build_model(dropout_rate=0.3),
                )
            except Interrupted as stop:
                assert f"stopped at step {at} of 13" in str(stop)
    assert_same_end(runs["stopped"], runs["undisturbed"])


def test_a_signal_in_a_validation_does_not_wait_for_its_end(
    finished, start, tmp_path, monkeypatch
):
    batches = []

    def on_test_batch_end(self, batch, logs=None):
        batches.append(batch)
        if len(batches) > len(events(finished[0].folder, "validation")):
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, batch, logs)

    original = stage.Watch.on_test_batch_end
    with monkeypatch.context() as patch:
        patch.setattr(stage.Watch, "on_test_batch_end", on_test_batch_end)
        with pytest.raises(Interrupted):
            start(tmp_path)
    assert_same_end(start(tmp_path), finished[0])


@pytest.mark.parametrize("num_calls", [0, 25])
def test_a_full_disk_ends_training_until_there_is_room(
    finished, start, tmp_path, monkeypatch, num_calls
):
    calls, fsync = [], os.fsync

    def fail(descriptor):
        calls.append(descriptor)
        if len(calls) > num_calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(InputError, match="No space left") as caught:
            start(tmp_path)
    assert "\n" not in str(caught.value)
    assert_same_end(start(tmp_path), finished[0])


def test_a_stopped_run_goes_on_to_identical_weights(finished, start, tmp_path):
    for at in (
        "base 2/8",
        # Both where a validation is due, the second at the end of the run.
        "base 4/8  loss",
        "base 8/8  loss",
        "base 8/8  validation",
    ):
        with pytest.raises(Interrupted) as stop:
            start(tmp_path, told=Teller(at))
        assert stop.value.signal_number == signal.SIGINT
        assert "stopped at step" in str(stop.value)
        assert "goes on from here" in str(stop.value)
        assert not (tmp_path / "result.json").exists()
    told = Teller()
    result = start(tmp_path, told=told)
    assert told.has("goes on at step")
    assert_same_end(result, finished[0])


def test_sigterm_stops_like_sigint_and_handlers_come_back(start, tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    told = Teller("base 2/8", signal.SIGTERM)
    with pytest.raises(Interrupted) as stop:
        start(tmp_path, told=told)
    assert stop.value.signal_number == signal.SIGTERM
    after = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert after == before


def test_a_damaged_checkpoint_is_passed_over(finished, start, tmp_path):
    with pytest.raises(Interrupted):
        start(tmp_path, told=Teller("base 6/8"))
    newest = list_run_states(tmp_path / "checkpoints")[-1]
    (newest / "optimizer.safetensors").write_bytes(b"half a file")
    told = Teller()
    start(tmp_path, told=told)
    assert told.has("goes on at step 4")
    assert last_state(tmp_path) == last_state(finished[0].folder)


def test_no_clock_has_a_say_in_what_is_newest(
    finished, start, tmp_path, monkeypatch
):
    # A clock that jumps back between two saves, and again on resuming.
    now = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    with pytest.raises(Interrupted):
        start(tmp_path, told=Teller("base 6/8"))
    for age, state in enumerate(list_run_states(tmp_path / "checkpoints")):
        for path in (state, *state.iterdir()):
            os.utime(path, (10**9 - age, 10**9 - age))
    told = Teller()
    result = start(tmp_path, told=told)
    assert told.has("goes on at step 6")
    assert_same_end(result, finished[0])


def test_a_checkpoint_of_another_architecture_is_refused(start, tmp_path):
    with pytest.raises(Interrupted):
        start(tmp_path, told=Teller("base 2/8"))
    for changes in ({"use_bias": True}, {"model_dim": 32}):
        with pytest.raises(InputError, match="no checkpoint is whole") as told:
            start(tmp_path, model=build_model(**changes))
        assert "overwrite=true" in str(told.value)
        assert "\n" not in str(told.value)
    assert start(tmp_path).metrics["step"] in (4, 8)


def test_training_stops_early_and_keeps_the_best_model(start, tmp_path):
    # So fast that every validation is worse than the first one.
    config = dataclasses.replace(
        CONFIG,
        steps=40,
        evaluate_steps=2,
        patience=2,
        learning_rate=3.0,
        schedule="cosine",
    )
    told = Teller()
    result = start(tmp_path, config, told=told)
    _, *later = events(tmp_path, "validation")
    losses = [event["loss"] for event in later]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + config.patience < 20
    assert result.metrics["loss"] == losses[best]
    assert result.metrics["step"] == 2 * (best + 1)
    assert told.has("stopped early")
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    assert manifest["step"] == result.metrics["step"]


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        # Layer normalisation of such weights gives NaN, so does validation.
        ("layer", "no validation gave a finite loss"),
        # RMS normalisation gives 0, and validation looks sound.
        ("rms", "not finite in any of the last 5 steps"),
    ],
)
def test_a_loss_that_is_not_finite_never_reaches_the_weights(
    start, tmp_path, norm, reason
):
    config = dataclasses.replace(CONFIG, learning_rate=1e30, patience=1)
    model = build_model(norm=norm)
    told = Teller()
    with pytest.raises(InputError, match="lower the learning_rate") as caught:
        start(tmp_path, config, told=told, model=model)
    assert reason in str(caught.value)
    assert told.has("steps were skipped")
    for variable in model.variables:
        assert np.isfinite(variable.numpy()).all()
    assert not (tmp_path / "result.json").exists()


def change_rows(rows, row, *, tokens=None, mask=None):
    """Returns rows of which one has other tokens or another loss mask."""
    train_rows = rows["train"]
    token_ids = train_rows.token_ids.copy()
    loss_mask = train_rows.loss_mask.astype(np.float32)
    (piece,) = range(*train_rows.row_splits[row : row + 2])
    first = train_rows.piece_starts[piece] + 1
    here = np.s_[first : first + train_rows.piece_lengths[piece]]
    if tokens is not None:
        token_ids[here] = tokens
    if mask is not None:
        loss_mask[here] = mask
    changed = dataclasses.replace(
        train_rows, token_ids=token_ids, loss_mask=loss_mask
    )
    return {**rows, "train": changed}


def rows_of_step(rows, step):
    return (
        training_row_numbers(
            step, num_rows=len(rows["train"]), batch_size=2, seed=3
        )
        .numpy()
        .tolist()
    )


def test_a_bad_batch_is_skipped_noted_and_skipped_again_on_replay(
    rows, start, tmp_path
):
    bad = rows_of_step(rows, 5)
    changed = change_rows(rows, bad[0], mask=math.nan)
    undisturbed = start(tmp_path / "one", rows=changed)
    (event,) = events(tmp_path / "one", "skipped")
    assert event["steps"] == 1
    assert event["among"] == [4, 6]
    assert bad in event["rows"]
    for variable in weights(tmp_path / "one"):
        assert np.isfinite(variable).all()
    with pytest.raises(Interrupted):
        start(tmp_path / "two", rows=changed, told=Teller("base 6/8  loss"))
    assert_same_end(start(tmp_path / "two", rows=changed), undisturbed)


def spiky(rows, step):
    """Returns rows of which one, read at this step, is like no other."""
    return change_rows(rows, rows_of_step(rows, step)[0], tokens=263)


def test_a_spike_takes_training_back_and_past_it_the_same_on_replay(
    rows, start, tmp_path
):
    config = dataclasses.replace(
        CONFIG, steps=12, log_steps=1, spike_rise=0.15, keep_last=1
    )
    changed = spiky(rows, 9)
    told = Teller()
    undisturbed = start(tmp_path / "one", config, rows=changed, told=told)
    assert told.has("back to step 8")
    (event,) = events(tmp_path / "one", "rollback")
    assert event == {
        "step": 10,
        "split": "rollback",
        "to": 8,
        "data_offset": 2,
    }
    steps = [event["step"] for event in events(tmp_path / "one", "train")]
    assert steps == [*range(1, 11), *range(9, 13)]
    for at in ("base 9/12  loss", "back to step 8"):
        with pytest.raises(Interrupted):
            start(tmp_path / "two", config, rows=changed, told=Teller(at))
    again = start(tmp_path / "two", config, rows=changed)
    assert_same_end(again, undisturbed)


def test_a_loss_that_rises_again_and_again_ends_training(rows, start, tmp_path):
    config = dataclasses.replace(
        CONFIG, log_steps=1, spike_rise=0.5, learning_rate=3.0
    )
    with pytest.raises(InputError, match=r"rose again by spike_rise=0\.5"):
        start(tmp_path, config)


def test_a_checkpoint_of_another_order_of_the_data_is_refused(
    rows, start, tmp_path
):
    with pytest.raises(Interrupted):
        start(tmp_path, told=Teller("base 2/8"))
    config = dataclasses.replace(CONFIG, batch_tokens=4 * LENGTH)
    with pytest.raises(InputError, match="belong to a run with data") as caught:
        start(tmp_path, config)
    assert "'batch_size': 2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_version_is_refused(start, tmp_path):
    with pytest.raises(Interrupted):
        start(tmp_path, told=Teller("base 2/8"))
    for state in list_run_states(tmp_path / "checkpoints"):
        saved = json.loads((state / "progress.json").read_text())
        saved["progress"]["of another time"] = 1
        (state / "progress.json").write_text(json.dumps(saved))
        write_manifest(state)
    with pytest.raises(InputError, match="another version of kerasgpt"):
        start(tmp_path)


def test_other_software_is_told(start, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        start(tmp_path, told=Teller("base 2/8"))
    monkeypatch.setattr(stage.platform, "python_version", lambda: "4.0")
    told = Teller()
    start(tmp_path, told=told)
    assert told.has("with 4.0 its last digits may differ")
    assert not told.has("began with keras")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_too_little_text_is_refused(rows, tokenizer, tmp_path, split):
    one_token = np.array([0, 1])
    empty = pack(
        np.array([70]), np.ones(1, np.uint8), one_token, row_length=LENGTH
    )
    with pytest.raises(InputError, match=f"predict in the {split} split"):
        train(
            build_model(),
            tokenizer,
            {**rows, split: empty},
            CONFIG,
            tmp_path / "run",
            name="base",
            seed=3,
            sample=lambda model: "a sample",
        )
    assert not (tmp_path / "run").exists()


def test_a_batch_of_less_than_a_row_is_refused(start, tmp_path):
    config = dataclasses.replace(CONFIG, batch_tokens=LENGTH - 1)
    with pytest.raises(InputError, match="batch_tokens=15") as caught:
        start(tmp_path / "run", config)
    assert f"one row of {LENGTH} tokens" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"batch_tokens": -1},
        {"evaluate_steps": 0},
        {"evaluate_rows": 0},
        {"patience": 0},
        {"keep_last": 0},
        {"max_skipped_steps": 0},
        {"spike_rise": 0.0},
        {"log_steps": 0},
        {"learning_rate": 0.0},
        {"learning_rate": -1e-3},
        {"learning_rate": math.inf},
        {"learning_rate_factor": 0.0},
        {"muon_learning_rate_ratio": 0.0},
        {"weight_decay": -0.1},
        {"warmup_fraction": 1.1},
        {"decay_fraction": -0.1},
        {"final_fraction": 2.0},
        {"clip_norm": 0.0},
    ],
)
def test_values_out_of_range_are_refused_by_name(change):
    ((name, value),) = change.items()
    with pytest.raises(InputError, match=f"{name}={value}: must be"):
        TrainConfig(**change)


def test_the_rate_follows_from_the_width_unless_it_is_set():
    assert TrainConfig(learning_rate=0.5).peak_learning_rate(999) == 0.5
    config = TrainConfig()
    narrow, wide = (config.peak_learning_rate(dim) for dim in (128, 512))
    assert narrow == 2 * wide


def build_adapted(lora):
    model = build_model()
    add_lora(model, lora)
    return model


def test_a_stopped_run_of_adapters_goes_on_to_identical_weights(
    start, tmp_path
):
    lora = LoRAConfig(rank=2)
    start(tmp_path / "whole", model=build_adapted(lora), lora=lora)
    run = tmp_path / "stopped"
    for at in ("base 2/8", "base 6/8"):
        told = Teller(at)
        with pytest.raises(Interrupted):
            start(run, model=build_adapted(lora), lora=lora, told=told)
    told = Teller()
    start(run, model=build_adapted(lora), lora=lora, told=told)
    assert told.has("goes on at step")
    for one, other in zip(
        weights(run), weights(tmp_path / "whole"), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert last_state(run) == last_state(tmp_path / "whole")


def test_adapters_alone_are_in_checkpoints_and_merged_into_the_model(
    start, tmp_path
):
    lora = LoRAConfig(rank=2, targets="up")
    start(tmp_path, model=build_adapted(lora), lora=lora)
    state = list_run_states(tmp_path / "checkpoints")[-1]
    names = safetensors.numpy.load_file(state / "model.safetensors")
    assert all("lora" in name for name in names) and names
    base = build_model()
    before = dict(zip(names_of(base), base.get_weights(), strict=True))
    merge_adapters(base, [load_adapter(tmp_path)])
    for one, other in zip(weights(tmp_path), base.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    after = dict(zip(names_of(base), base.get_weights(), strict=True))
    changed = {n for n in after if not np.array_equal(after[n], before[n])}
    assert changed == {"backbone/block_0/feed_forward/up/kernel"}


def names_of(model):
    return list(name_variables(model.weights))
