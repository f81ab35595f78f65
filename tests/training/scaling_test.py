import dataclasses

import pytest

from kerasgpt.layers.attention import BLOCK_LENGTH
from kerasgpt.models import GPTConfig
from kerasgpt.training import memory
from kerasgpt.training.scaling import (
    FLOAT_BYTES,
    HALF_BYTES,
    Cluster,
    Layout,
    activation_bytes,
    all_reduce_seconds,
    break_even_tokens,
    ring_seconds,
    step_cost,
)
from kerasgpt.training.stage import TrainConfig

# Round figures: all that is assumed is 1.
CLUSTER = Cluster(
    peak_flops=1e15,
    memory_bytes=1e12,
    node_gpus=8,
    node_bandwidth=1e11,
    network_bandwidth=1e10,
    compute_fraction=1.0,
    link_fraction=1.0,
    memory_fraction=1.0,
)
CONFIG = GPTConfig.from_depth(
    8, num_heads=8, num_kv_heads=8, context_length=1024
)
BATCH_TOKENS = 2**20


def _cost(layout, cluster=CLUSTER, **settings):
    settings = {"batch_tokens": BATCH_TOKENS, **settings}
    return step_cost(CONFIG, layout, cluster, **settings)


def test_a_ring_sends_twice_all_but_its_own_part():
    assert ring_seconds(8e9, 8, 1e9) == pytest.approx(14.0)
    assert ring_seconds(8e9, 1, 1e9) == 0.0


def test_nodes_send_each_other_a_part_for_each_gpu():
    within = 2 * 7 / 8 * 8e9 / 1e11
    assert all_reduce_seconds(8e9, 8, CLUSTER) == pytest.approx(within)
    between = 2 * 3 / 4 * 1e9 / 1e10
    assert all_reduce_seconds(8e9, 32, CLUSTER) == pytest.approx(
        within + between
    )
    # One of each node: all by network.
    assert all_reduce_seconds(8e9, 4, CLUSTER, stride=8) == pytest.approx(
        2 * 3 / 4 * 8e9 / 1e10
    )


def test_one_gpu_only_computes():
    cost = _cost(Layout())
    flops = CONFIG.training_flops_per_token * BATCH_TOKENS
    assert cost.seconds == cost.compute_seconds == pytest.approx(flops / 1e15)
    assert cost.model_flops_fraction == pytest.approx(1.0)


def test_memory_is_state_and_what_a_block_keeps_of_each_token():
    cost = _cost(Layout(), micro_rows=2)
    kept = 2 * 1024 * 8 * activation_bytes(CONFIG)
    assert cost.memory_bytes == pytest.approx(18 * CONFIG.num_parameters + kept)
    # Four slots and copies of 4 bytes, an eighth of each on a GPU, and two
    # blocks in bfloat16.
    sharded = _cost(Layout(data=8, is_sharded=True), micro_rows=2)
    state = 16 / 8 + 2 * 2 / 8
    assert sharded.memory_bytes == pytest.approx(
        state * CONFIG.num_parameters + kept
    )


def test_as_many_rows_as_fit_are_computed_together():
    state = 18 * CONFIG.num_parameters
    row = 1024 * 8 * activation_bytes(CONFIG)
    for fitting in (1, 3):
        small = dataclasses.replace(
            CLUSTER, memory_bytes=state + (fitting + 0.5) * row
        )
        assert _cost(Layout(), small).micro_rows == fitting
    # Never none, which the memory then tells, and no more than there are.
    assert (
        _cost(Layout(), dataclasses.replace(CLUSTER, memory_bytes=1)).micro_rows
        == 1
    )
    assert _cost(Layout(data=256)).micro_rows == 4


def test_sharding_sends_more_and_a_micro_batch_each_time():
    plain = _cost(Layout(data=8))
    for micro_rows, count in ((128, 1), (32, 4)):
        sharded = _cost(Layout(data=8, is_sharded=True), micro_rows=micro_rows)
        gathered = HALF_BYTES / FLOAT_BYTES
        assert sharded.weights_seconds == pytest.approx(
            count * (gathered + 0.5) * plain.weights_seconds
        )
    assert plain.least_seconds == pytest.approx(
        plain.seconds - min(plain.weights_seconds, plain.compute_seconds)
    )


def test_tensor_parallelism_sends_each_token_four_times_a_block():
    cost = _cost(Layout(tensor=8))
    tokens = 2 * BATCH_TOKENS * CONFIG.model_dim
    assert cost.activations_seconds == pytest.approx(
        4 * 8 * ring_seconds(tokens, 8, 1e11)
    )
    assert cost.weights_seconds == 0.0
    # The product that follows waits.
    assert cost.least_seconds == cost.seconds
    with pytest.raises(ValueError, match="tensor must divide num_kv_heads=8"):
        _cost(Layout(tensor=3))


def test_a_pipeline_waits_for_its_first_and_last_micro_batch():
    cost = _cost(Layout(pipeline=4))
    assert cost.micro_rows == 1
    assert cost.idle_seconds == pytest.approx(3 / 1024 * cost.compute_seconds)


def test_there_are_no_more_groups_than_rows():
    assert _cost(Layout(data=1024)).compute_seconds > 0.0
    assert _cost(Layout(data=2048)) is None


def test_at_the_break_even_computing_takes_as_long_as_summing():
    tokens = break_even_tokens(CLUSTER, gpus=16)
    # Long enough that attention is nothing: many parameters, few positions.
    config = GPTConfig.from_depth(8, context_length=8)
    rows = round(tokens / 8)
    cost = step_cost(
        config, Layout(data=16), CLUSTER, batch_tokens=16 * 8 * rows
    )
    assert cost.weights_seconds == pytest.approx(cost.compute_seconds, rel=0.05)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("context_length", [256, 1024])
def test_most_of_what_the_compiler_keeps_here_is_counted(
    activation, context_length
):
    """memory.py has read it off programs for CPUs, whose attention is not
    fused: they keep scores, and keys for each block of queries.
    """
    config = dataclasses.replace(
        CONFIG, activation=activation, context_length=context_length
    )
    parts = memory.memory_parts(config, TrainConfig(batch_tokens=4096))
    here = parts["activations"] / FLOAT_BYTES / 4096 / config.num_layers
    keys = (context_length + BLOCK_LENGTH) / 2
    here -= memory.SCORES_KEPT * config.num_heads * keys
    assert 0.6 < activation_bytes(config) / HALF_BYTES / here < 0.81
