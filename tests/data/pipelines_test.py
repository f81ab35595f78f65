import collections

import numpy as np
import pytest

from kerasgpt.data.packing import pack
from kerasgpt.data.pipelines import (
    build_evaluation_dataset,
    build_training_dataset,
)


def _packed(num_rows, row_length=4):
    """Rows of one document each; row r begins with the id 10 * r + 1."""
    documents = [
        [10 * row + i for i in range(1, row_length + 2)]
        for row in range(num_rows)
    ]
    token_ids = np.array(documents, np.int32).ravel()
    offsets = np.arange(num_rows + 1) * (row_length + 1)
    return pack(
        token_ids, np.ones_like(token_ids), offsets, row_length=row_length
    )


def _arrays(dataset):
    return [
        (
            {name: value.numpy() for name, value in inputs.items()},
            targets.numpy(),
            weights.numpy(),
        )
        for inputs, targets, weights in dataset
    ]


def _first_ids(batches):
    return [inputs["token_ids"][:, 0].tolist() for inputs, _, _ in batches]


def _training(num_rows, **settings):
    settings = {
        "batch_size": 3,
        "seed": 0,
        "start_step": 0,
        "num_steps": 12,
        **settings,
    }
    return _arrays(build_training_dataset(_packed(num_rows), **settings))


@pytest.mark.parametrize("num_rows", [2, 3, 7, 12, 20])
def test_every_row_comes_once_an_epoch(num_rows):
    batches = _first_ids(_training(num_rows, num_steps=2 * num_rows))
    order = [first for batch in batches for first in batch]
    every_row = sorted(10 * row + 1 for row in range(num_rows))
    for start in range(0, len(order), num_rows):
        assert sorted(order[start : start + num_rows]) == every_row


def test_one_row_is_a_data_set_too():
    batches = _first_ids(_training(1, num_steps=2))
    assert batches == [[1, 1, 1]] * 2


def test_epochs_and_seeds_have_orders_of_their_own():
    def epochs(seed):
        batches = _first_ids(_training(30, num_steps=20, seed=seed))
        order = [first for batch in batches for first in batch]
        return order[:30], order[30:60]

    orders = [*epochs(0), *epochs(1)]
    assert len({tuple(order) for order in orders}) == 4
    assert list(range(1, 300, 10)) not in orders
    assert epochs(0) == epochs(0)


@pytest.mark.parametrize("step", [1, 5, 11, 12])
def test_a_resumed_run_sees_the_batches_it_had_not_seen(step):
    whole, rest = _training(7), _training(7, start_step=step)
    assert len(rest) == 12 - step
    for expected, actual in zip(whole[step:], rest, strict=True):
        for name, value in expected[0].items():
            np.testing.assert_array_equal(actual[0][name], value)
        np.testing.assert_array_equal(actual[1], expected[1])
        np.testing.assert_array_equal(actual[2], expected[2])


def test_a_batch_has_static_shapes_and_known_types():
    dataset = build_training_dataset(
        _packed(5), batch_size=3, seed=0, start_step=0, num_steps=1
    )
    inputs, targets, weights = dataset.element_spec
    assert sorted(inputs) == ["positions", "segment_ids", "token_ids"]
    for spec in (*inputs.values(), targets, weights):
        assert spec.shape == (3, 4)
    assert targets.dtype == "int32"
    assert weights.dtype == "float32"


def test_batches_are_the_packed_rows():
    inputs, targets, weights = _training(1, batch_size=1, num_steps=1)[0]
    assert inputs["token_ids"].tolist() == [[1, 2, 3, 4]]
    assert inputs["positions"].tolist() == [[0, 1, 2, 3]]
    assert inputs["segment_ids"].tolist() == [[1, 1, 1, 1]]
    assert targets.tolist() == [[2, 3, 4, 5]]
    assert weights.tolist() == [[1, 1, 1, 1]]


def test_evaluation_reads_all_rows_in_order_and_fills_up_with_no_weight():
    dataset = build_evaluation_dataset(_packed(5), batch_size=3)
    batches = _arrays(dataset)
    assert _first_ids(batches)[0] == [1, 11, 21]
    assert _first_ids(batches)[1][:2] == [31, 41]
    assert batches[0][2].all()
    assert batches[1][2][:2].all()
    assert not batches[1][2][2].any()
    counted = collections.Counter(
        int(target)
        for _, targets, weights in batches
        for target in targets[weights > 0]
    )
    expected = [10 * row + i for row in range(5) for i in range(2, 6)]
    assert counted == collections.Counter(expected)


def test_evaluation_may_read_some_rows():
    dataset = build_evaluation_dataset(
        _packed(5), batch_size=2, row_numbers=np.array([4, 1, 2])
    )
    batches = _arrays(dataset)
    assert _first_ids(batches)[0] == [41, 11]
    assert _first_ids(batches)[1][:1] == [21]
    assert [weights.sum() for _, _, weights in batches] == [8.0, 4.0]
