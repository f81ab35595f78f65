import keras
import numpy as np
import pytest

from kerasgpt.checkpoints import (
    list_run_states,
    load_run_state,
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


def save(folder, parts, step, keep_last=3):
    save_run_state(
        folder,
        step=step,
        model=parts[0],
        optimizer=parts[1],
        progress={"best_loss": float(step)},
        keep_last=keep_last,
    )


def load(folder, parts):
    return load_run_state(folder, model=parts[0], optimizer=parts[1])


def test_the_newest_state_comes_back_bit_by_bit(parts, states, tmp_path):
    assert load(tmp_path, parts) == (30, {"best_loss": 30.0})
    assert_equal(values(*parts), states[30])


def test_a_state_fills_a_model_of_another_process(parts, states, tmp_path):
    other = build()
    assert load(tmp_path, other)[0] == 30
    assert_equal(values(*other), states[30])


def test_an_infinite_best_loss_survives(parts, tmp_path):
    save_run_state(
        tmp_path,
        step=1,
        model=parts[0],
        optimizer=parts[1],
        progress={"best_loss": float("inf")},
        keep_last=1,
    )
    assert load(tmp_path, parts) == (1, {"best_loss": float("inf")})


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
    "empty manifest": ("manifest.json", lambda path: path.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_damaged_state_the_one_before_it_is_used(
    parts, states, tmp_path, damage
):
    name, destroy = DAMAGES[damage]
    destroy(tmp_path / "step_00000030" / name)
    assert load(tmp_path, parts)[0] == 20
    assert_equal(values(*parts), states[20])


def test_a_state_of_another_model_is_passed_over(parts, states, tmp_path):
    save(tmp_path, build(num_layers=2), 40, keep_last=5)
    assert load(tmp_path, parts)[0] == 30
    assert_equal(values(*parts), states[30])


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
    assert {path.suffix for path in files} == {".json", ".safetensors"}
