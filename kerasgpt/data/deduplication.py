"""Owns which documents say what another one has said: exactly, or nearly.

Not: reading them, or what becomes of them.

    exact, near = ExactDuplicates(), NearDuplicates(config)
    for texts in batches:                  # the same, in the same order
        exact.add(texts)
        near.add(texts)
    near.firsts()                          # firsts[i] == i: i is kept

Hashes and signatures of a text depend on nothing but the text, so that other
processes can make them (`hash_texts`, `sign_texts`) and files can keep them.
"""

import dataclasses
import functools
import hashlib

import numpy as np

from kerasgpt.config import Config, setting
from kerasgpt.data.shingles import hash_shingles, mix, read_units, text_hash

# A signature's value where no shingle fell.
EMPTY = 0
# A pair at the threshold becomes a candidate at least this often.
MIN_RECALL = 0.99
# Bins of a signature for each value that candidates are found with: they cost
# memory but hardly time, and halve the error of `estimate_jaccard`.
BINS_PER_PERMUTATION = 4
# A document is compared with so many after it in a bucket: with all of a small
# one, and in one of boilerplate the work still grows with the documents only.
NUM_NEIGHBOURS = 32
# Signatures worked on at once, so that they stay in the cache.
ROWS_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class NearDuplicateConfig(Config):
    """When two documents are nearly the same."""

    threshold: float = setting(
        0.8,
        "of the shingles of two near-duplicates, the share they have in common",
        minimum=0.3,
        maximum=1.0,
    )
    num_permutations: int = setting(
        128,
        "values that candidates are found with, 4 bytes of a signature each",
        minimum=16,
        maximum=4096,
    )
    word_shingle_length: int = setting(
        5, "of text with spaces", unit="words", minimum=1
    )
    character_shingle_length: int = setting(
        5, "of Chinese and the like", unit="characters", minimum=1
    )
    seed: int = setting(0, "of the hash functions", minimum=0)

    @property
    def num_bins(self):
        """Int. Bytes of a signature."""
        return BINS_PER_PERMUTATION * self.num_permutations

    @property
    def band_rows(self):
        """Values of a band: as many as leave MIN_RECALL at the threshold.

        Two documents are candidates if they agree in a whole band: of b bands
        of r values in one or more with probability 1 - (1 - J ** r) ** b.

        Example:
            >>> NearDuplicateConfig().band_rows
            6
        """
        for rows in range(self.num_permutations, 1, -1):
            bands = self.num_permutations // rows
            if 1 - (1 - self.threshold**rows) ** bands >= MIN_RECALL:
                return rows
        return 1


def hash_texts(texts):
    """Returns the hashes that texts share with their exact duplicates.

    Exact is: the same words, Chinese characters and symbols in the same
    order. Case, full or half width, white space and the punctuation of
    sentences do not count; a text of nothing else is what it is.

    Args:
        texts: list of str.

    Returns:
        uint64 (num_texts, 2).

    Example:
        >>> first, second, third = hash_texts(
        ...     ["你好，世界", "你好 世界！", "你好"]).tolist()
        >>> first == second, first == third
        (True, False)
    """
    hashers = [hashlib.blake2b(digest_size=16) for _ in texts]
    lengths = np.zeros(len(texts), np.int64)
    for numbers, units in read_units(texts):
        data = memoryview(units.values.tobytes())
        splits = (units.splits * units.values.itemsize).tolist()
        for number, start, end in zip(
            numbers.tolist(), splits[:-1], splits[1:], strict=True
        ):
            hashers[number].update(data[start:end])
        np.add.at(lengths, numbers, np.diff(units.splits))
    digests = [
        hasher.digest() if length else text_hash(text, size_bytes=16)
        for hasher, length, text in zip(hashers, lengths, texts, strict=True)
    ]
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)


def sign_texts(texts, config):
    """Returns signatures, alike in as many values as texts have in common.

    One-permutation MinHash: every shingle falls into one of num_bins bins, and
    a bin keeps its least hash, of which 8 bits are stored. So a shingle is
    hashed once, not once a value.

    Stands for datasketch's MinHash, and for rensa's in Rust: measured in
    experiments/benchmarks/deduplication.py, both slower, for they take a list
    of Python strings, which alone takes longer to make than all of this.

    Args:
        texts: list of str.
        config: NearDuplicateConfig.

    Returns:
        uint8 (num_texts, num_bins), 0 where a bin is empty.

    Example:
        >>> config = NearDuplicateConfig(num_permutations=16)
        >>> signatures = sign_texts(["One two three.", "ONE, two: three"],
        ...                         config)
        >>> bool((signatures[0] == signatures[1]).all())
        True
        >>> (signatures[0] > 0).sum()           # one shingle
        np.int64(1)

    Reference: Li, Owen & Zhang 2012, "One permutation hashing"; Li & König
    2010, "b-bit minwise hashing".
    """
    least = np.full((len(texts), config.num_bins), 2**32 - 1, np.uint32)
    is_empty = np.ones(len(texts), bool)
    for numbers, units in read_units(texts):
        rows, hashes = hash_shingles(
            units,
            word_length=config.word_shingle_length,
            character_length=config.character_shingle_length,
        )
        _keep_least(least, numbers[rows], hashes, config)
        is_empty[numbers[rows]] = False
    # A text without a word has one shingle: itself.
    rows = np.flatnonzero(is_empty)
    if len(rows):
        hashes = [text_hash(texts[row], size_bytes=8) for row in rows]
        _keep_least(
            least, rows, np.frombuffer(b"".join(hashes), np.uint64), config
        )
    values = np.maximum(least.astype(np.uint8), 1)
    values[least == 2**32 - 1] = EMPTY
    return values


