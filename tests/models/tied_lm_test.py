import json

import keras
import numpy as np
import pytest
import safetensors.numpy

from kerasgpt.checkpoints.model_folder import (
    MODELS,
    build_task,
    copy_to_host,
    load_model,
)
from kerasgpt.models.tied_lm import read_rows
from tests.conftest import GOLDENS
from tests.goldens.make_models import CONFIGS, INPUTS

FOLDERS = GOLDENS / "models"


@pytest.fixture(params=CONFIGS)
def saved(request):
    """A folder with a model as it was saved before there was a base."""
    return FOLDERS / request.param


def assert_expected(model, folder):
    expected = safetensors.numpy.load_file(folder / "expected.safetensors")
    assert np.abs(expected["logits"]).max() > 1
    np.testing.assert_allclose(
        model(INPUTS), expected["logits"], rtol=1e-5, atol=1e-5
    )


def test_model_folders_of_earlier_are_read(saved):
    model, _ = load_model(saved, kinds=tuple(MODELS), needs_tokenizer=False)
    assert_expected(model, saved)


def test_files_of_keras_of_earlier_are_read(saved):
    assert_expected(keras.saving.load_model(saved / "whole.keras"), saved)


def test_configurations_and_names_are_written_as_before(saved):
    config = CONFIGS[saved.name]
    text = (saved / "model" / "config.json").read_text()
    written = json.loads(text)
    written.pop("kind_of_model", None)
    told = config.to_dict()
    assert {name: told[name] for name in written} == written
    # What was added since then changes nothing.
    fresh = type(config)().to_dict()
    added = told.keys() - written.keys()
    assert {name: told[name] for name in added} == {
        name: fresh[name] for name in added
    }
    tensors = safetensors.numpy.load_file(saved / "model/model.safetensors")
    variables = copy_to_host(build_task(config).variables)
    assert {name: array.shape for name, array in variables.items()} == {
        name: array.shape for name, array in tensors.items()
    }


def test_the_output_kernel_is_what_projects(saved):
    model = build_task(CONFIGS[saved.name])
    hidden_states = np.random.default_rng(0).normal(size=(1, 3, 4))
    np.testing.assert_allclose(
        model.project(hidden_states),
        hidden_states @ keras.ops.transpose(model.output_kernel()),
        atol=1e-6,
    )


def test_rows_are_one_text_each_unless_told():
    ids, positions, segment_ids = read_rows({"token_ids": [[5, 6, 7]]})
    np.testing.assert_array_equal(ids, [[5, 6, 7]])
    np.testing.assert_array_equal(positions, [[0, 1, 2]])
    np.testing.assert_array_equal(segment_ids, [[1, 1, 1]])
    told = {
        "source_ids": [[5, 6]],
        "source_positions": [[0, 0]],
        "source_segment_ids": [[1, 0]],
    }
    for value, given in zip(
        read_rows(told, "source_"), told.values(), strict=True
    ):
        np.testing.assert_array_equal(value, given)
