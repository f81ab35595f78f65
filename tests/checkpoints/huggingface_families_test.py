import dataclasses

import pytest

from kerasgpt.checkpoints.huggingface_families import (
    FAMILIES,
    read_family,
    write_family,
)
from kerasgpt.config import InputError
from kerasgpt.models.gpt import GPTConfig, RotaryScaling
from tests.descriptors import (
    tiny_bert,
    tiny_config,
    tiny_encoder,
    tiny_recurrent,
)

# config.json of published models, cut to what shapes them, and how many
# parameters their authors count.
PUBLISHED = {
    "openai-gpt": (
        {
            "model_type": "openai-gpt",
            "afn": "gelu",
            "layer_norm_epsilon": 1e-05,
            "n_ctx": 512,
            "n_embd": 768,
            "n_head": 12,
            "n_layer": 12,
            "n_positions": 512,
            "n_special": 0,
            "vocab_size": 40478,
        },
        116_534_784,
    ),
    "gpt2": (
        {
            "model_type": "gpt2",
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-05,
            "n_ctx": 1024,
            "n_embd": 768,
            "n_head": 12,
            "n_layer": 12,
            "n_positions": 1024,
            "vocab_size": 50257,
        },
        124_439_808,
    ),
    "Llama-2-7b": (
        {
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "max_position_embeddings": 4096,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
        6_738_415_616,
    ),
    "Llama-3.2-1B": (
        {
            "model_type": "llama",
            "attention_bias": False,
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "vocab_size": 128256,
        },
        1_235_814_400,
    ),
    "Qwen2.5-0.5B": (
        {
            "model_type": "qwen2",
            "hidden_act": "silu",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "max_window_layers": 24,
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        494_032_768,
    ),
    "Qwen3-0.6B": (
        {
            "model_type": "qwen3",
            "attention_bias": False,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "max_position_embeddings": 40960,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        596_049_920,
    ),
    "bert-base-uncased": (
        {
            "model_type": "bert",
            "architectures": ["BertForMaskedLM"],
            "hidden_act": "gelu",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "layer_norm_eps": 1e-12,
            "max_position_embeddings": 512,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "position_embedding_type": "absolute",
            "type_vocab_size": 2,
            "vocab_size": 30522,
        },
        109_514_298,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_parameters_and_comes_out_again(name):
    values, num_parameters = PUBLISHED[name]
    family, config = read_family(values)
    assert family.model_type == values["model_type"]
    assert config.num_parameters == num_parameters
    # The ids of marks are told by the tokenizer alone.
    marks = {"mark_ids": (2, 0, 1)} if family.model_type == "bert" else {}
    written_family, written = write_family(dataclasses.replace(config, **marks))
    assert written_family is family
    assert read_family(written) == (family, config)
    # Their keys come out with their values, but those that shape nothing.
    for key in set(written) & set(values):
        assert written[key] == values[key], key


def test_all_families_are_among_the_published():
    found = {values["model_type"] for values, _ in PUBLISHED.values()}
    assert found == {family.model_type for family in FAMILIES}


def test_what_a_bert_is_for_tells_whether_it_has_a_head():
    values, _ = PUBLISHED["bert-base-uncased"]
    for named, has_head in (
        (["BertModel"], False),
        (["BertForPreTraining"], True),
        (None, True),
        (3, True),
    ):
        family, config = read_family({**values, "architectures": named})
        assert family.has_head == config.output_transform == has_head
        config = dataclasses.replace(config, mark_ids=(2, 0, 1))
        assert write_family(config)[0] is family


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"type_vocab_size": 1}, "type_vocab_size=1 is not supported"),
        ({"position_embedding_type": "relative_key"}, "'relative_key' is not"),
        ({"is_decoder": True}, "is_decoder=True is not supported"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False is not"),
        ({"hidden_act": "relu"}, "activation 'relu' is not supported"),
        ({"num_attention_heads": 7}, "cannot be shared by 7 heads"),
    ],
)
def test_a_bert_that_computes_otherwise_is_refused(changes, told):
    values = {**PUBLISHED["bert-base-uncased"][0], **changes}
    with pytest.raises(InputError, match=told):
        read_family(values)


@pytest.mark.parametrize(
    "config, told",
    [
        (tiny_bert(mark_ids=()), "mark_ids is empty"),
        (tiny_bert(norm_order="pre"), "norm_order=pre"),
        (tiny_bert(activation="relu2"), "activation=relu2"),
        (tiny_encoder(mark_ids=(2, 0, 1)), "use_bias=False"),
        (tiny_recurrent(), "a model of this kind is not written"),
    ],
)
def test_an_encoder_that_is_no_bert_is_not_written(config, told):
    with pytest.raises(InputError, match=told):
        write_family(config)


def test_rotary_scaling_is_read_as_either_version_writes_it():
    values, _ = PUBLISHED["Llama-3.2-1B"]
    _, old = read_family(values)
    rope = {**values["rope_scaling"], "rope_theta": values["rope_theta"]}
    new = {**values, "rope_parameters": rope}
    del new["rope_scaling"], new["rope_theta"]
    assert read_family(new)[1] == old
    assert old.rotary_base == 500000.0
    assert old.rotary_scaling == RotaryScaling(32.0, 8192, 1.0, 4.0)


def test_what_says_nothing_means_what_transformers_means():
    _, config = read_family(
        {
            "model_type": "qwen3",
            "vocab_size": 10,
            "max_position_embeddings": 16,
            "hidden_size": 12,
            "intermediate_size": 20,
            "num_hidden_layers": 1,
            "num_attention_heads": 3,
        }
    )
    assert (config.head_dim, config.num_kv_heads) == (128, 3)
    assert config.activation == "swiglu"
    assert not config.tie_embeddings
    assert config.norm_epsilon == 1e-6


@pytest.mark.parametrize(
    "key, value",
    [
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
    ],
)
def test_a_gpt2_that_computes_otherwise_is_refused(key, value):
    values = {**PUBLISHED["gpt2"][0], key: value}
    with pytest.raises(InputError, match=f"{key}={value} is not supported"):
        read_family(values)


def test_partial_rotation_and_windows_are_refused():
    values = {**PUBLISHED["Qwen3-0.6B"][0], "partial_rotary_factor": 0.5}
    with pytest.raises(InputError, match="partial_rotary_factor"):
        read_family(values)
    values = {**PUBLISHED["Qwen3-0.6B"][0], "use_sliding_window": True}
    with pytest.raises(InputError, match="use_sliding_window=True"):
        read_family(values)


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"activation": "relu2"}, "activation=relu2"),
        ({"norm": "layer", "position": "learned"}, "norm=layer"),
        ({"qk_norm": True, "use_bias": True}, "use_bias=True"),
    ],
)
def test_what_transformers_lacks_is_told_with_the_nearest(changes, told):
    config = tiny_config(**{"activation": "swiglu", **changes})
    with pytest.raises(InputError, match="transformers has no model") as caught:
        write_family(config)
    assert told in str(caught.value)
    assert "the nearest is" in str(caught.value)


def test_what_only_training_knows_does_not_matter():
    _, config = read_family(PUBLISHED["gpt2"][0])
    trained = dataclasses.replace(
        config, dropout_rate=0.1, rotary_base=500.0, qkv_bias=True
    )
    _, written = write_family(trained)
    assert read_family(written)[1] == config
    assert config.rotary_base == GPTConfig.rotary_base
