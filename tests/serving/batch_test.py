import concurrent.futures
import threading
import types

import numpy as np
import pytest
import tensorflow as tf

from kerasgpt.generation.samplers import SamplerSettings
from kerasgpt.generation.token_step import join_projections
from kerasgpt.models import GPTCausalLM, GPTConfig
from kerasgpt.serving.batch import (
    _FLOATS,
    _NEUTRAL,
    MAX_STEPS,
    Batch,
    Lane,
    RowState,
)

SLOTS = (8, 16)


@pytest.fixture(scope="module")
def build_lane():
    """Returns a function that gives a Lane of some rows and slots."""
    model = GPTCausalLM(GPTConfig.from_depth(1, context_length=16))
    model.build()
    empty = {count: RowState.empty(model, count) for count in SLOTS}

    def build(num_rows, num_slots):
        return Lane(
            model,
            empty,
            num_rows,
            num_slots,
            joined=join_projections(model),
            control_ids=(0,),
            jit_compile=False,
        )

    return build


def random_state(lane, num_slots, seed=0):
    """Returns a RowState of one row, of random numbers."""
    draw = np.random.default_rng(seed)

    def randomised(tensor):
        values = draw.integers(0, 2, tensor.shape).astype(tensor.dtype.name)
        return tf.constant(values)

    return tf.nest.map_structure(randomised, lane._empty[num_slots])


def same(one, other):
    pairs = zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True)
    return all(np.array_equal(first, second) for first, second in pairs)


@pytest.mark.parametrize("num_slots", SLOTS)
@pytest.mark.parametrize("put_slots", SLOTS)
def test_a_row_is_taken_as_it_was_put(build_lane, num_slots, put_slots):
    lane = build_lane(3, num_slots)
    states = [random_state(lane, put_slots, seed) for seed in range(3)]
    for row, state in enumerate(states):
        lane.put(row, state)
    shared = min(num_slots, put_slots)
    for row, state in enumerate(states):
        taken = lane.take(row)
        assert same((taken.logits, taken.counts), (state.logits, state.counts))
        for kept, given in zip(
            tf.nest.flatten(taken.cache),
            tf.nest.flatten(state.cache),
            strict=True,
        ):
            assert kept.shape[2] == num_slots
            np.testing.assert_array_equal(
                kept[:, :, :shared], given[:, :, :shared]
            )


def test_rows_keep_their_places_in_any_number_of_lanes(build_lane):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        batch = Batch(8, [build_lane(2, 8), build_lane(2, 8)], pool)
        states = [random_state(batch.lanes[0], 8, seed) for seed in range(4)]
        for row, state in enumerate(states):
            batch.put(row, f"job {row}", state)
        # Evenly, whatever their number.
        assert same(batch.lanes[1].take(0), states[1])
        assert batch.active == [(row, f"job {row}") for row in range(4)]
        assert all(same(batch.take(row), states[row]) for row in range(4))
        assert batch.active == []


def test_a_lane_that_fails_leaves_no_other_at_work():
    is_slow, is_done = threading.Event(), threading.Event()

    def work(jobs, num_steps):
        is_slow.wait(timeout=5)
        is_done.set()
        return [], num_steps

    def fail(jobs, num_steps):
        is_slow.set()
        raise RuntimeError("no memory")

    lanes = [
        types.SimpleNamespace(num_rows=1, advance=advance)
        for advance in (work, fail)
    ]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        batch = Batch(8, lanes, pool)
        batch.jobs = ["one", "another"]
        with pytest.raises(RuntimeError, match="no memory"):
            batch.advance(MAX_STEPS)
        assert is_done.is_set()


def test_rows_without_a_job_neither_draw_nor_are_penalised():
    settings = SamplerSettings(
        **{name: None for name in SamplerSettings._fields}
    )._replace(**dict(zip(_FLOATS, _NEUTRAL.tolist(), strict=True)))
    expected = SamplerSettings.constant(1)
    for name in _FLOATS:
        assert getattr(settings, name) == float(getattr(expected, name)[0])
