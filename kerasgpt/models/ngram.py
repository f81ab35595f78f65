"""Owns the model of counted n-grams. Not: judging it (likelihood.py).

The floor that every network must beat. Grams are nodes of a trie: a level a
length, and on each level sorted arrays, so that a whole text is counted, and
scored, by numpy.
"""

from typing import NamedTuple

import numpy as np

# Tokens that are counted at a time, before their counts join the others.
CHUNK_TOKENS = 1 << 20
# Where too few counts are seen to estimate a discount: KenLM's
# `--discount_fallback`.
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
# "kneser_ney" has a discount for each of the counts 1, 2 and 3 or more.
SMOOTHINGS = ("mle", "add_k", "kneser_ney")
LONGEST = 5


class _Level(NamedTuple):
    """The grams of one length.

    Attributes:
        keys: int64 (grams,), ascending. Node of the gram without its last
            token times the vocabulary size, plus that token.
        counts: int64 (grams,). How often each was read.
    """

    keys: np.ndarray
    counts: np.ndarray


class _Table(NamedTuple):
    """What probabilities are worked out from, of one length.

    Attributes:
        counts: int64 (grams,). As discounts see them.
        totals: int64 (nodes,). Their sum over what follows a context.
        kinds: int64 (3, nodes). How many grams with a count of 1, 2 and more
            follow it.
        discounts: float64 (4,). Of a count of 0, 1, 2 and more.
    """

    counts: np.ndarray
    totals: np.ndarray
    kinds: np.ndarray
    discounts: np.ndarray


