import keras_hub
import numpy as np
import pytest

from kerasgpt.checkpoints.hub import load_preset
from kerasgpt.config import InputError

TOKEN_IDS = np.array([[3, 1, 4, 1, 5, 9, 2, 6]], "int32")


def test_a_saved_gpt2_preset_computes_the_same_here(tmp_path):
    theirs = keras_hub.models.GPT2Backbone(
        vocabulary_size=31,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=12,
        max_sequence_length=11,
    )
    rng = np.random.default_rng(0)
    theirs.set_weights(
        [
            weight + rng.normal(scale=0.3, size=weight.shape)
            for weight in theirs.get_weights()
        ]
    )
    theirs.save_to_preset(str(tmp_path / "preset"))
    ours = load_preset(str(tmp_path / "preset"))
    assert ours.config.num_parameters == theirs.count_params()
    states = theirs(
        {"token_ids": TOKEN_IDS, "padding_mask": np.ones_like(TOKEN_IDS)}
    )
    expected = theirs.token_embedding(states, reverse=True)
    np.testing.assert_allclose(
        ours({"token_ids": TOKEN_IDS}), expected, atol=1e-4, rtol=0
    )


def test_a_preset_of_another_family_is_refused(tmp_path):
    keras_hub.models.BertBackbone(
        vocabulary_size=31,
        num_layers=1,
        num_heads=1,
        hidden_dim=8,
        intermediate_dim=12,
    ).save_to_preset(str(tmp_path / "preset"))
    with pytest.raises(InputError, match="has no GPT-2 there") as caught:
        load_preset(str(tmp_path / "preset"))
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_preset_is_refused(tmp_path):
    with pytest.raises(InputError, match=f"keras_hub:{tmp_path}: KerasHub"):
        load_preset(str(tmp_path))
