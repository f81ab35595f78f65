import dataclasses

import numpy as np
import pytest

from kerasgpt.config import InputError
from kerasgpt.data.masking import MaskedRows, mask_texts, number_units
from kerasgpt.data.packing import pack
from kerasgpt.models.encoder import MARKS, EncoderConfig
from kerasgpt.tokenizers import ByteTokenizer
from tests.descriptors import tiny_bert_pieces

CONFIG = EncoderConfig(vocabulary_size=265 + len(MARKS), context_length=24)
MASK, CLS, SEP = (
    CONFIG.mark_id(f"[{name}]") for name in ("MASK", "CLS", "SEP")
)


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("red shoe", [3, 5]),
        ("It's 120 yuan!", [4, 4, 5, 1]),
        # A character of Chinese each, a word and a number as a whole.
        ("买Repomu 12 元。", [3, 6, 3, 4, 3]),
        ("two\n\nlines  ", [3, 7, 2]),
        ("", []),
    ],
)
def test_units_are_words_numbers_and_characters(text, units):
    size = len(text.encode())
    found = number_units(text, [1] * size)
    np.testing.assert_array_equal(
        found, np.repeat(np.arange(len(units)) + 1, units)
    )


def test_units_that_share_a_token_are_one():
    # "ab cd ef": the second token reaches from the first word to the second.
    assert number_units("ab cd ef", [1, 3, 1, 3]).tolist() == [1, 1, 1, 2]


def by_hand(units, **changes):
    token_ids = np.arange(len(units) + 1) + 20
    fields = {
        "rows": pack(
            token_ids,
            np.ones(len(token_ids), np.uint8),
            np.array([0, len(token_ids)]),
            row_length=len(units) + 2,
        ),
        "units": np.array([*units, 0]),
        "answers": np.zeros(len(token_ids), np.int64),
        "replacements": np.array([7]),
        "mask_id": 99,
    }
    return MaskedRows(**{**fields, **changes})


def test_units_are_hidden_as_a_whole_and_asked_for():
    units = np.repeat(np.arange(8), 3)
    rows = by_hand(units, share=0.3, num_copies=200)
    assert len(rows) == 200
    hidden, _, segment_ids, targets, weights = rows.assemble(range(200))
    original = np.arange(24) + 20
    np.testing.assert_array_equal(segment_ids[0], [1] * 24 + [0] * 2)
    assert not weights[:, 24:].any()
    is_chosen = weights[:, :24].reshape(200, 8, 3)
    # All of a unit or nothing; 30 % of 7 units are two; unit 0 is no word.
    assert (is_chosen.min(axis=2) == is_chosen.max(axis=2)).all()
    assert (is_chosen[:, :, 0].sum(axis=1) == 2).all()
    assert not is_chosen[:, 0].any()
    np.testing.assert_array_equal(
        targets[:, :24], np.where(weights[:, :24] > 0, original, 0)
    )
    np.testing.assert_array_equal(
        hidden[:, :24][weights[:, :24] == 0],
        np.tile(original, (200, 1))[weights[:, :24] == 0],
    )
    asked = hidden[:, :24][weights[:, :24] > 0]
    # Of 400 units 80 % are hidden, 10 % changed, 10 % left: four deviations.
    assert abs((asked == 99).mean() - 0.8) < 0.08
    assert abs((asked == 7).mean() - 0.1) < 0.06
    assert abs(((asked != 99) & (asked != 7)).mean() - 0.1) < 0.06


def test_copies_differ_and_a_row_is_always_the_same():
    rows = by_hand(np.arange(20), num_copies=4)
    first = rows.assemble([0, 1, 2, 3])
    again = rows.assemble([3, 2, 1, 0])
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other[::-1])
    assert len({tuple(row) for row in first[4]}) > 2
    other = dataclasses.replace(rows, seed=1).assemble([0, 1, 2, 3])
    assert not np.array_equal(first[4], other[4])


