"""Owns the state of a run on disk. Not: finished models (model_folder.py)."""

import pathlib
import shutil

from kerasgpt.checkpoints.model_folder import load_weights, save_weights
from kerasgpt.config import InputError
from kerasgpt.files import (
    atomic_folder,
    read_json,
    read_manifest,
    write_json,
    write_manifest,
)

PREFIX = "step_"


def save_run_state(folder, *, step, model, optimizer, progress, keep_last):
    """Writes `folder/step_<step>` and removes all but the newest `keep_last`.

    Saved are weights, the random states among them (dropout seeds are
    variables of the model), optimizer variables and `progress`; the data
    position is the step itself.

    Args:
        folder: str or Path of all states of one stage.
        step: int, batches trained on.
        model: keras.Model.
        optimizer: keras Optimizer, built.
        progress: JSON value, such as the best loss so far.
        keep_last: int.
    """
    folder = pathlib.Path(folder)
    with atomic_folder(
        folder / f"{PREFIX}{step:08d}", overwrite=True
    ) as temporary:
        save_weights(temporary / "model.safetensors", model.variables)
        save_weights(temporary / "optimizer.safetensors", optimizer.variables)
        write_json(
            temporary / "progress.json", {"step": step, "progress": progress}
        )
        write_manifest(temporary)
    for old in list_run_states(folder)[:-keep_last]:
        shutil.rmtree(old, ignore_errors=True)


def list_run_states(folder):
    """Returns the saved states in `folder`, oldest first."""
    return sorted(pathlib.Path(folder).glob(f"{PREFIX}*"))


def load_run_state(folder, *, model, optimizer):
    """Restores the newest state that is whole.

    A damaged one is passed over, and the one before it is used.

    Args:
        folder, model, optimizer: see `save_run_state`.

    Returns:
        (step, progress), or None if no state was saved.

    Raises:
        InputError: if there are states and none of them is whole.
    """
    states = list_run_states(folder)
    problems = []
    for state in reversed(states):
        try:
            read_manifest(state)
            load_weights(state / "model.safetensors", model.variables)
            load_weights(state / "optimizer.safetensors", optimizer.variables)
        except InputError as error:
            problems.append(str(error))
            continue
        saved = read_json(state / "progress.json")
        return saved["step"], saved["progress"]
    if states:
        raise InputError(
            f"{folder}: no checkpoint is whole ({problems[0]}); start again "
            f"with overwrite=true."
        )
    return None
