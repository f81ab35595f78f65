"""Compares layers and models with those of KerasHub, weight for weight."""

import keras_hub
import numpy as np
import pytest
from keras import ops

from kerasgpt.layers import RotaryEmbedding
from kerasgpt.models import GPTBackbone, GPTConfig

VOCABULARY, CONTEXT, LAYERS, WIDTH, INNER, HEADS = 31, 12, 2, 16, 24, 4
SHAPE = {
    "vocabulary_size": VOCABULARY,
    "context_length": CONTEXT,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "model_dim": WIDTH,
    "inner_dim": INNER,
    "qk_norm": False,
}
# Both add float32 products, in other orders.
TOLERANCE = 1e-4


@pytest.mark.parametrize("base", [100.0, 10000.0])
def test_rotary_positions(base):
    heads = np.random.default_rng(0).normal(size=(2, 7, 3, 8))
    heads = ops.array(heads, "float32")
    theirs = keras_hub.layers.RotaryEmbedding(max_wavelength=base)
    ours = RotaryEmbedding(base)
    for start in (0, 5):
        positions = np.tile(np.arange(start, start + 7), (2, 1))
        np.testing.assert_allclose(
            ours(heads, ops.array(positions)),
            theirs(heads, start_index=start),
            atol=1e-5,
        )


def test_rotary_positions_of_packed_documents():
    heads = np.random.default_rng(0).normal(size=(2, 5, 3, 8))
    heads = ops.array(heads, "float32")
    positions = ops.array([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]], "int32")
    np.testing.assert_allclose(
        RotaryEmbedding()(heads, positions),
        keras_hub.layers.RotaryEmbedding()(heads, positions=positions),
        atol=1e-5,
    )


def _randomise(model):
    rng = np.random.default_rng(2)
    model.set_weights(
        [w + rng.normal(scale=0.2, size=w.shape) for w in model.get_weights()]
    )


def _copy(theirs, ours):
    """Sets a layer of ours to theirs, whose heads have an axis of their own."""
    ours.set_weights(
        [
            np.reshape(value, weight.shape)
            for value, weight in zip(
                theirs.get_weights(), ours.weights, strict=True
            )
        ]
    )


def _copy_block(theirs, ours, norm_name):
    attention = theirs._self_attention_layer
    for name in ("query", "key", "value", "output"):
        _copy(
            getattr(attention, f"_{name}_dense"),
            getattr(ours.attention, f"{name}_projection"),
        )
    if ours.attention.qk_norm:
        _copy(attention._query_dense_layer_norm, ours.attention.query_norm)
        _copy(attention._key_dense_layer_norm, ours.attention.key_norm)
    _copy(theirs._feedforward_intermediate_dense, ours.feed_forward.up)
    _copy(theirs._feedforward_output_dense, ours.feed_forward.down)
    if hasattr(theirs, "_feedforward_gate_dense"):
        _copy(theirs._feedforward_gate_dense, ours.feed_forward.gate)
    _copy(getattr(theirs, f"_self_attention_{norm_name}"), ours.attention_norm)
    _copy(getattr(theirs, f"_feedforward_{norm_name}"), ours.feed_forward_norm)


def _assert_equal_hidden_states(theirs, ours):
    token_ids = np.random.default_rng(3).integers(1, VOCABULARY, (2, 9))
    padding_mask = np.ones((2, 9), "int32")
    padding_mask[1, 6:] = 0
    expected = theirs({"token_ids": token_ids, "padding_mask": padding_mask})
    actual = ours(
        {
            "token_ids": ops.array(token_ids, "int32"),
            "segment_ids": ops.array(padding_mask),
        }
    )
    real = padding_mask.astype(bool)
    np.testing.assert_allclose(
        np.array(actual)[real], np.array(expected)[real], atol=TOLERANCE
    )


def test_a_model_of_the_gpt2_shape():
    theirs = keras_hub.models.GPT2Backbone(
        vocabulary_size=VOCABULARY,
        num_layers=LAYERS,
        num_heads=HEADS,
        hidden_dim=WIDTH,
        intermediate_dim=INNER,
        dropout=0.0,
        max_sequence_length=CONTEXT,
    )
    _randomise(theirs)
    ours = GPTBackbone(
        GPTConfig(
            **SHAPE,
            num_kv_heads=HEADS,
            head_dim=WIDTH // HEADS,
            position="learned",
            norm="layer",
            norm_epsilon=1e-5,
            activation="gelu_tanh",
            use_bias=True,
        )
    )
    ours.build()
    _copy(theirs.token_embedding, ours.token_embedding)
    _copy(theirs.position_embedding, ours.position_embedding)
    for their_block, our_block in zip(
        theirs.transformer_layers, ours.blocks, strict=True
    ):
        _copy_block(their_block, our_block, "layer_norm")
    _copy(theirs.layer_norm, ours.final_norm)
    assert theirs.count_params() == ours.count_params()
    _assert_equal_hidden_states(theirs, ours)


def test_a_model_of_the_llama_shape():
    theirs = keras_hub.models.LlamaBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=LAYERS,
        num_query_heads=HEADS,
        num_key_value_heads=2,
        hidden_dim=WIDTH,
        intermediate_dim=INNER,
        rope_max_wavelength=500.0,
        layer_norm_epsilon=1e-5,
    )
    _randomise(theirs)
    ours = GPTBackbone(
        GPTConfig(
            **SHAPE,
            num_kv_heads=2,
            head_dim=WIDTH // HEADS,
            rotary_base=500.0,
            norm_epsilon=1e-5,
            activation="swiglu",
            tie_embeddings=False,
        )
    )
    ours.build()
    _copy(theirs.token_embedding, ours.token_embedding)
    for their_block, our_block in zip(
        theirs.transformer_layers, ours.blocks, strict=True
    ):
        _copy_block(their_block, our_block, "layernorm")
    _copy(theirs.layer_norm, ours.final_norm)
    assert theirs.count_params() == ours.count_params()
    _assert_equal_hidden_states(theirs, ours)


def test_a_model_of_the_qwen3_shape():
    theirs = keras_hub.models.Qwen3Backbone(
        vocabulary_size=VOCABULARY,
        num_layers=LAYERS,
        num_query_heads=HEADS,
        num_key_value_heads=1,
        head_dim=6,
        hidden_dim=WIDTH,
        intermediate_dim=INNER,
        rope_max_wavelength=500.0,
        layer_norm_epsilon=1e-5,
        tie_word_embeddings=True,
    )
    _randomise(theirs)
    ours = GPTBackbone(
        GPTConfig(
            **{**SHAPE, "qk_norm": True},
            num_kv_heads=1,
            head_dim=6,
            rotary_base=500.0,
            norm_epsilon=1e-5,
            activation="swiglu",
        )
    )
    ours.build()
    _copy(theirs.token_embedding, ours.token_embedding)
    for their_block, our_block in zip(
        theirs.transformer_layers, ours.blocks, strict=True
    ):
        _copy_block(their_block, our_block, "layernorm")
    _copy(theirs.layer_norm, ours.final_norm)
    assert theirs.count_params() == ours.count_params()
    _assert_equal_hidden_states(theirs, ours)
