"""Owns low-rank adapters as folders. Not: the model they change."""

import pathlib
from typing import NamedTuple

import safetensors
import safetensors.numpy

from kerasgpt.checkpoints.model_folder import (
    copy_to_host,
    name_variables,
    save_weights,
)
from kerasgpt.config import InputError
from kerasgpt.files import (
    atomic_folder,
    read_json,
    read_manifest,
    write_json,
    write_manifest,
)
from kerasgpt.models.lora import DOWN_NAME, UP_NAME, LoRAConfig, merge_lora

ADAPTER_FILE = "adapter.safetensors"
CONFIG_FILE = "adapter.json"


class Adapter(NamedTuple):
    """What fine-tuning added to a model.

    Attributes:
        config: LoRAConfig.
        weights: dict of name to float32 array: two thin matrices a kernel,
            named by its path.
    """

    config: LoRAConfig
    weights: dict


def save_adapter(folder, adapter, **facts):
    """Writes an adapter to a folder, whole or not at all.

    Args:
        folder: str or Path, replaced if it exists.
        adapter: Adapter. Weights that are no thin matrices are left out.
        **facts: further JSON values for the manifest.
    """
    weights = {
        name: array
        for name, array in adapter.weights.items()
        if name.endswith((DOWN_NAME, UP_NAME))
    }
    with atomic_folder(folder, overwrite=True) as temporary:
        save_weights(temporary / ADAPTER_FILE, weights)
        write_json(temporary / CONFIG_FILE, adapter.config.to_dict())
        write_manifest(temporary, **facts)


def load_adapter(folder):
    """Returns the Adapter in a folder, after checking every hash.

    Args:
        folder: str or Path: an adapter's folder, or a run folder that holds
            one named "adapter".

    Raises:
        InputError: if a file is missing, damaged or of another format.
    """
    folder = pathlib.Path(folder)
    places = [folder / "adapter", folder]
    found = [place for place in places if (place / ADAPTER_FILE).is_file()]
    if not found:
        raise InputError(f"{folder}: holds no adapter (no {ADAPTER_FILE}).")
    folder = found[0]
    read_manifest(folder, required=(ADAPTER_FILE, CONFIG_FILE))
    path = folder / CONFIG_FILE
    try:
        config = LoRAConfig.from_dict(read_json(path))
    except (InputError, AttributeError) as error:
        raise InputError(f"{path}: {error}") from error
    path = folder / ADAPTER_FILE
    try:
        weights = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: {error}.") from error
    for name, array in weights.items():
        axis = 1 if name.endswith(DOWN_NAME) else 0
        if array.ndim != 2 or array.shape[axis] != config.rank:
            raise InputError(
                f"{path}: tensor {name} has shape {array.shape}, which is none "
                f"of rank {config.rank}."
            )
        if name.replace(DOWN_NAME, UP_NAME) not in weights:
            raise InputError(f"{path}: {name} has no counterpart.")
    return Adapter(config, weights)


def merge_adapters(model, adapters):
    """Adds what adapters learned to a model's kernels, for good.

    Args:
        model: GPTCausalLM without adapters, changed in place.
        adapters: list of Adapter, of this model. Several are summed.

    Raises:
        InputError: if one is of another model.
    """
    weights = copy_to_host(model.variables)
    for adapter in adapters:
        weights = merge_lora(weights, adapter.weights, adapter.config)
    for name, variable in name_variables(model.variables).items():
        variable.assign(weights[name])
