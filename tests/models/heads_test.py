import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasgpt.config import InputError
from kerasgpt.models import ClassifierConfig, GPTCausalLM, TextClassifier
from kerasgpt.training.step import TrainStep
from tests.descriptors import tiny_config

LABELS = ("good", "bad", "mixed")


def build(config=None, **settings):
    config = ClassifierConfig.of(config or tiny_config(), LABELS)
    model = TextClassifier(config, **settings)
    model.build()
    return model


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}])
def test_parameters_are_counted(changes):
    model = build(tiny_config(**changes))
    assert model.count_params() == model.config.num_parameters
    assert model.config.tie_embeddings


@pytest.mark.parametrize(
    "labels", [["a"], ["a", "a"], ["a", ""], ["a", 1], ["a", None]]
)
def test_classes_that_are_none_are_refused(labels):
    with pytest.raises(InputError, match="labels must be"):
        ClassifierConfig.of(tiny_config(), labels)


def test_the_configuration_survives_json():
    config = build().config
    values = config.to_dict()
    values["labels"] = list(values["labels"])
    assert ClassifierConfig.from_dict(values) == config


def test_the_first_loss_is_near_that_of_even_chances():
    model = build(tiny_config(vocabulary_size=50))
    logits = model({"token_ids": np.arange(8, dtype="int32")[None] % 50})
    log_sums = keras.ops.logsumexp(logits, axis=-1)
    np.testing.assert_allclose(
        log_sums - keras.ops.mean(logits, axis=-1), np.log(3), atol=0.1
    )


@pytest.mark.parametrize(
    "changes", [{}, {"dropout_rate": 0.1, "tie_embeddings": False}]
)
def test_a_backbone_is_taken_over(changes):
    base = GPTCausalLM(tiny_config(**changes))
    base.build()
    model = build(base.config)
    model.take_backbone(base)
    inputs = {"token_ids": np.array([[1, 2, 3]], np.int32)}
    np.testing.assert_array_equal(model.backbone(inputs), base.backbone(inputs))


def test_another_backbone_is_refused():
    base = GPTCausalLM(tiny_config(num_layers=1))
    base.build()
    with pytest.raises(ValueError, match="the other model has no"):
        build().take_backbone(base)


def test_logits_are_those_of_the_kernel_that_is_trained():
    model = build()
    inputs = {"token_ids": np.array([[1, 2, 3]], np.int32)}
    expected = model.backbone(inputs) @ keras.ops.transpose(
        model.output_kernel()
    )
    np.testing.assert_allclose(model(inputs), expected, atol=1e-6)


def test_it_learns_which_token_came_first():
    # Nothing but attention tells it: all tokens are in all texts.
    rng = np.random.default_rng(0)
    token_ids = rng.permuted(np.tile(np.arange(4), (64, 1)), axis=1)
    token_ids = token_ids.astype("int32")
    is_after = np.argmin(token_ids, 1) > np.argmax(token_ids, 1)
    targets = np.zeros((64, 4), "int32")
    targets[:, -1] = is_after
    weights = np.zeros((64, 4), "float32")
    weights[:, -1] = 1
    model = build(dataclasses.replace(tiny_config(), inner_dim=32))
    step = TrainStep(model)
    step.compile(keras.optimizers.Adam(0.02))
    batch = ({"token_ids": token_ids}, targets, weights)
    step.fit(tf.data.Dataset.from_tensors(batch).repeat(80), verbose=0)
    predicted = np.argmax(
        model.predict({"token_ids": token_ids}, verbose=0)[:, -1], -1
    )
    assert np.mean(predicted == is_after) > 0.95
