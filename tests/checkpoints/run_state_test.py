import errno
import os

import keras
import numpy as np
import pytest

from kerasgpt.checkpoints import (
    RunState,
    find_state_folders,
    list_run_states,
    load_run_state,
    prune_run_states,
    read_run_state,
    save_run_state,
)
from kerasgpt.config import InputError
from kerasgpt.models import GPTCausalLM
from kerasgpt.training.optimizers import build_optimizer
from tests.descriptors import tiny_config


def build(num_layers=1):
    """Returns (model, optimizer) that hold random numbers everywhere."""
    config = tiny_config(num_layers=num_layers, dropout_rate=0.1)
    model = GPTCausalLM(config, name="gpt")
    model.build()
    optimizer = build_optimizer(
        "muon", 0.1, weight_decay=0.1, muon_learning_rate_ratio=5.0
    )
    optimizer.build(model.trainable_variables)
    return model, optimizer


def randomise(model, optimizer, seed):
    random = np.random.default_rng(seed)
    for variable in [*model.variables, *optimizer.variables]:
        values = random.integers(0, 100, variable.shape)
        variable.assign(
            values.astype(keras.backend.standardize_dtype(variable.dtype))
        )


def values(model, optimizer):
    return [v.numpy() for v in [*model.variables, *optimizer.variables]]


def assert_equal(one, other):
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.fixture(scope="module")
def parts():
    return build()


@pytest.fixture
def states(parts, tmp_path):
    """Saves states 10, 20 and 30; returns what each of them held."""
    held = {}
    for step in (10, 20, 30):
        randomise(*parts, seed=step)
        save(tmp_path, parts, step)
        held[step] = values(*parts)
    randomise(*parts, seed=0)
    return held


def save(folder, parts, step, keep_last=3, **others):
    state = RunState.of(
        *parts,
        step=step,
        progress={"best_loss": float(step)},
        metrics="x" * step,
        facts={"seed": 3},
    )
    save_run_state(folder, state, keep_last=keep_last, **others)


def load(folder, parts, **others):
    return load_run_state(folder, model=parts[0], optimizer=parts[1], **others)


def test_the_newest_state_comes_back_bit_by_bit(parts, states, tmp_path):
    assert load(tmp_path, parts) == {
        "step": 30,
        "progress": {"best_loss": 30.0},
        "metrics": "x" * 30,
        "facts": {"seed": 3},
    }
    assert_equal(values(*parts), states[30])


def test_a_state_fills_a_model_of_another_process(parts, states, tmp_path):
    other = build()
    assert load(tmp_path, other)["step"] == 30
    assert_equal(values(*other), states[30])


def test_an_older_state_can_be_asked_for(parts, states, tmp_path):
    assert load(tmp_path, parts, at_most=29)["step"] == 20
    assert_equal(values(*parts), states[20])
    assert load(tmp_path, parts, at_most=9) is None


def test_training_on_does_not_change_a_state(parts):
    randomise(*parts, seed=1)
    state = RunState.of(*parts, step=1, progress={})
    before = values(*parts)
    randomise(*parts, seed=2)
    held = [*state.weights.values(), *state.optimizer.values()]
    assert_equal(held, before)


def test_an_infinite_best_loss_survives(parts, tmp_path):
    state = RunState.of(*parts, step=1, progress={"best_loss": float("inf")})
    save_run_state(tmp_path, state, keep_last=1)
    assert load(tmp_path, parts)["progress"] == {"best_loss": float("inf")}


def test_states_are_listed_oldest_first(parts, tmp_path):
    for step in (100, 99, 1000):
        save(tmp_path, parts, step)
    names = [path.name for path in list_run_states(tmp_path)]
    assert names == ["step_00000099", "step_00000100", "step_00001000"]


