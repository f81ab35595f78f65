"""Owns what a masked LM says of hidden places. Not: choosing them (data)."""

import dataclasses
import math
import re

import numpy as np
import tensorflow as tf
from keras import ops

from kerasgpt.config import InputError
from kerasgpt.data.masking import number_units

MASK = "[MASK]"
# What a mask stands for: a word, Han side by side, a number, or one sign.
WORD = re.compile(r"\s*(\w[\w'’-]*|[^\w\s])\s*")
# Rows a call, and the lengths they are padded to: few shapes are compiled.
BATCH_ROWS, LENGTH_STEP = 64, 32


@dataclasses.dataclass(frozen=True)
class Filling:
    """A text whose masks are filled.

    Attributes:
        text: str.
        score: float. Mean natural logarithm of the probabilities with which
            its tokens were chosen.
    """

    text: str
    score: float


class MaskFiller:
    """Asks a masked LM about texts.

    Args:
        model: MaskedLM.
        tokenizer: Tokenizer.
    """

    def __init__(self, model, tokenizer):
        self.model = model
        self.tokenizer = tokenizer
        self.config = model.config
        self.token_bytes = np.array(tokenizer.token_bytes)
        self._is_text = np.zeros(self.config.vocabulary_size, bool)
        self._is_text[: len(self.token_bytes)] = self.token_bytes > 0
        self._run = tf.function(self._traced, reduce_retracing=True)

    def fill(self, text, *, count=5, most_tokens=6):
        """Returns fillings of the masks in a text, the likeliest first.

        A mask stands for one token, or for several that make one word, as in
        training. Those are filled the surest first; of several masks, the first
        is filled while the others are one token, then the next.

        Args:
            text: str with at least one "[MASK]".
            count: int. At most so many.
            most_tokens: int. A mask is filled by 1 to so many tokens.

        Raises:
            InputError: if there is no mask, or the text does not fit.

        Returns:
            list of Filling.
        """
        parts = text.split(MASK)
        if len(parts) < 2:
            raise InputError(f"the text holds no {MASK}: mark what to fill.")
        rows = [([*self.tokenizer.encode(parts[0])], [])]
        for index, part in enumerate(parts[1:], start=1):
            # What follows, with later masks of one token each.
            rest = list(self.tokenizer.encode(part))
            for later in parts[index + 1 :]:
                rest += [self._mark(MASK), *self.tokenizer.encode(later)]
            rows = [
                (token_ids, scores + more)
                for before, scores in rows[:count]
                for token_ids, more in self._fill_one(
                    before, rest, count, most_tokens
                )
            ]
            rows.sort(key=lambda row: -float(np.mean(row[1])))
            rows = [
                (token_ids + self.tokenizer.encode(part), scores)
                for token_ids, scores in rows
            ]
        found = {}
        for token_ids, scores in rows:
            filled = self.tokenizer.decode(token_ids)
            found.setdefault(filled, Filling(filled, float(np.mean(scores))))
        return list(found.values())[:count]

    def _fill_one(self, before, rest, count, most_tokens):
        """Returns a list of (ids up to the mask's end, their scores)."""
        filled = []
        for length in range(1, most_tokens + 1):
            masks = [self._mark(MASK)] * length
            row = [*before, *masks, *rest]
            if len(row) + 2 > self.config.context_length:
                break
            places = list(range(len(before), len(before) + length))
            if length == 1:
                (scores,) = self._score([row], [places])
                best = np.argsort(-scores[0])[:count]
                filled += [
                    ([*before, int(token)], [float(scores[0, token])])
                    for token in best
                ]
                continue
            chosen_scores = []
            while places:
                (scores,) = self._score([row], [places])
                surest = int(np.argmax(scores.max(axis=-1)))
                token = int(np.argmax(scores[surest]))
                chosen_scores.append(float(scores[surest, token]))
                row[places.pop(surest)] = token
            filled.append((row[: len(before) + length], chosen_scores))
        if not filled:
            raise InputError(
                f"the text fills the context of {self.config.context_length} "
                f"tokens; shorten it."
            )
        # A row of sure tokens would else be likelier than a word that fits.
        return [
            (token_ids, scores)
            for token_ids, scores in filled
            if len(scores) == 1
            or WORD.fullmatch(self.tokenizer.decode(token_ids[len(before) :]))
        ]

    def measure(self, texts):
        """Returns how well each word or character is known from the others.

        Each unit of each text is hidden alone, as a whole. Texts longer than
        the context are cut.

        Args:
            texts: list of str.

        Returns:
            dict of "pseudo_perplexity", float, a token; "fill_in_accuracy",
            float, share of units all of whose tokens are the likeliest; and
            "units", int.

        Reference: Salazar et al. 2020, Masked language model scoring (arXiv
        1910.14659), section 2; Kauf & Ivanova 2023 (arXiv 2305.10588), for
        words that are hidden as a whole.
        """
        rows, places, answers = [], [], []
        for text in texts:
            token_ids = np.array(self.tokenizer.encode(text), np.int64)
            units = number_units(text, self.token_bytes[token_ids])
            token_ids = token_ids[: self.config.context_length - 2]
            for unit in np.unique(units[: len(token_ids)]):
                (here,) = np.nonzero(units[: len(token_ids)] == unit)
                row = token_ids.copy()
                row[here] = self._mark(MASK)
                rows.append(row.tolist())
                places.append(here.tolist())
                answers.append(token_ids[here])
        nats, num_tokens, num_right = 0.0, 0, 0
        for scores, answer in zip(
            self._score(rows, places), answers, strict=True
        ):
            nats -= float(scores[np.arange(len(answer)), answer].sum())
            num_tokens += len(answer)
            num_right += bool((scores.argmax(axis=-1) == answer).all())
        return {
            "pseudo_perplexity": math.exp(nats / max(num_tokens, 1)),
            "fill_in_accuracy": num_right / max(len(rows), 1),
            "units": len(rows),
        }

    def _mark(self, name):
        return self.config.mark_id(name)

    def _score(self, rows, places):
        """Yields float (places, vocabulary_size) of each row: log p of text."""
        for first in range(0, len(rows), BATCH_ROWS):
            batch = rows[first : first + BATCH_ROWS]
            longest = max(map(len, batch)) + 2
            length = min(
                -(-longest // LENGTH_STEP) * LENGTH_STEP,
                self.config.context_length,
            )
            token_ids = np.zeros((len(batch), length), np.int32)
            for index, row in enumerate(batch):
                marked = [self._mark("[CLS]"), *row, self._mark("[SEP]")]
                token_ids[index, : len(marked)] = marked
                token_ids[index, len(marked) :] = -1
            scores = self._run(tf.constant(token_ids)).numpy()
            for row, here in zip(
                scores, places[first : first + BATCH_ROWS], strict=True
            ):
                yield row[[place + 1 for place in here]]

    def _traced(self, token_ids):
        logits = self.model(
            {
                "token_ids": ops.maximum(token_ids, 0),
                "segment_ids": ops.cast(token_ids >= 0, "int32"),
            }
        )
        # Neither marks nor control tokens are text.
        logits = ops.where(self._is_text, logits, -1e30)
        return ops.log_softmax(logits, axis=-1)
