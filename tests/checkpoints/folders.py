"""Owns what tests do with folders of transformers: read, damage, refuse."""

import json
import pathlib
import shutil

import pytest
import safetensors.numpy

from kerasgpt.config import InputError
from tests.conftest import GOLDENS

WEIGHTS = "model.safetensors"


def golden_folders(family):
    """Returns {name: folder} of the models that make.py of a family wrote."""
    paths = sorted((GOLDENS / family).glob("*/config.json"))
    return {path.parent.name: path.parent for path in paths}


def copier(folders):
    """Returns a fixture: a function that copies a folder, to be damaged."""

    @pytest.fixture
    def copy(tmp_path):
        def copy(name):
            return pathlib.Path(shutil.copytree(folders[name], tmp_path / name))

        return copy

    return copy


def tensors_of(folder):
    """Returns {name: float32 array} of all files of a folder."""
    found = {}
    for path in sorted(folder.glob("model*.safetensors")):
        found |= safetensors.numpy.load_file(path)
    return {name: array.astype("float32") for name, array in found.items()}


def refusal(function, *arguments, **options):
    """Returns the line that a call is refused with."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite_tensors(folder, change):
    """Lets a function change the dict of a folder's tensors."""
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / WEIGHTS)


def rewrite_json(path, **changes):
    """Changes some keys of a JSON object."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
