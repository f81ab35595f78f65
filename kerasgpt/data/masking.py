"""Owns which tokens of rows are hidden. Not: predicting them (models)."""

import dataclasses
import re

import numpy as np

from kerasgpt.data.packing import PackedRows, pack

# A word of letters, a number, or any other character, a Chinese one too; the
# white space before it is part of it.
UNIT = re.compile(
    r"\s*(?:[A-Za-z\u00c0-\u024f\u0370-\u052f]+(?:['’-][A-Za-z]+)*"
    r"|[0-9]+|\S)|\s+$"
)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？\n])")
# BERT's: of the chosen units, so many are hidden; of the rest, half become
# other tokens and half stay.
HIDDEN_SHARE, CHANGED_SHARE = 0.8, 0.1


def number_units(text, token_lengths):
    """Returns which unit of a text, word or character, each token is of.

    Units that share a token are one.

    Args:
        text: str.
        token_lengths: list of int. UTF-8 bytes of each of its tokens.

    Returns:
        int64 (tokens,), from 1.

    Example:
        Tokens "re", "d", " sh", "oe", "很", "好":

        >>> number_units("red shoe很好", [2, 1, 3, 2, 3, 3]).tolist()
        [1, 1, 2, 2, 3, 4]
    """
    lengths = [len(match[0].encode()) for match in UNIT.finditer(text)]
    unit_starts = np.cumsum([0, *lengths])[:-1]
    ends = np.cumsum(token_lengths)
    starts = ends - token_lengths
    first = np.searchsorted(unit_starts, starts, side="right")
    last = np.searchsorted(unit_starts, np.maximum(ends - 1, starts), "right")
    reached = np.concatenate([[0], np.maximum.accumulate(last)[:-1]])
    return np.cumsum(first > reached)


@dataclasses.dataclass(frozen=True)
class MaskedRows:
    """Packed rows of which whole units are hidden, to be predicted.

    Rows come `num_copies` times, hidden at other places each time, as the
    duplicated data of BERT; which places, the number of the row decides.

    `keras_nlp.layers.MaskedLMMaskGenerator` chooses tokens, not the units they
    are of, draws anew on resuming, and cuts what it chose to a fixed number a
    row; of what is chosen, it hides and changes the shares that this does
    (tested).

    Attributes:
        rows: PackedRows of [CLS] sentence [SEP], sentence [SEP].
        units: int (tokens,). As `number_units`; 0 = never hidden.
        answers: int (tokens,). What is always predicted there; 0 = nothing.
        replacements: int (count,). Ids that may stand instead of a token.
        mask_id: int.
        share: float. Of the units, how many are chosen; at least one a row.
        num_copies: int.
        seed: int.
    """

    rows: PackedRows
    units: np.ndarray
    answers: np.ndarray
    replacements: np.ndarray
    mask_id: int
    share: float = 0.15
    num_copies: int = 1
    seed: int = 0
    # Of what `assemble` returns, before targets and weights.
    input_names = PackedRows.input_names

    def __len__(self):
        return len(self.rows) * self.num_copies

    @property
    def row_length(self):
        """Int, positions."""
        return self.rows.row_length

    @property
    def used_fraction(self):
        """Float. Share of the positions that hold a token."""
        return self.rows.used_fraction

    def assemble(self, rows):
        """Returns arrays as `PackedRows.assemble` does.

        Targets are the tokens that stood at the chosen places, which alone
        have weight.
        """
        numbers = np.asarray(rows) % len(self.rows)
        token_ids, positions, segment_ids, _, _ = self.rows.assemble(numbers)
        units, answers = (
            dataclasses.replace(self.rows, token_ids=values).assemble(numbers)[
                0
            ]
            for values in (self.units, self.answers)
        )
        targets = np.where(answers > 0, answers, token_ids)
        is_target = answers > 0
        hidden = token_ids.copy()
        for index, row in enumerate(rows):
            rng = np.random.default_rng((self.seed, int(row)))
            is_target[index] |= self._hide(
                rng, hidden[index], units[index], segment_ids[index]
            )
        return (
            hidden,
            positions,
            segment_ids,
            np.where(is_target, targets, 0).astype(np.int32),
            is_target.astype(np.float32),
        )

    def _hide(self, rng, token_ids, units, segment_ids):
        """Changes a row in place; returns where it asks for what was there."""
        keys = units + segment_ids.astype(np.int64) * (units.max() + 1)
        names = np.unique(keys[units > 0])
        count = min(len(names), max(1, round(self.share * len(names))))
        chosen = rng.choice(names, count, replace=False)
        fate = rng.random(count)
        is_chosen = np.isin(keys, chosen) & (units > 0)
        is_hidden = np.isin(keys, chosen[fate < HIDDEN_SHARE]) & is_chosen
        is_changed = is_chosen & np.isin(
            keys,
            chosen[
                (fate >= HIDDEN_SHARE) & (fate < HIDDEN_SHARE + CHANGED_SHARE)
            ],
        )
        token_ids[is_hidden] = self.mask_id
        token_ids[is_changed] = rng.choice(self.replacements, is_changed.sum())
        return is_chosen