class NGramModel:
    """Predicts a token from the up to `order` - 1 tokens before it.

    - "mle": share of the counts, c(h w) / c(h): nothing for what was not seen.
    - "add_k": (c(h w) + k) / (c(h) + k V).
    - "kneser_ney", interpolated: (c - D(c)) / sum(c) plus the mass that the
      discounts D took times the probability one token shorter, and last 1 / V.
      The longest grams count how often they were read, shorter ones how many
      different tokens stood before them; where none ever did, as at the
      beginning of a text, how often they were read.

    Where a row has fewer tokens than the context, these are the context.

    Hand-written: `nltk.lm.KneserNeyInterpolated`, whose probabilities the
    tests compare with, has one discount for all counts and looks through all
    longer grams for each probability. KenLM's estimator is a program to be
    compiled.

    Args:
        order: int, from 0 to 5. Tokens of a gram; 1 = without context, 0 =
            all tokens alike.
        vocabulary_size: int.
        smoothing: "mle", "add_k" or "kneser_ney".
        k: float. What "add_k" adds to each count.
        discounts: list of float, one a length from 1 on: the same for every
            count. `None` = estimated, for counts of 1, 2 and more apart.

    Raises:
        ValueError: for an argument outside its range.

    Example:
        After "a" came "b" twice and "c" once:

        >>> model = NGramModel(2, vocabulary_size=3, smoothing="mle")
        >>> model.count([np.array([0, 1, 0, 1, 0, 2])])
        >>> model.probabilities([0]).round(3).tolist()
        [0.0, 0.667, 0.333]

    Reference: Chen & Goodman 1998, An empirical study of smoothing techniques
    (TR-10-98), sections 2.7 and 3; Heafield et al. 2013, KenLM (ACL), section
    3, for counts at the beginning.
    """

    def __init__(
        self,
        order,
        *,
        vocabulary_size,
        smoothing="kneser_ney",
        k=1.0,
        discounts=None,
    ):
        if not 0 <= order <= LONGEST:
            raise ValueError(
                f"order must be from 0 to {LONGEST}; received {order}."
            )
        if smoothing not in SMOOTHINGS:
            raise ValueError(
                f"smoothing must be one of {SMOOTHINGS}; received "
                f"{smoothing!r}."
            )
        if not 0 < k < float("inf"):
            raise ValueError(f"k must be above 0; received {k}.")
        if discounts is not None and (
            len(discounts) != order
            or not all(0 <= value <= 1 for value in discounts)
        ):
            raise ValueError(
                f"discounts must be {order} numbers from 0 to 1; received "
                f"{discounts}."
            )
        self.order = order
        self.vocabulary_size = vocabulary_size
        self.smoothing = smoothing
        self.k = k
        self.discounts = discounts
        self._levels = _count([], order, vocabulary_size)
        self._tables = None

    @property
    def num_parameters(self):
        """Int. Counts that are kept: different grams of all lengths."""
        return sum(len(level.keys) for level in self._levels)

    @property
    def training_flops_per_token(self):
        """Float. One addition a length."""
        return float(self.order)

    def count(self, texts):
        """Adds texts, of which no more than a chunk is held at a time.

        Args:
            texts: iterable of int arrays (tokens,). Grams do not reach from
                one text into the next.
        """
        chunk, size = [], 0
        for text in texts:
            chunk.append(np.asarray(text, np.int64))
            size += len(chunk[-1])
            if size >= CHUNK_TOKENS:
                self._add(chunk)
                chunk, size = [], 0
        self._add(chunk)

    def log_probabilities(self, inputs, targets):
        """Returns the natural logarithm of each target's probability.

        Args:
            inputs: dict of token_ids and segment_ids, int (batch, length),
                as the networks take them.
            targets: int (batch, length), the tokens after them.

        Returns:
            float64 (batch, length), -inf for what cannot be.
        """
        token_ids = np.asarray(inputs["token_ids"], np.int64)
        segment_ids = np.asarray(inputs["segment_ids"])
        width = max(self.order - 1, 0)
        contexts = np.full((*token_ids.shape, width), -1, np.int64)
        for back in range(min(width, token_ids.shape[1])):
            length = token_ids.shape[1] - back
            same = segment_ids[:, :length] == segment_ids[:, back:]
            contexts[:, back:, width - 1 - back] = np.where(
                same, token_ids[:, :length], -1
            )
        found = self._probabilities(
            contexts.reshape(token_ids.size, width),
            np.asarray(targets).reshape(-1),
        )
        with np.errstate(divide="ignore"):
            return np.log(found).reshape(token_ids.shape)

    def probabilities(self, token_ids):
        """Returns float64 (vocabulary_size,): of the token after a list."""
        width = max(self.order - 1, 0)
        context = np.full(width, -1, np.int64)
        last = np.asarray(token_ids, np.int64)[-width:] if width else []
        context[width - len(last) :] = last
        return self._probabilities(
            np.tile(context, (self.vocabulary_size, 1)),
            np.arange(self.vocabulary_size),
        )

    def sample(
        self, token_ids, *, max_new_tokens, temperature=1.0, stop=None, seed=0
    ):
        """Returns a list of ids that continue a list.

        Args:
            token_ids: list of int.
            max_new_tokens: int.
            temperature: float. 0 = always the likeliest token.
            stop: int. The id that ends the text, and is left out.
            seed: int.

        Raises:
            ValueError: where nothing can follow ("mle").
        """
        rng = np.random.default_rng(seed)
        text, begin = list(token_ids), len(token_ids)
        while len(text) < begin + max_new_tokens:
            found = self.probabilities(text)
            if not found.sum():
                raise ValueError(f"nothing was ever read after {text[-4:]}.")
            if temperature:
                found = (found / found.max()) ** (1 / temperature)
                chosen = int(rng.choice(len(found), p=found / found.sum()))
            else:
                chosen = int(found.argmax())
            if chosen == stop:
                break
            text.append(chosen)
        return text[begin:]

    def _add(self, chunk):
        counted = _count(chunk, self.order, self.vocabulary_size)
        self._levels = _merge(self._levels, counted, self.vocabulary_size)
        self._tables = None

    def _probabilities(self, contexts, targets):
        """Returns (rows,) of contexts (rows, order - 1), -1 = no token."""
        if self._tables is None:
            self._tables = self._build_tables()
        size = self.vocabulary_size
        found = np.full(len(targets), 1 / size)
        width = contexts.shape[1]
        for length, (level, table) in enumerate(
            zip(self._levels, self._tables, strict=True)
        ):
            nodes = np.zeros(len(targets), np.int64)
            for back in range(length, 0, -1):
                tokens = contexts[:, width - back]
                nodes = _find(self._levels[length - back], nodes, tokens, size)
            grams = _find(level, nodes, targets, size)
            counts = np.where(grams >= 0, _at(table.counts, grams), 0)
            totals = np.where(nodes >= 0, _at(table.totals, nodes), 0)
            if self.smoothing == "kneser_ney":
                kinds = np.where(nodes >= 0, _at(table.kinds, nodes), 0).astype(
                    np.float64
                )
                taken = table.discounts[1:] @ kinds
                kept = counts - table.discounts[np.minimum(counts, 3)]
                found = np.where(
                    totals > 0,
                    (kept + taken * found) / np.maximum(totals, 1),
                    found,
                )
                continue
            added = self.k if self.smoothing == "add_k" else 0.0
            whole = totals + added * size
            shares = np.where(
                whole > 0, (counts + added) / np.maximum(whole, 1e-300), 0.0
            )
            # A row keeps the last that it has a context for.
            is_whole = contexts[:, width - length] >= 0 if length else np.True_
            found = np.where(is_whole, shares, found)
        return found

    def _build_tables(self):
        tables = []
        for length, level in enumerate(self._levels, start=1):
            parents = level.keys // self.vocabulary_size
            num_nodes = len(self._levels[length - 2].keys) if length > 1 else 1
            counts = level.counts
            if self.smoothing == "kneser_ney" and length < self.order:
                before = self._count_tokens_before(length)
                counts = np.where(before > 0, before, counts)
            totals = np.bincount(parents, counts, num_nodes).astype(np.int64)
            kinds = np.stack(
                [
                    np.bincount(parents[is_kind], minlength=num_nodes)
                    for is_kind in (counts == 1, counts == 2, counts > 2)
                ]
            )
            if self.discounts is None:
                discounts = _estimate_discounts(counts)
            else:
                discounts = [0.0] + 3 * [self.discounts[length - 1]]
            tables.append(_Table(counts, totals, kinds, np.array(discounts)))
        return tables

    def _count_tokens_before(self, length):
        """Returns how many different tokens stood before each gram."""
        size = self.vocabulary_size
        # Of each gram, the node of all but its first token.
        rests = np.zeros(len(self._levels[0].keys), np.int64)
        for shorter, level in zip(
            self._levels[:length], self._levels[1 : length + 1], strict=True
        ):
            rests = _find(
                shorter, rests[level.keys // size], level.keys % size, size
            )
        return np.bincount(rests, minlength=len(self._levels[length - 1].keys))


def _count(texts, order, vocabulary_size):
    """Returns a list of _Level, one a length."""
    tokens = np.concatenate([np.zeros(0, np.int64), *texts])
    places = np.concatenate(
        [np.zeros(0, np.int64), *(np.arange(len(text)) for text in texts)]
    )
    levels, nodes = [], np.zeros(len(tokens), np.int64)
    for length in range(1, order + 1):
        # The gram without its last token ends one token earlier.
        parents = np.roll(nodes, 1) if length > 1 else nodes
        is_whole = places >= length - 1
        keys, found, counts = np.unique(
            parents[is_whole] * vocabulary_size + tokens[is_whole],
            return_inverse=True,
            return_counts=True,
        )
        nodes = np.full(len(tokens), -1, np.int64)
        nodes[is_whole] = found
        levels.append(_Level(keys, counts))
    return levels


def _merge(some, others, vocabulary_size):
    """Returns the levels of both: nodes are numbered anew, level by level."""
    merged, nodes = [], (np.zeros(1, np.int64), np.zeros(1, np.int64))
    for levels in zip(some, others, strict=True):
        keys = np.concatenate(
            [
                of_level[level.keys // vocabulary_size] * vocabulary_size
                + level.keys % vocabulary_size
                for of_level, level in zip(nodes, levels, strict=True)
            ]
        )
        counts = np.concatenate([level.counts for level in levels])
        keys, found = np.unique(keys, return_inverse=True)
        sums = np.bincount(found, counts, len(keys)).astype(np.int64)
        merged.append(_Level(keys, sums))
        nodes = np.split(found, [len(levels[0].keys)])
    return merged


def _find(level, nodes, tokens, vocabulary_size):
    """Returns the nodes of grams one token longer, -1 for those not there."""
    keys = np.where(
        (nodes >= 0) & (tokens >= 0), nodes * vocabulary_size + tokens, -1
    )
    if not len(level.keys):
        return np.full(keys.shape, -1, np.int64)
    places = np.minimum(np.searchsorted(level.keys, keys), len(level.keys) - 1)
    return np.where(level.keys[places] == keys, places, -1)


def _at(values, nodes):
    """Returns the values of nodes; those of no node are not meant."""
    if not values.shape[-1]:
        return np.zeros((*values.shape[:-1], len(nodes)), values.dtype)
    return values[..., np.maximum(nodes, 0)]


def _estimate_discounts(counts):
    """Returns [0, D1, D2, D3+], from how many counts are 1, 2, 3 and 4.

    Reference: Chen & Goodman 1998, equation 26.
    """
    ones, twos, threes, fours = (int((counts == c).sum()) for c in range(1, 5))
    if not (ones and twos and threes):
        return [0.0, *FALLBACK_DISCOUNTS]
    share = ones / (ones + 2 * twos)
    estimates = (
        1 - 2 * share * twos / ones,
        2 - 3 * share * threes / twos,
        3 - 4 * share * fours / threes,
    )
    return [
        0.0,
        *(
            estimate if 0 <= estimate <= most else fallback
            for most, (estimate, fallback) in enumerate(
                zip(estimates, FALLBACK_DISCOUNTS, strict=True), start=1
            )
        ),
    ]
