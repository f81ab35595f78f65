"""Owns pairs of texts -> packed rows of both. Not: what is made of them."""

import dataclasses
import pathlib

import numpy as np

from kerasgpt.config import InputError
from kerasgpt.data.sources import read_text

# Rows that a pair may join; earlier ones have little room left.
OPEN_ROWS = 256


def read_pairs(path):
    """Returns the (source, target) pairs of a TSV file.

    A line is a source, a tab and its target; further columns are left out, as
    are empty lines. Nothing is quoted.

    Args:
        path: str or Path.

    Raises:
        InputError: for an empty file, or naming the line that is no pair.
    """
    pairs = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        columns = [column.strip() for column in line.split("\t")]
        if len(columns) < 2 or not all(columns[:2]):
            raise InputError(
                f"{pathlib.Path(path)}: line {number}: must be a source, a tab "
                f"and its target."
            )
        pairs.append(tuple(columns[:2]))
    return pairs


@dataclasses.dataclass(frozen=True)
class PairRows:
    """Rows that hold sources side by side, and their targets.

    Attributes:
        sources, targets: lists of int arrays. A target begins with what the
            decoder is started by, and ends with what stops it.
        rows: list of lists of int, the pairs of each row.
        row_length: int. Positions of either side.
    """

    sources: list
    targets: list
    rows: list
    row_length: int
    # Of what `assemble` returns, before targets and weights.
    input_names = (
        "token_ids",
        "positions",
        "segment_ids",
        "source_ids",
        "source_positions",
        "source_segment_ids",
    )

    def __len__(self):
        return len(self.rows)

    @property
    def used_fraction(self):
        """Float. Share of the target positions that hold a token."""
        used = sum(len(target) - 1 for target in self.targets)
        return used / max(1, len(self) * self.row_length)

    def assemble(self, rows):
        """Returns the arrays of some rows, see `PackedRows.assemble`.

        Returns:
            int32 arrays (batch, row_length) as `input_names` has them, then
            targets and float32 sample_weight.

        Example:
            >>> rows = pack_pairs([np.array([5, 6])], [np.array([1, 8, 2])],
            ...                   row_length=3)
            >>> for array in rows.assemble([0]): print(array[0])
            [1 8 0]
            [0 1 0]
            [1 1 0]
            [5 6 0]
            [0 1 0]
            [1 1 0]
            [8 2 0]
            [1. 1. 0.]
        """
        shape = (len(rows), self.row_length)
        arrays = [np.zeros(shape, np.int32) for _ in range(7)]
        token_ids, positions, segments = arrays[:3]
        source_ids, source_positions, source_segments, following = arrays[3:]
        for index, row in enumerate(rows):
            column, source_column = 0, 0
            for segment, pair in enumerate(self.rows[row], start=1):
                source, target = self.sources[pair], self.targets[pair]
                length = len(target) - 1
                here = np.s_[index, column : column + length]
                token_ids[here] = target[:-1]
                positions[here] = np.arange(length)
                segments[here] = segment
                following[here] = target[1:]
                there = np.s_[
                    index, source_column : source_column + len(source)
                ]
                source_ids[there] = source
                source_positions[there] = np.arange(len(source))
                source_segments[there] = segment
                column += length
                source_column += len(source)
        return *arrays, (segments > 0).astype(np.float32)


def pack_pairs(sources, targets, *, row_length):
    """Returns the PairRows of pairs of ids, none of which is cut.

    A pair goes into the first of the `OPEN_ROWS` last rows that has room for
    both of its sides, the longest pairs first.

    Args:
        sources, targets: lists of int arrays, see `PairRows`.
        row_length: int, positions.

    Raises:
        InputError: if one is longer than a row.
    """
    sizes = np.array(
        [
            (len(source), len(target) - 1)
            for source, target in zip(sources, targets, strict=True)
        ]
    ).reshape(-1, 2)
    if (sizes > row_length).any():
        number = int(np.argmax(sizes.max(axis=1) > row_length))
        raise InputError(
            f"pair {number + 1} has {sizes[number].max()} tokens on a side; "
            f"model.context_length={row_length} is the most."
        )
    rows, rooms = [], np.zeros((len(sizes), 2), np.int64)
    first_open = 0
    for pair in np.argsort(-sizes.max(axis=1), kind="stable").tolist():
        open_rooms = rooms[first_open : len(rows)]
        (fitting,) = np.nonzero((open_rooms >= sizes[pair]).all(axis=1))
        if len(fitting):
            row = first_open + int(fitting[0])
        else:
            row = len(rows)
            rows.append([])
            rooms[row] = row_length
            first_open = max(first_open, len(rows) - OPEN_ROWS)
        rows[row].append(pair)
        rooms[row] -= sizes[pair]
    return PairRows(sources, targets, rows, row_length)


def encode_pairs(pairs, tokenizer, *, start_id, stop_id):
    """Returns (sources, targets), lists of int arrays, of (str, str) pairs."""
    sources, targets = (
        tokenizer.encode_batch([pair[side] for pair in pairs])
        for side in (0, 1)
    )
    return (
        sources,
        [np.concatenate([[start_id], target, [stop_id]]) for target in targets],
    )
