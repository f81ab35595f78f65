import numpy as np
import pytest

from kerasgpt.config import InputError
from kerasgpt.data.pairs import encode_pairs, pack_pairs, read_pairs
from kerasgpt.data.pipelines import build_evaluation_dataset
from kerasgpt.tokenizers import ByteTokenizer


def test_a_line_is_a_source_and_its_target(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("Hello.\t你好。\r\n\n He left \t他走了。\tCC-BY\n")
    assert read_pairs(path) == [("Hello.", "你好。"), ("He left", "他走了。")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\nonly one\n", "line 2: must be a source, a tab"),
        ("a\t\n", "line 1: must be a source"),
        ("\n \n", "is empty"),
    ],
)
def test_what_is_no_pair_is_named(tmp_path, text, message):
    path = tmp_path / "pairs.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_pairs(path)


def some_pairs(count=60):
    rng = np.random.default_rng(0)
    sources, targets = (
        [rng.integers(3, 9, size) for size in rng.integers(low, 9, count)]
        for low in (1, 2)
    )
    return sources, targets


def test_every_pair_is_in_one_row_whole():
    sources, targets = some_pairs()
    rows = pack_pairs(sources, targets, row_length=16)
    assert len(rows) < 45
    assert sorted(pair for row in rows.rows for pair in row) == [*range(60)]
    arrays = dict(
        zip(
            (*rows.input_names, "targets", "weights"),
            rows.assemble(range(len(rows))),
            strict=True,
        )
    )
    for row, pairs in enumerate(rows.rows):
        for segment, pair in enumerate(pairs, start=1):
            here = arrays["segment_ids"][row] == segment
            there = arrays["source_segment_ids"][row] == segment
            for name, place, expected in (
                ("token_ids", here, targets[pair][:-1]),
                ("targets", here, targets[pair][1:]),
                ("positions", here, range(len(targets[pair]) - 1)),
                ("weights", here, [1] * (len(targets[pair]) - 1)),
                ("source_ids", there, sources[pair]),
                ("source_positions", there, range(len(sources[pair]))),
            ):
                np.testing.assert_array_equal(
                    arrays[name][row][place], list(expected)
                )
    assert arrays["weights"].sum() == sum(len(t) - 1 for t in targets)


def test_a_pair_longer_than_a_row_is_named():
    with pytest.raises(InputError, match="pair 2 has 9 tokens on a side"):
        pack_pairs(
            [np.ones(2), np.ones(9)], [np.ones(2), np.ones(3)], row_length=8
        )


def test_batches_hold_both_sides():
    rows = pack_pairs(*some_pairs(), row_length=16)
    dataset = build_evaluation_dataset(rows, batch_size=4, row_numbers=[0, 2])
    inputs, targets, weights = next(iter(dataset))
    assert set(inputs) == set(rows.input_names)
    expected = rows.assemble([0, 2])
    np.testing.assert_array_equal(inputs["source_ids"][:2], expected[3])
    np.testing.assert_array_equal(targets[:2], expected[6])
    assert not np.asarray(weights[2:]).any()


def test_targets_begin_and_end_with_their_marks():
    sources, targets = encode_pairs(
        [("ab", "c")], ByteTokenizer(), start_id=2, stop_id=3
    )
    assert sources[0].tolist() == ByteTokenizer().encode("ab")
    assert targets[0].tolist() == [2, *ByteTokenizer().encode("c"), 3]