def test_single_tokens_are_hidden_as_keras_nlp_does():
    keras_nlp = pytest.importorskip("keras_nlp")
    theirs = keras_nlp.layers.MaskedLMMaskGenerator(
        vocabulary_size=100,
        mask_selection_rate=0.25,
        mask_selection_length=10,
        mask_token_id=99,
        unselectable_token_ids=[20],
    )
    row = np.arange(41) + 20
    counts = np.zeros((2, 3))
    made = {
        name: np.asarray(value)
        for name, value in theirs(np.tile(row, (60, 1))).items()
    }
    after = np.take_along_axis(
        made["token_ids"], made["mask_positions"], axis=1
    )[made["mask_weights"] > 0]
    before = row[made["mask_positions"]][made["mask_weights"] > 0]
    counts[0] = [len(after), (after == 99).sum(), (after == before).sum()]
    ours = by_hand(np.arange(41), share=0.25, num_copies=60)
    hidden, *_, targets, weights = ours.assemble(range(60))
    is_asked = weights > 0
    counts[1] = [
        is_asked.sum(),
        (hidden[is_asked] == 99).sum(),
        (hidden[is_asked] == targets[is_asked]).sum(),
    ]
    # Theirs may choose fewer; of what is chosen, the shares are the same: five
    # standard deviations of 500 draws.
    assert counts[1, 0] == 600
    assert 450 < counts[0, 0] <= 600
    shares = counts[:, 1:] / counts[:, :1]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.12)
    np.testing.assert_allclose(shares[1], [0.8, 0.1], atol=0.08)


def test_texts_become_marked_rows():
    rows = mask_texts(["ab 好", "x" * 50], ByteTokenizer(), CONFIG, share=0.2)
    whole = dataclasses.replace(rows, share=0.0)
    hidden, _, segment_ids, targets, weights = whole.assemble(range(len(rows)))
    original = np.where(weights > 0, targets, hidden)
    assert not original[segment_ids == 0].any()
    found = sorted(
        tuple(original[row][segment_ids[row] == segment].tolist())
        for row in range(len(rows))
        for segment in np.unique(segment_ids[row])
        if segment
    )
    byte = ByteTokenizer().encode
    assert found == sorted(
        [
            (CLS, *byte("ab 好"), SEP),
            (CLS, *byte("x" * 22), SEP),
            (CLS, *byte("x" * 22), SEP),
            (CLS, *byte("x" * 6), SEP),
        ]
    )
    # Neither mark is ever asked for.
    assert not np.isin(targets[weights > 0], [CLS, SEP]).any()


def test_half_of_the_second_sentences_are_another_texts():
    texts = [f"{letter}a. {letter}b." for letter in "cdefghijklmn" * 20]
    rows = mask_texts(texts, ByteTokenizer(), CONFIG, next_sentence=True)
    hidden, _, segment_ids, targets, weights = rows.assemble(range(len(rows)))
    original = np.where((weights > 0) & (targets < 265), targets, hidden)
    labels = {CONFIG.mark_id("[NEXT]"): [], CONFIG.mark_id("[OTHER]"): []}
    for row, segments, target in zip(
        original, segment_ids, targets, strict=True
    ):
        for segment in np.unique(segments[segments > 0]):
            piece = row[segments == segment]
            label = target[segments == segment][0]
            first, second = np.split(
                piece[1:-1], np.nonzero(piece[1:-1] == SEP)[0]
            )
            labels[label].append(first[0] == second[1])
    same, other = labels.values()
    assert all(same)
    assert len(same) + len(other) == len(texts)
    assert abs(len(same) / len(texts) - 0.5) < 0.13
    # Another text may begin with the same letter, of twelve.
    assert np.mean(other) < 0.25


def test_marks_of_a_tokenizer_stand_where_ours_would():
    tokenizer = tiny_bert_pieces()
    config = EncoderConfig(
        vocabulary_size=tokenizer.vocabulary_size,
        context_length=16,
        mark_ids=(tokenizer.mask_id, 2, 3),
    )
    texts = ["to be, or not to be"]
    rows = mask_texts(texts, tokenizer, config, share=0.5)
    token_ids, _, segment_ids, targets, weight = rows.assemble([0])
    (row,) = token_ids[segment_ids > 0].reshape(1, -1).tolist()
    assert (row[0], row[-1]) == (2, 3)
    assert tokenizer.mask_id in row
    whole = np.where(weight > 0, targets, token_ids)[segment_ids > 0]
    assert whole[1:-1].tolist() == tokenizer.encode(texts[0])
    with pytest.raises(InputError, match=r"has no \[NEXT\]"):
        mask_texts(["A b. C d."] * 2, tokenizer, config, next_sentence=True)
