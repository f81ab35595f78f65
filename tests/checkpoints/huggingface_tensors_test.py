import math

import pytest

from kerasgpt.checkpoints.huggingface_families import read_family
from kerasgpt.checkpoints.huggingface_tensors import (
    BERT_TABLE,
    GPT1_TABLE,
    GPT2_TABLE,
    HEAD,
    LLAMA_TABLE,
    Row,
    widths,
)
from kerasgpt.checkpoints.model_folder import (
    SEED_NAME,
    build_task,
    name_variables,
)
from tests.checkpoints.huggingface_families_test import PUBLISHED
from tests.descriptors import tiny_config


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_s_rows_hold_all_its_parameters(name):
    values, num_parameters = PUBLISHED[name]
    family, config = read_family(values)
    rows = list(family.table.rows_of(config))
    lengths = widths(config)
    sizes = [math.prod(lengths[width] for width in row.shape) for row in rows]
    assert sum(sizes) == num_parameters
    assert len({row.theirs for row in rows}) == len(rows)


@pytest.mark.parametrize(
    "model_type, fields",
    [
        ("gpt2", {"n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 9}),
        (
            "openai-gpt",
            {"n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 9},
        ),
        *(
            (
                kind,
                {
                    "hidden_size": 8,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 1,
                    "num_hidden_layers": 2,
                    "intermediate_size": 12,
                    "max_position_embeddings": 9,
                    "tie_word_embeddings": kind in ("qwen2", "bert"),
                },
            )
            for kind in ("llama", "qwen2", "qwen3", "bert")
        ),
    ],
)
def test_each_of_our_variables_is_in_one_row(model_type, fields):
    family, config = read_family(
        {"model_type": model_type, "vocab_size": 11, **fields}
    )
    model = build_task(config)
    variables = name_variables(model.variables)
    rows = list(family.table.rows_of(config))
    ours = [name for row in rows for name in row.ours]
    assert sorted(ours) == sorted(n for n in variables if SEED_NAME not in n)
    lengths = widths(config)
    for row in rows:
        parts = [tuple(variables[name].shape) for name in row.ours]
        together = (*parts[0][:-1], sum(part[-1] for part in parts))
        shape = tuple(lengths[width] for width in row.shape)
        assert together == (shape[::-1] if row.transposed else shape)


def test_a_row_of_a_block_bears_its_number():
    row = Row("h.{}.weight", ("block_{}/a", "block_{}/b"), ("model",))
    row = row.of_block(3)
    assert row.theirs == "h.3.weight"
    assert row.ours == ("block_3/a", "block_3/b")


def test_all_names_but_the_head_s_have_the_prefix():
    config = tiny_config(tie_embeddings=False)
    names = [row.theirs for row in LLAMA_TABLE.rows_of(config)]
    assert HEAD in names
    assert all(
        name.startswith(LLAMA_TABLE.prefix) for name in names if name != HEAD
    )
    tied = LLAMA_TABLE.rows_of(tiny_config(tie_embeddings=True))
    assert HEAD not in [row.theirs for row in tied]


@pytest.mark.parametrize(
    "name, full",
    [
        ("embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"),
        ("bert.embeddings.LayerNorm.beta", "bert.embeddings.LayerNorm.bias"),
        ("cls.predictions.bias", "cls.predictions.bias"),
        ("classifier.weight", "bert.classifier.weight"),
    ],
)
def test_old_names_and_short_ones_are_known(name, full):
    assert BERT_TABLE.full_name(name) == full


@pytest.mark.parametrize(
    "table, name, is_buffer",
    [
        (GPT2_TABLE, "transformer.h.11.attn.bias", True),
        (GPT2_TABLE, "h.0.attn.masked_bias", True),
        (GPT2_TABLE, "h.0.attn.c_attn.bias", False),
        (GPT2_TABLE, "h.0.attn.bias.more", False),
        (GPT1_TABLE, "h.0.attn.bias", True),
        (GPT1_TABLE, "position_ids", True),
        (LLAMA_TABLE, "model.layers.0.self_attn.rotary_emb.inv_freq", True),
        (LLAMA_TABLE, "model.layers.0.self_attn.q_proj.bias", False),
        (BERT_TABLE, "bert.pooler.dense.bias", True),
        (BERT_TABLE, "cls.seq_relationship.weight", True),
        (BERT_TABLE, "embeddings.position_ids", True),
        (BERT_TABLE, "cls.predictions.bias", False),
    ],
)
def test_buffers_are_told_from_weights(table, name, is_buffer):
    assert table.is_buffer(name) == is_buffer