def test_only_the_last_states_are_kept(parts, tmp_path):
    for step in range(1, 6):
        save(tmp_path, parts, step, keep_last=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step_00000004", "step_00000005"]


def test_the_best_state_is_kept_too(parts, tmp_path):
    for step in range(1, 6):
        save(tmp_path, parts, step, keep_last=1, keep_steps={2})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step_00000002", "step_00000005"]


def test_pruning_tells_what_it_deleted(parts, states, tmp_path):
    pruned = prune_run_states(tmp_path, keep_last=1, keep_steps={10})
    assert [path.name for path in pruned] == ["step_00000020"]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step_00000010", "step_00000030"]


def test_what_a_killed_process_left_behind_is_cleared(parts, states, tmp_path):
    (tmp_path / ".step_00000040.abc").mkdir()
    aside = tmp_path / ".step_00000030.old.xyz"
    aside.mkdir()
    (tmp_path / "step_00000030").rename(aside / "step_00000030")
    assert load(tmp_path, parts)["step"] == 30
    assert len(list(tmp_path.iterdir())) == 3


def test_a_disk_that_takes_no_more_leaves_the_older_states(
    parts, states, tmp_path, monkeypatch
):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(InputError) as caught:
            save(tmp_path, parts, 40)
    told = str(caught.value)
    assert "the checkpoint of step 40 was not saved" in told
    assert "No space left on device" in told
    assert "\n" not in told
    assert len(list(tmp_path.iterdir())) == 3
    assert load(tmp_path, parts)["step"] == 30


def test_folders_of_states_are_found_at_any_depth(parts, tmp_path):
    with pytest.raises(InputError, match="holds no checkpoints"):
        find_state_folders(tmp_path)
    folders = [tmp_path / name / "checkpoints" for name in ("a", "b/c")]
    for folder in folders:
        save(folder, parts, 1)
    assert find_state_folders(tmp_path) == folders
    assert find_state_folders(folders[0]) == folders[:1]


def test_no_state_is_none(parts, tmp_path):
    assert load(tmp_path, parts) is None
    assert load(tmp_path / "missing", parts) is None


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


DAMAGES = {
    "flipped bit in the weights": ("model.safetensors", flip_a_bit),
    "flipped bit in the optimizer": ("optimizer.safetensors", flip_a_bit),
    "flipped bit in the progress": ("progress.json", flip_a_bit),
    "cut optimizer": ("optimizer.safetensors", cut),
    "no weights": ("model.safetensors", lambda path: path.unlink()),
    "no progress": ("progress.json", lambda path: path.unlink()),
    "no manifest": ("manifest.json", lambda path: path.unlink()),
    "cut manifest": ("manifest.json", cut),
    "flipped bit in the manifest": ("manifest.json", flip_a_bit),
    "no metrics": ("metrics.jsonl", lambda path: path.unlink()),
    "empty manifest": ("manifest.json", lambda path: path.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_damaged_state_the_one_before_it_is_used(
    parts, states, tmp_path, damage
):
    name, destroy = DAMAGES[damage]
    destroy(tmp_path / "step_00000030" / name)
    told = []
    assert load(tmp_path, parts, tell=told.append)["step"] == 20
    assert len(told) == 1
    assert "step_00000030" in told[0]
    with pytest.raises(InputError):
        read_run_state(tmp_path / "step_00000030")
    assert_equal(values(*parts), states[20])


def test_a_state_of_another_model_is_passed_over(parts, states, tmp_path):
    save(tmp_path, build(num_layers=2), 40, keep_last=5)
    assert load(tmp_path, parts)["step"] == 30
    assert_equal(values(*parts), states[30])


def test_the_state_of_another_step_is_passed_over(parts, states, tmp_path):
    (tmp_path / "step_00000020").rename(tmp_path / "step_00000050")
    assert load(tmp_path, parts)["step"] == 30


def test_no_whole_state_is_an_error_with_its_cure(parts, states, tmp_path):
    for state in list_run_states(tmp_path):
        flip_a_bit(state / "model.safetensors")
    with pytest.raises(InputError) as caught:
        load(tmp_path, parts)
    told = str(caught.value)
    assert "step_00000030" in told
    assert "overwrite=true" in told
    assert "\n" not in told


def test_nothing_in_a_state_is_a_program(states, tmp_path):
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {
        ".json",
        ".jsonl",
        ".safetensors",
    }
