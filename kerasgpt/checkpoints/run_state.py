"""Owns the state of a run on disk. Not: finished models (model_folder.py)."""

import dataclasses
import os
import pathlib
import re

from kerasgpt.checkpoints.model_folder import (
    changing_variables,
    copy_to_host,
    load_weights,
    save_weights,
)
from kerasgpt.config import InputError
from kerasgpt.files import (
    atomic_folder,
    clear_leftovers,
    read_json,
    read_manifest,
    write_json,
    write_manifest,
    write_text,
)

PREFIX = "step_"
# What a run calls the folder of its states.
STATES_FOLDER = "checkpoints"
WEIGHTS_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
PROGRESS_FILE = "progress.json"
METRICS_FILE = "metrics.jsonl"
FILES = (WEIGHTS_FILE, OPTIMIZER_FILE, PROGRESS_FILE, METRICS_FILE)


@dataclasses.dataclass(frozen=True)
class RunState:
    """All that a run needs to go on to the same bits, in host memory.

    Attributes:
        step: int, batches trained on.
        weights: dict of arrays, the random states among them (dropout seeds
            are variables of the model).
        optimizer: dict of arrays.
        progress: JSON value: where the data and the training stand.
        metrics: str. What the run has told so far, as JSON lines.
        facts: JSON value: what the run depends on, such as versions.
    """

    step: int
    weights: dict
    optimizer: dict
    progress: dict
    metrics: str = ""
    facts: dict = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, model, optimizer, **others):
        """Returns a state that further training does not change.

        Args:
            model: keras.Model.
            optimizer: keras Optimizer, built.
            **others: the other attributes.
        """
        return cls(
            weights=copy_to_host(changing_variables(model)),
            optimizer=copy_to_host(optimizer.variables),
            **others,
        )


def save_run_state(folder, state, *, keep_last, keep_steps=()):
    """Writes `folder/step_<step>`, whole or not at all, and prunes.

    Args:
        folder: str or Path of all states of one stage.
        state: RunState.
        keep_last, keep_steps: see `prune_run_states`.

    Raises:
        InputError: if it cannot be written; the states before it stay.
    """
    folder = pathlib.Path(folder)
    try:
        clear_leftovers(folder, f"{PREFIX}*")
        with atomic_folder(
            folder / f"{PREFIX}{state.step:08d}", overwrite=True
        ) as temporary:
            save_weights(temporary / WEIGHTS_FILE, state.weights)
            save_weights(temporary / OPTIMIZER_FILE, state.optimizer)
            write_text(temporary / METRICS_FILE, state.metrics)
            write_json(
                temporary / PROGRESS_FILE,
                {
                    "step": state.step,
                    "progress": state.progress,
                    "facts": state.facts,
                },
            )
            write_manifest(temporary)
        prune_run_states(folder, keep_last=keep_last, keep_steps=keep_steps)
    except (OSError, InputError) as error:
        raise InputError(
            f"the checkpoint of step {state.step} was not saved ({error}); "
            f"the ones before it stay, and the same command goes on from them."
        ) from error


def list_run_states(folder):
    """Returns the saved states in `folder`, oldest first."""
    return sorted(
        (
            path
            for path in pathlib.Path(folder).glob(f"{PREFIX}*")
            if re.fullmatch(rf"{PREFIX}\d{{8,}}", path.name)
        ),
        key=step_of,
    )


def step_of(path):
    """Returns the step of a saved state, from its name."""
    return int(path.name.removeprefix(PREFIX))


def find_state_folders(folder):
    """Returns the folders of states that `folder` is, or holds at any depth.

    Raises:
        InputError: if there is none.
    """
    folder = pathlib.Path(folder)
    found = [folder, *sorted(folder.rglob(STATES_FOLDER))]
    found = [place for place in found if list_run_states(place)]
    if not found:
        raise InputError(
            f"{folder}: holds no checkpoints ({STATES_FOLDER}/{PREFIX}…); name "
            f"a run folder such as experiments/runs/shop_chat."
        )
    return found


def read_run_state(path):
    """Returns what a whole state holds besides tensors.

    Args:
        path: pathlib.Path of the state.

    Returns:
        dict of "step", "progress", "facts" and "metrics", see `RunState`.

    Raises:
        InputError: naming what is damaged.
    """
    read_manifest(path, required=FILES)
    saved = read_json(path / PROGRESS_FILE)
    shape = {"step": int, "progress": dict, "facts": dict}
    if (
        not isinstance(saved, dict)
        or {name: type(value) for name, value in saved.items()} != shape
        or saved["step"] != step_of(path)
    ):
        raise InputError(f"{path / PROGRESS_FILE}: is not of this step.")
    metrics = (path / METRICS_FILE).read_text(encoding="utf-8")
    return {**saved, "metrics": metrics}


def load_run_state(
    folder, *, model, optimizer, at_most=None, tell=lambda line: None
):
    """Restores the newest state that is whole.

    A damaged one is passed over, and the one before it is used.

    Args:
        folder: str or Path of all states of one stage.
        model: keras.Model to fill.
        optimizer: keras Optimizer to fill, built.
        at_most: int. No state of a later step. `None` = any.
        tell: function of one str, told why a state is passed over.

    Returns:
        dict as `read_run_state` gives, or None if no state was saved.

    Raises:
        InputError: if there are states and none of them is whole.
    """
    if pathlib.Path(folder).is_dir():
        clear_leftovers(folder, f"{PREFIX}*")
    states = [
        state
        for state in list_run_states(folder)
        if at_most is None or step_of(state) <= at_most
    ]
    problem = ""
    for state in reversed(states):
        try:
            saved = read_run_state(state)
            load_weights(state / WEIGHTS_FILE, changing_variables(model))
            load_weights(state / OPTIMIZER_FILE, optimizer.variables)
        except InputError as error:
            problem = problem or str(error)
            tell(f"passed over: {error}")
            continue
        return saved
    if states:
        raise InputError(
            f"{folder}: no checkpoint is whole ({problem}); start again "
            f"with overwrite=true."
        )
    return None


def prune_run_states(folder, *, keep_last, keep_steps=()):
    """Deletes states and what killed processes left behind.

    Args:
        folder: str or Path of all states of one stage.
        keep_last: int. How many of the newest stay.
        keep_steps: ints. States of these steps stay, too.

    Returns:
        list of pathlib.Path: what was deleted.
    """
    folder = pathlib.Path(folder)
    states = list_run_states(folder)
    pruned = [
        state
        for state in states[: max(0, len(states) - keep_last)]
        if step_of(state) not in keep_steps
    ]
    for state in pruned:
        # Renamed first, so that no half of a state bears its name.
        os.rename(state, folder / f".{state.name}.pruned")
    clear_leftovers(folder, f"{PREFIX}*")
    return pruned
