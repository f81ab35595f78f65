"""Owns whose a run's folder is: claimed, refused, made anew.

Not: what lies in it (stage.py, pretrain.py).
"""

import pathlib
import shutil

from kerasgpt.config import InputError
from kerasgpt.files import read_json, write_json

# Marks config.json as ours: no other folder is ever emptied.
SOFTWARE = "kerasgpt"
# All that is in a run's folder before its training begins.
UNTRAINED_NAMES = {"config.json", "sources.txt", "tokenizer", "data"}


def claim_folder(folder, config, *, overwrite, ignored=()):
    """Makes a run's folder its own, or finds that it already is.

    Args:
        folder: str or Path.
        config: Config of the run.
        overwrite: bool. Start anew: delete the run that is there.
        ignored: tuple of str. Settings or sections that may differ.

    Returns:
        pathlib.Path.

    Raises:
        InputError: if the folder belongs to another run, naming the setting
            that differs, or cannot be written.
    """
    folder = pathlib.Path(folder)
    wanted = {"software": SOFTWARE, **config.to_dict()}
    compared = {
        name: value
        for name, value in _flat(wanted).items()
        if not any(f"{name}.".startswith(f"{part}.") for part in ignored)
    }
    path = folder / "config.json"
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else {}
    found = read_json(path) if path.is_file() else {}
    found = _flat(found) if isinstance(found, dict) else {}
    if names and found.get("software") != SOFTWARE:
        raise InputError(
            f"{folder}: is not empty and no run of kerasgpt; choose another "
            f"run_dir."
        )
    # A run that was refused before it trained anything must not be in the way
    # of the corrected one.
    if names and (overwrite or names <= UNTRAINED_NAMES):
        shutil.rmtree(folder)
        names = {}
    if not names:
        write_json(path, wanted)
        return folder
    for name, value in compared.items():
        if found.get(name) != value:
            raise InputError(
                f"{folder}: holds a run with {name}={found.get(name)}, not "
                f"{value}; choose another run_dir, or set overwrite=true."
            )
    return folder


def _flat(values, prefix=""):
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
