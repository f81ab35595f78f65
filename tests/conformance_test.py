"""Checks every property for every class listed in descriptors.py."""

import importlib
import importlib.util
import inspect
import json
import os
import pathlib
import pkgutil
import subprocess
import sys

import keras
import numpy as np
import pytest

import kerasgpt.layers
import kerasgpt.models
import kerasgpt.tokenizers
from kerasgpt.models import GPTCausalLM
from tests import descriptors, harness

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _cases(subjects, properties):
    return [
        pytest.param(subject, name, id=f"{subject.name}-{name}")
        for subject in subjects
        for name in properties
    ]


@pytest.mark.parametrize(
    ("subject", "name"),
    _cases(descriptors.LAYERS, harness.LAYER_PROPERTIES),
)
def test_layer(subject, name):
    harness.check_layer(subject, name)


@pytest.mark.parametrize(
    ("subject", "name"),
    _cases(descriptors.BACKBONES, harness.BACKBONE_PROPERTIES),
)
def test_backbone(subject, name):
    harness.check_backbone(subject, name)


@pytest.mark.parametrize(
    ("subject", "name"),
    _cases(descriptors.TASKS, harness.TASK_PROPERTIES),
)
def test_task(subject, name):
    harness.check_task(subject, name)


@pytest.mark.parametrize(
    ("subject", "name"),
    _cases(descriptors.TOKENIZERS, harness.TOKENIZER_PROPERTIES)
    + _cases(descriptors.PIECE_TOKENIZERS, harness.PIECE_PROPERTIES),
)
def test_tokenizer(subject, name):
    harness.check_tokenizer(subject, name)


def _public_classes(package, base):
    found = set()
    for module in pkgutil.walk_packages(
        package.__path__, f"{package.__name__}."
    ):
        members = vars(importlib.import_module(module.name))
        found |= {
            value
            for name, value in members.items()
            if inspect.isclass(value)
            and issubclass(value, base)
            and value is not base
            and value.__module__ == module.name
            and not name.startswith("_")
        }
    return found


def _listed(*groups):
    return {s.cls for group in groups for s in group} | {*descriptors.NOT_ALONE}


def _missing(found, listed):
    return sorted(cls.__name__ for cls in found - listed)


def test_every_public_layer_is_listed():
    found = _public_classes(kerasgpt.layers, keras.layers.Layer)
    assert found
    assert not _missing(found, _listed(descriptors.LAYERS))


def test_every_public_model_is_listed():
    found = _public_classes(kerasgpt.models, keras.layers.Layer)
    assert found
    assert not _missing(
        found, _listed(descriptors.BACKBONES, descriptors.TASKS)
    )


def test_every_tokenizer_is_listed():
    found = _public_classes(kerasgpt.tokenizers, kerasgpt.tokenizers.Tokenizer)
    assert found
    assert not _missing(
        found, _listed(descriptors.TOKENIZERS, descriptors.PIECE_TOKENIZERS)
    )


# Runs where TensorFlow must not be loaded, so it imports none of the tests.
IN_JAX = """
import json, sys
import numpy as np
import kerasgpt.layers, kerasgpt.models
assert "tensorflow" not in sys.modules, "importing the models loaded TensorFlow"
import keras
assert keras.backend.backend() == "jax"
data = np.load(sys.argv[1])
config = json.loads(str(data["config"]))
model = kerasgpt.models.GPTCausalLM.from_config(config)
model.build()
model.set_weights([data[f"weight_{i}"] for i in range(len(model.weights))])
inputs = {k: keras.ops.array(data[k]) for k in ("token_ids", "positions")}
logits = model(inputs)
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(
    from_logits=True, reduction="mean_with_sample_weight"))
targets = np.roll(data["token_ids"], -1, 1)
history = model.fit({k: data[k] for k in inputs}, targets, verbose=0)
assert "tensorflow" not in sys.modules, "running the model loaded TensorFlow"
np.savez(sys.argv[2], logits=logits, loss=history.history["loss"])
"""


@pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="jax is not installed"
)
def test_jax_gives_the_logits_and_the_loss_of_tensorflow(tmp_path):
    subject = descriptors.TASKS[0]
    model = subject.create()
    assert isinstance(model, GPTCausalLM)
    inputs, _ = subject.inputs()
    logits = keras.ops.convert_to_numpy(harness.call(model, (inputs, {}))[0])
    np.savez(
        tmp_path / "in.npz",
        config=json.dumps(model.get_config()),
        **inputs,
        **{f"weight_{i}": w for i, w in enumerate(model.get_weights())},
    )
    result = subprocess.run(
        [sys.executable, "-c", IN_JAX, tmp_path / "in.npz", tmp_path / "o.npz"],
        env={
            **os.environ,
            "KERAS_BACKEND": "jax",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    output = np.load(tmp_path / "o.npz")
    # Two backends add in different orders.
    np.testing.assert_allclose(output["logits"], logits, atol=1e-5)
    model.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
    )
    history = model.fit(
        {k: inputs[k] for k in ("token_ids", "positions")},
        np.roll(inputs["token_ids"], -1, 1),
        verbose=0,
    )
    np.testing.assert_allclose(
        output["loss"], history.history["loss"], rtol=1e-5
    )
