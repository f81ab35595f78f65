"""Owns packing token runs into rows of equal length. Not: files, batches."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Rows of `row_length` positions that hold whole documents side by side.

    Rows are assembled when asked for, so token streams may stay on disk.

    Attributes:
        token_ids: int (tokens,), all documents one after the other.
        loss_mask: int (tokens,). 1 = trained to predict this token.
        row_length: int, positions.
        row_splits: int (rows + 1,). Pieces of row r are
            row_splits[r]:row_splits[r + 1].
        piece_starts: int (pieces,). First token of a piece.
        piece_lengths: int (pieces,). Positions of a piece.
    """

    token_ids: np.ndarray
    loss_mask: np.ndarray
    row_length: int
    row_splits: np.ndarray
    piece_starts: np.ndarray
    piece_lengths: np.ndarray
    # Of what `assemble` returns, before targets and weights.
    input_names = ("token_ids", "positions", "segment_ids")

    def __len__(self):
        return len(self.row_splits) - 1

    @property
    def used_fraction(self):
        """Float. Share of the positions that hold a token."""
        positions = max(1, len(self) * self.row_length)
        return float(self.piece_lengths.sum()) / positions

    def assemble(self, rows):
        """Returns the arrays of some rows.

        Targets are the inputs of the next position in the same document; a
        document of n tokens fills n - 1 positions.

        Args:
            rows: int (batch,), row numbers.

        Returns:
            int32 token_ids, positions, segment_ids (0 = padding), targets and
            float32 sample_weight, each (batch, row_length).

        Example:
            >>> rows = pack(np.array([5, 6, 7, 8, 9, 2]), np.ones(6, int),
            ...             [0, 3, 6], row_length=5)
            >>> for array in rows.assemble([0]): print(array[0])
            [5 6 8 9 0]
            [0 1 0 1 0]
            [1 1 2 2 0]
            [6 7 9 2 0]
            [1. 1. 1. 1. 0.]
        """
        shape = (len(rows), self.row_length)
        token_ids, positions, segment_ids, targets = (
            np.zeros(shape, np.int32) for _ in range(4)
        )
        sample_weight = np.zeros(shape, np.float32)
        for index, row in enumerate(rows):
            column = 0
            first, last = self.row_splits[row], self.row_splits[row + 1]
            for segment, piece in enumerate(range(first, last), start=1):
                start, length = (
                    self.piece_starts[piece],
                    self.piece_lengths[piece],
                )
                here = np.s_[index, column : column + length]
                read = np.s_[start : start + length]
                following = np.s_[start + 1 : start + length + 1]
                token_ids[here] = self.token_ids[read]
                positions[here] = np.arange(length)
                segment_ids[here] = segment
                targets[here] = self.token_ids[following]
                sample_weight[here] = self.loss_mask[following]
                column += length
        return token_ids, positions, segment_ids, targets, sample_weight


def pack(token_ids, loss_mask, offsets, *, row_length):
    """Packs documents into rows, each filled as far as lengths allow.

    A document that fits a row is never cut; a longer one is cut into pieces
    of `row_length` positions, the last of them packed like a document.

    A row is the longest piece and those that fill it best, long ones first.
    As many rows are made alike as there are pieces for, so the work grows with
    the different lengths, not with the documents.

    Args:
        token_ids, loss_mask: see `PackedRows`.
        offsets: int (documents + 1,). Document d is offsets[d]:offsets[d + 1].
        row_length: int, positions.

    Returns:
        PackedRows.

    Reference: Krell et al. 2021, Efficient sequence packing without
    cross-contamination (arXiv 2107.02027), for rows by histogram; Gupta & Ho
    1999, A new heuristic algorithm for the one-dimensional bin-packing
    problem, for filling one row after the other.
    """
    spans = np.stack([offsets[:-1], offsets[1:]], axis=1).astype(np.int64)
    starts, lengths = _pieces(spans, row_length)
    by_length = np.argsort(lengths, kind="stable")
    left = np.bincount(lengths, minlength=row_length + 1)
    ends = np.cumsum(left)
    left = left.tolist()
    # Empty ones, for rows of nothing.
    pieces, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for longest in range(row_length, 0, -1):
        while left[longest]:
            chosen = _fill_row(left, longest, row_length)
            num_rows = min(left[length] // n for length, n in chosen.items())
            columns = []
            for length, n in chosen.items():
                end = ends[length]
                first = end - left[length]
                left[length] -= num_rows * n
                columns.append(
                    by_length[first : end - left[length]].reshape(num_rows, n)
                )
            rows = np.concatenate(columns, axis=1)
            pieces.append(rows.ravel())
            counts.append(np.full(num_rows, rows.shape[1]))
    pieces, counts = np.concatenate(pieces), np.concatenate(counts)
    return PackedRows(
        token_ids=token_ids,
        loss_mask=loss_mask,
        row_length=row_length,
        row_splits=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        piece_starts=starts[pieces],
        piece_lengths=lengths[pieces],
    )


def _fill_row(left, longest, row_length):
    """Returns a dict from a length to how many pieces of it make a row.

    Args:
        left: list of int, pieces of each length.
        longest: int, a length that is to be among them.
        row_length: int.

    Example:
        >>> _fill_row([0, 2, 0, 1, 1, 1], longest=5, row_length=9)
        {5: 1, 4: 1}
    """
    room = row_length - longest
    within = (1 << (room + 1)) - 1
    # Bit n of an entry: the lengths up to here can fill n positions.
    reached, lengths = [1], []
    for length in range(min(room, longest), 0, -1):
        if reached[-1] >> room:
            break
        usable = min(left[length] - (length == longest), room // length)
        if usable <= 0:
            continue
        sums = more = reached[-1]
        for _ in range(usable):
            more = (more << length) & within
            sums |= more
        lengths.append(length)
        reached.append(sums)
    chosen, filled = {longest: 1}, reached[-1].bit_length() - 1
    reached.pop()
    for length, before in zip(
        reversed(lengths), reversed(reached), strict=True
    ):
        while not before >> filled & 1:
            filled -= length
            chosen[length] = chosen.get(length, 0) + 1
    return chosen


def _pieces(spans, row_length):
    """Returns (starts, lengths) of the pieces, positions being tokens - 1."""
    starts, lengths = [], []
    for start, end in spans.tolist():
        for first in range(start, end - 1, row_length):
            starts.append(first)
            lengths.append(min(row_length, end - 1 - first))
    return np.array(starts, np.int64), np.array(lengths, np.int64)