def mask_texts(
    texts,
    tokenizer,
    config,
    *,
    next_sentence=False,
    share=0.15,
    num_copies=1,
    seed=0,
):
    """Returns the MaskedRows of texts.

    Args:
        texts: list of str.
        tokenizer: Tokenizer.
        config: EncoderConfig, whose context_length rows get.
        next_sentence: bool. Cut texts in two after a sentence, give half of
            them another text's second part, and ask which.
        share, num_copies, seed: see `MaskedRows`.

    Texts longer than a row are cut.
    """
    rng = np.random.default_rng(seed)
    if next_sentence:
        texts = [text for text in texts if len(_sentences(text)) > 1]
    seconds, labels = [""] * len(texts), [0] * len(texts)
    if next_sentence:
        texts, seconds = map(list, zip(*map(_halves, texts), strict=True))
        is_other = rng.random(len(texts)) < 0.5
        others = rng.integers(0, len(texts), len(texts))
        labels = [
            config.mark_id("[OTHER]" if other else "[NEXT]")
            for other in is_other
        ]
        seconds = [
            seconds[others[index]] if other else seconds[index]
            for index, other in enumerate(is_other)
        ]
    parts = [tokenizer.encode_batch(half) for half in (texts, seconds)]
    token_bytes = np.array(tokenizer.token_bytes)
    begin, end = config.mark_id("[CLS]"), config.mark_id("[SEP]")
    all_ids, all_units, all_answers = [], [], []
    for text, second, label, first_ids, second_ids in zip(
        texts, seconds, labels, *parts, strict=True
    ):
        room = config.context_length - 2
        ids, units = _limited(text, first_ids, token_bytes)
        if next_sentence:
            room = (config.context_length - 3) // 2
            more_ids, more_units = _limited(second, second_ids, token_bytes)
            pieces = [
                [
                    (ids[:room], units[:room]),
                    (more_ids[:room], more_units[:room] + units.max() + 1),
                ]
            ]
        else:
            pieces = [
                [(ids[first : first + room], units[first : first + room])]
                for first in range(0, len(ids), room)
            ]
        for piece in pieces:
            # The last of each is a token that packing predicts and drops.
            all_ids.append(
                np.concatenate(
                    [[begin], *(x for i, _ in piece for x in (i, [end])), [0]]
                )
            )
            all_units.append(
                np.concatenate(
                    [[0], *(x for _, u in piece for x in (u, [0])), [0]]
                )
            )
            answers = np.zeros(len(all_ids[-1]), np.int64)
            answers[0] = label
            all_answers.append(answers)
    token_ids = np.concatenate(all_ids).astype(np.int64)
    return MaskedRows(
        rows=pack(
            token_ids,
            np.ones(len(token_ids), np.uint8),
            np.cumsum([0, *map(len, all_ids)]),
            row_length=config.context_length,
        ),
        units=np.concatenate(all_units).astype(np.int64),
        answers=np.concatenate(all_answers),
        replacements=np.flatnonzero(token_bytes),
        mask_id=config.mark_id("[MASK]"),
        share=share,
        num_copies=num_copies,
        seed=seed,
    )


def _limited(text, token_ids, token_bytes):
    token_ids = np.asarray(token_ids, np.int64)
    return token_ids, number_units(text, token_bytes[token_ids])


def _sentences(text):
    return [part for part in SENTENCE_END.split(text) if part]


def _halves(text):
    """Returns what stands before and after the middle end of a sentence."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    cut = min(
        (end for end in ends if 0 < end < len(text)),
        key=lambda end: abs(end - len(text) / 2),
    )
    return text[:cut], text[cut:]
