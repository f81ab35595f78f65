import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from kerasgpt.data.packing import pack
from kerasgpt.data.shop import build_world, generate_documents
from kerasgpt.tokenizers import train_sentence_piece


def _pack(documents, row_length, masks=None):
    """Packs lists of ids; the mask of a document defaults to all ones."""
    token_ids = np.array([i for row in documents for i in row], np.uint16)
    masks = masks or [[1] * len(row) for row in documents]
    loss_mask = np.array([i for row in masks for i in row], np.uint8)
    offsets = np.cumsum([0, *map(len, documents)])
    return pack(token_ids, loss_mask, offsets, row_length=row_length)


def _rows(packed):
    names = ("token_ids", "positions", "segment_ids", "targets", "weights")
    arrays = packed.assemble(np.arange(len(packed)))
    return dict(zip(names, arrays, strict=True))


def _trained(packed):
    """Returns (document as it is told by ids, targets) of all segments."""
    rows = _rows(packed)
    pieces = []
    for row in range(len(packed)):
        segment_ids = rows["segment_ids"][row]
        for segment in range(1, segment_ids.max() + 1):
            here = segment_ids == segment
            pieces.append(
                (
                    rows["token_ids"][row][here].tolist(),
                    rows["targets"][row][here].tolist(),
                    rows["positions"][row][here].tolist(),
                )
            )
    return pieces


def test_two_documents_in_one_row_written_out():
    packed = _pack([[5, 6, 7], [8, 9, 2]], 5, [[0, 0, 1], [0, 1, 1]])
    rows = _rows(packed)
    assert len(packed) == 1
    assert rows["token_ids"].tolist() == [[5, 6, 8, 9, 0]]
    assert rows["targets"].tolist() == [[6, 7, 9, 2, 0]]
    assert rows["positions"].tolist() == [[0, 1, 0, 1, 0]]
    assert rows["segment_ids"].tolist() == [[1, 1, 2, 2, 0]]
    assert rows["weights"].tolist() == [[0, 1, 1, 1, 0]]
    assert packed.used_fraction == 0.8


def test_a_row_is_filled_by_what_fits_it_best():
    # Positions 4, 3, 2, 1 in rows of 5: the 2 joins the 3, the 1 the 4.
    packed = _pack([[1] * 5, [2] * 4, [3] * 3, [4] * 2], 5)
    rows = _rows(packed)
    assert rows["token_ids"].tolist() == [[1, 1, 1, 1, 4], [2, 2, 2, 3, 3]]
    assert packed.used_fraction == 1.0


def test_three_fill_what_the_longest_fit_would_not():
    # Best fit, longest first, joins the two of 4 and needs 3 rows of 10.
    packed = _pack([[7] * (n + 1) for n in (4, 4, 3, 3, 3, 3)], 10)
    assert len(packed) == 2
    assert packed.used_fraction == 1.0


def test_a_long_document_is_cut_into_consecutive_pieces():
    document = list(range(100, 112))
    packed = _pack([document], 5)
    pieces = sorted(_trained(packed))
    assert [piece[0] for piece in pieces] == [
        document[0:5],
        document[5:10],
        document[10:11],
    ]
    # The first token of a piece was the last target of the one before.
    assert [piece[1] for piece in pieces] == [
        document[1:6],
        document[6:11],
        document[11:12],
    ]
    assert all(piece[2][0] == 0 for piece in pieces)


def test_the_shape_and_types_of_a_batch():
    arrays = _pack([[1, 2, 3]], 4).assemble([0, 0])
    for array in arrays[:4]:
        assert array.shape == (2, 4)
        assert array.dtype == np.int32
    assert arrays[4].dtype == np.float32


@pytest.mark.parametrize("documents", [[], [[]], [[7]], [[], [7], []]])
def test_what_has_no_target_gives_no_row(documents):
    packed = _pack(documents, 4)
    assert len(packed) == 0
    assert packed.used_fraction == 0.0


@hypothesis.given(
    lengths=st.lists(st.integers(0, 23), max_size=20),
    row_length=st.integers(1, 9),
)
def test_every_token_is_a_target_exactly_once(lengths, row_length):
    ids = iter(range(1, 10_000))
    documents = [[next(ids) for _ in range(length)] for length in lengths]
    packed = _pack(documents, row_length)
    pieces = _trained(packed)

    targets = sorted(i for piece in pieces for i in piece[1])
    assert targets == [i for document in documents for i in document[1:]]
    # Each is predicted from the token that stands before it.
    for inputs, following, positions in pieces:
        assert following == [i + 1 for i in inputs]
        assert positions == list(range(len(inputs)))
    # Nothing that fits is cut.
    told = {tuple(piece[0]) for piece in pieces}
    for document in documents:
        if 2 <= len(document) <= row_length + 1:
            assert tuple(document[:-1]) in told
    rows = _rows(packed)
    used = int((rows["segment_ids"] > 0).sum()) if len(packed) else 0
    assert used == sum(max(0, length - 1) for length in lengths)
    assert packed.used_fraction == (
        used / (len(packed) * row_length) if used else 0.0
    )


@hypothesis.given(
    lengths=st.lists(st.integers(2, 9), max_size=12), seed=st.integers(0, 99)
)
def test_the_mask_of_a_token_is_the_weight_of_its_target(lengths, seed):
    rng = np.random.default_rng(seed)
    ids = iter(range(1, 10_000))
    documents = [[next(ids) for _ in range(length)] for length in lengths]
    masks = [rng.integers(0, 2, len(row)).tolist() for row in documents]
    rows = _rows(_pack(documents, 8, masks))
    mask_of = dict(
        zip(
            (i for row in documents for i in row),
            (i for row in masks for i in row),
            strict=True,
        )
    )
    for target, weight in zip(
        rows["targets"].ravel(), rows["weights"].ravel(), strict=True
    ):
        assert weight == mask_of.get(int(target), 0)


def test_the_shop_fills_its_rows():
    # The vocabulary and context of a default run, a tenth of its documents.
    texts = [*generate_documents(build_world(), count=4_000)]
    tokenizer = train_sentence_piece(texts[:1500], vocabulary_size=2048)
    rows = [[2, *ids, 3] for ids in tokenizer.encode_batch(texts)]
    token_ids = np.concatenate(rows)
    packed = pack(
        token_ids,
        np.ones_like(token_ids),
        np.cumsum([0, *map(len, rows)]),
        row_length=256,
    )
    assert packed.used_fraction >= 0.995
