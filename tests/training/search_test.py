import sys

import pytest

from kerasgpt.config import InputError
from kerasgpt.console import Interrupted
from kerasgpt.training.search import (
    HPARAMS_FOLDER,
    search,
    trial_table,
)

pytest.importorskip("keras_tuner", reason="needs the extra tune")


def choose(draw):
    return {
        "train.steps": draw.Int("steps", 1, 1000),
        "b": draw.Float("b", 0, 1),
    }


def far_from_300(values, folder):
    return {"loss": abs(values["train.steps"] - 300), "step": 1.0}


def run(folder, count, evaluate=far_from_300, **changes):
    return search(
        folder,
        choose,
        evaluate,
        objective="loss",
        tell=changes.pop("tell", lambda _: None),
        num_trials=count,
        **changes,
    )


def test_the_best_trial_stands_first(tmp_path):
    trials = run(tmp_path / "s", 6)
    losses = [trial.metrics["loss"] for trial in trials]
    assert losses == sorted(losses) and len(set(losses)) > 1
    assert {trial.number for trial in trials} == set(range(6))
    for trial in trials:
        assert trial.metrics["loss"] == abs(trial.values["train.steps"] - 300)


def test_a_seed_draws_the_same_settings(tmp_path):
    one, other = (run(tmp_path / name, 3) for name in "ab")
    assert [trial.values for trial in one] == [trial.values for trial in other]
    third = run(tmp_path / "c", 3, seed=1)
    assert [trial.values for trial in third] != [trial.values for trial in one]


def test_each_trial_is_a_session_of_hparams(tmp_path):
    run(tmp_path, 2)
    for number in range(2):
        folder = tmp_path / HPARAMS_FOLDER / f"trial_{number}"
        (events,) = folder.iterdir()
        content = events.read_bytes()
        assert b"_hparams_" in content and b"train.steps" in content
        assert b"loss" in content


def test_a_finished_search_is_given_more_trials(tmp_path):
    tried = []

    def evaluate(values, folder):
        tried.append(folder.name)
        return far_from_300(values, folder)

    first = run(tmp_path, 2, evaluate)
    again = run(tmp_path, 2, evaluate)
    assert again == first and len(tried) == 2
    more = run(tmp_path, 4, evaluate)
    assert len(more) == 4 and tried[2:] == ["trial_2", "trial_3"]
    before = {trial.number: trial for trial in more}
    assert all(before[trial.number] == trial for trial in first)


def test_a_stopped_search_goes_on_with_the_trial_it_was_in(tmp_path):
    tried = []

    def stop_once(values, folder):
        tried.append((folder.name, values["train.steps"]))
        if len(tried) == 2:
            raise Interrupted(2, "stopped")
        return far_from_300(values, folder)

    with pytest.raises(Interrupted):
        run(tmp_path, 3, stop_once)
    trials = run(tmp_path, 3, stop_once)
    assert tried[1] == tried[2] and len(tried) == 4
    assert len(trials) == 3 and all(trial.metrics for trial in trials)


def test_a_killed_first_trial_is_tried_again(tmp_path):
    def kill(values, folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 2, kill)
    trials = run(tmp_path, 2)
    assert {trial.number for trial in trials} == {0, 1}
    assert all(trial.metrics for trial in trials)


def test_a_failed_trial_is_told_and_stands_last(tmp_path):
    lines = []

    def fail_first(values, folder):
        if folder.name == "trial_0":
            raise InputError("the loss is not finite.")
        return far_from_300(values, folder)

    trials = run(tmp_path, 3, fail_first, tell=lines.append)
    assert trials[-1].number == 0 and not trials[-1].metrics
    assert "trial 0: failed: the loss is not finite." in lines
    table = trial_table(trials, "loss")
    assert table.splitlines()[-1].endswith("| failed |")


def test_nothing_but_failures_is_refused(tmp_path):
    def fail(values, folder):
        raise InputError("no.")

    with pytest.raises(
        InputError, match=r"too many trials failed .* the last: no"
    ):
        run(tmp_path, 8, fail)


def test_without_keras_tuner_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_tuner", None)
    with pytest.raises(InputError, match=r"pip install 'kerasgpt\[tune\]'"):
        run(tmp_path, 1)


def test_a_fault_of_ours_ends_the_search(tmp_path):
    def fail(values, folder):
        raise TypeError("a fault")

    with pytest.raises(TypeError, match="a fault"):
        run(tmp_path, 2, fail)