def estimate_jaccard(left, right):
    """Returns which share of their shingles texts have in common, by guess.

    Args:
        left, right: uint8 (num_pairs, num_bins), signatures.

    Returns:
        float (num_pairs,): equal values over bins that are not empty in both.

    Example:
        >>> left = np.array([[7, 8, 0, 9]], np.uint8)
        >>> right = np.array([[7, 5, 0, 0]], np.uint8)
        >>> estimate_jaccard(left, right)
        array([0.33333333])

    Reference: Li, Owen & Zhang 2012, equation 4.
    """
    used = np.count_nonzero(left | right, axis=1)
    equal = np.count_nonzero((left == right) & (left != EMPTY), axis=1)
    return equal / used


class ExactDuplicates:
    """Finds documents that are exactly the same, within and across inputs.

    Memory is 16 bytes a document, and as much again while `firsts` works.

    Example:
        >>> duplicates = ExactDuplicates()
        >>> duplicates.add(["A b.", "c"])
        >>> duplicates.add(["a B", "d"])
        >>> duplicates.firsts()
        array([0, 1, 0, 3])
    """

    def __init__(self):
        self._hashes = _Rows(2, np.uint64)

    def __len__(self):
        return len(self._hashes.values)

    def add(self, texts):
        """Adds the next documents."""
        self.add_hashes(hash_texts(texts))

    def add_hashes(self, hashes):
        """Adds the next documents, as `hash_texts` made them elsewhere."""
        self._hashes.append(hashes)

    def places(self):
        """Returns a number in [0, 1) of each document: float (n,).

        By its hash, so that what is the same to a reader has the same place,
        in whatever company.
        """
        # 53 bits: more would be rounded, and up to 1.
        return (self._hashes.values[:, 0] >> np.uint64(11)) * 2.0**-53

    def firsts(self):
        """Returns of each document the first that is the same: int64 (n,).

        Itself, if it is to be kept.
        """
        hashes = self._hashes.values
        # Stable, so that of equal ones the first comes first.
        order = np.lexsort((hashes[:, 1], hashes[:, 0]))
        ordered = hashes[order]
        is_new = np.ones(len(order), bool)
        is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        firsts = np.empty(len(order), np.int64)
        firsts[order] = order[is_new][np.cumsum(is_new) - 1]
        return firsts


class NearDuplicates:
    """Finds documents that are nearly the same, within and across inputs.

    Candidates agree in a band of their signatures; a candidate pair is one if
    `estimate_jaccard` is at least the threshold. What is linked by pairs is
    one cluster, of which the first document is kept.

    Memory is num_bins bytes a document, and while `firsts` works
    4 a band and 40 more; texts are not kept. Exact duplicates are found too.

    The answer depends on the texts and their order only, not on how they are
    cut into batches. In another order the clusters are the same, unless more
    than NUM_NEIGHBOURS documents share a band.

    Args:
        config: NearDuplicateConfig.

    Example:
        >>> words = [str(number) for number in range(200)]
        >>> duplicates = NearDuplicates(NearDuplicateConfig())
        >>> duplicates.add([" ".join(words), "something else"])
        >>> duplicates.add([" ".join(words[:-3])])
        >>> duplicates.firsts()
        array([0, 1, 0])

    Reference: Broder 1997, "On the resemblance and containment of documents";
    thresholds as in Lee et al. 2022, "Deduplicating training data makes
    language models better", section 4.2.
    """

    def __init__(self, config):
        self.config = config
        self._signatures = _Rows(config.num_bins, np.uint8)

    def __len__(self):
        return len(self._signatures.values)

    def add(self, texts):
        """Adds the next documents."""
        self.add_signatures(sign_texts(texts, self.config))

    def add_signatures(self, signatures):
        """Adds the next documents, as `sign_texts` made them elsewhere."""
        self._signatures.append(signatures)

    def firsts(self):
        """Returns of each document the first of its cluster: int64 (n,).

        Itself, if it is to be kept.
        """
        signatures = self._signatures.values
        parents = np.arange(len(signatures))
        for keys in _band_keys(signatures, self.config):
            parents = _roots(parents, parents)
            for left, right in _neighbours(keys):
                is_open = parents[left] != parents[right]
                left, right = left[is_open], right[is_open]
                is_near = _are_near(
                    signatures, left, right, self.config.threshold
                )
                _unite(parents, left[is_near], right[is_near])
        return _roots(parents, parents)


