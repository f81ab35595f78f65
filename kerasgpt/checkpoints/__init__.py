"""Owns weights entering or leaving a run."""

from kerasgpt.checkpoints.model_folder import load_model, save_model
from kerasgpt.checkpoints.run_state import (
    RunState,
    find_state_folders,
    list_run_states,
    load_run_state,
    prune_run_states,
    read_run_state,
    save_run_state,
)

__all__ = [
    "RunState",
    "find_state_folders",
    "list_run_states",
    "load_model",
    "load_run_state",
    "prune_run_states",
    "read_run_state",
    "save_model",
    "save_run_state",
]