class _Rows:
    """An array that rows are appended to."""

    def __init__(self, width, dtype):
        self._array = np.empty((1024, width), dtype)
        self._length = 0

    @property
    def values(self):
        return self._array[: self._length]

    def append(self, rows):
        length = self._length + len(rows)
        if length > len(self._array):
            shape = (max(length, 2 * len(self._array)), self._array.shape[1])
            # In place where the system can: a large one is not copied.
            self._array.resize(shape, refcheck=False)
        self._array[self._length : length] = rows
        self._length = length


def _keep_least(least, rows, hashes, config):
    """Puts hashes into the bins of their rows."""
    hashes = mix(hashes ^ mix(np.array([config.seed])))
    bins = (hashes >> np.uint64(32)) * np.uint64(config.num_bins)
    places = rows * config.num_bins + (bins >> np.uint64(32)).astype(np.int64)
    np.minimum.at(least.reshape(-1), places, hashes.astype(np.uint32))


def _band_keys(signatures, config):
    """Yields the uint32 (num_texts,) keys of each band."""
    columns, multipliers = _bands(config)
    keys = np.empty((len(columns), len(signatures)), np.uint32)
    for start in range(0, len(signatures), ROWS_AT_ONCE):
        dense = _fill(signatures[start : start + ROWS_AT_ONCE])
        sums = np.zeros((len(columns), len(dense)), np.uint64)
        for column, multiplier in zip(columns.T, multipliers, strict=True):
            sums += dense.T[column] * multiplier
        keys[:, start : start + ROWS_AT_ONCE] = mix(sums) >> np.uint64(32)
    yield from keys


@functools.lru_cache(maxsize=8)
def _bands(config):
    """Returns the columns of each band, and a factor for each of its rows.

    Columns at random: neighbours may hold the same value (`_fill`).
    """
    rng = np.random.default_rng(config.seed)
    rows = config.band_rows
    num_bands = config.num_permutations // rows
    columns = rng.permutation(config.num_bins)[: num_bands * rows]
    multipliers = rng.integers(2**63, size=rows, dtype=np.uint64)
    return columns.reshape(num_bands, rows), multipliers | np.uint64(1)


def _fill(signatures):
    """Returns signatures whose empty bins have the value of the one before.

    So that short texts, most of whose bins are empty, agree in no band for
    that. Reference: Shrivastava & Li 2014, "Densifying one permutation
    hashing via rotation for fast near neighbor search".
    """
    bins = np.arange(signatures.shape[1], dtype=np.int16)
    lenders = np.where(signatures == EMPTY, np.int16(-1), bins)
    last = lenders.max(axis=1, keepdims=True)
    lenders = np.maximum.accumulate(lenders, axis=1)
    # The last bin stands before the first.
    lenders = np.where(lenders < 0, last, lenders)
    return np.take_along_axis(signatures, lenders, axis=1)


def _neighbours(keys):
    """Yields (left, right) numbers of documents near each other in a bucket.

    A bucket is what has one key; left < right.
    """
    ordered = keys.astype(np.uint64) << np.uint64(32)
    ordered |= np.arange(len(keys), dtype=np.uint64)
    ordered.sort()
    keys, numbers = ordered >> np.uint64(32), ordered.astype(np.uint32)
    places = np.arange(len(keys))
    for distance in range(1, NUM_NEIGHBOURS + 1):
        places = places[: np.searchsorted(places, len(keys) - distance)]
        places = places[keys[places] == keys[places + distance]]
        if not len(places):
            return
        yield (
            numbers[places].astype(np.int64),
            numbers[places + distance].astype(np.int64),
        )


def _are_near(signatures, left, right, threshold):
    """Returns bool (num_pairs,)."""
    is_near = np.zeros(len(left), bool)
    for start in range(0, len(left), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        is_near[rows] = (
            estimate_jaccard(signatures[left[rows]], signatures[right[rows]])
            >= threshold
        )
    return is_near


def _unite(parents, left, right):
    """Joins the clusters of pairs; a cluster's root is its first document."""
    while len(left):
        left, right = _roots(parents, left), _roots(parents, right)
        is_open = left != right
        left, right = left[is_open], right[is_open]
        # Of several new parents the least; the other pairs stay open.
        np.minimum.at(parents, np.maximum(left, right), np.minimum(left, right))


def _roots(parents, numbers):
    roots = parents[numbers]
    while (parents[roots] != roots).any():
        roots = parents[roots]
    return roots
