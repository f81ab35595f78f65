"""Owns text -> hashes of its words and characters, and of runs of these.

Not: what is found with them (deduplication.py, contamination.py).
"""

import dataclasses
import functools
import hashlib
import unicodedata

import numpy as np

from kerasgpt.data.languages import SCRIPTS

# Units: a word, or one character of a script that writes no spaces, or a
# symbol. Between them stand separators.
SEPARATOR, WORD, CHARACTER = 0, 1, 2
UNSPACED_SCRIPTS = ("han", "ja", "th", "my", "km")
# Punctuation of sentences: the same text is printed with it and without. Other
# marks tell 3+4 from 3-4 and C# from C.
PUNCTUATION = frozenset(".,;:!?\"'·…。，、；：！？＂＇—–~～")
# Letters beyond the first two planes are rare Han characters.
NUM_TABLED = 0x20000
NUM_CODE_POINTS = 0x110000
# Texts hashed at once, together or a piece of one: arrays of 8 bytes a
# character then stay in the cache (2**14 and 2**19 are slower by a half).
PIECE_CHARACTERS = 2**16
LONGEST_WORD = 64
# Odd, so that its powers have inverses modulo 2**64; 3 modulo 8, so that they
# repeat as late as they can.
BASE = 0x9E3779B97F4A7C13
SHIFT = np.uint64(32)


@dataclasses.dataclass(frozen=True)
class Units:
    """The words and characters of some texts, in order.

    Attributes:
        values: uint64 (num_units,), a hash of each.
        kinds: uint8 (num_units,), WORD or CHARACTER.
        splits: int64 (num_texts + 1,). Text i has the units from splits[i]
            to splits[i + 1].
    """

    values: np.ndarray
    kinds: np.ndarray
    splits: np.ndarray


def read_units(texts):
    """Yields (numbers, Units) of texts, some texts or a piece of one at once.

    What is the same to a reader is the same here: upper and lower case, forms
    of full and half width, white space, and the punctuation of sentences.
    Memory is that of PIECE_CHARACTERS; a longer text comes in pieces.

    Args:
        texts: iterable of str.

    Yields:
        int64 array, the number of the text that each of `units` is (a piece)
        of, and Units.

    Example:
        >>> texts = ["Hello, ＷＯＲＬＤ!", "hello world"]
        >>> [(numbers, units)] = read_units(texts)
        >>> units.splits, units.kinds
        (array([0, 2, 4]), array([1, 1, 1, 1], dtype=uint8))
        >>> bool((units.values[:2] == units.values[2:]).all())
        True
        >>> [(numbers, units)] = read_units(["用GPT。"])
        >>> units.kinds
        array([2, 1], dtype=uint8)
    """
    numbers, pieces, total = [], [], 0
    for number, text in enumerate(texts):
        for piece in _pieces(text):
            if pieces and total + len(piece) > PIECE_CHARACTERS:
                yield np.array(numbers), _units_of(pieces)
                numbers, pieces, total = [], [], 0
            numbers.append(number)
            pieces.append(piece)
            total += len(piece) + 1
    if pieces:
        yield np.array(numbers), _units_of(pieces)


def hash_shingles(units, *, word_length, character_length):
    """Returns (rows, hashes) of the shingles of texts.

    A shingle is a run of units within one text: `word_length` if it begins
    with a word, `character_length` if with a character. A text too short for
    one is one shingle.

    Args:
        units: Units.
        word_length, character_length: int, units.

    Returns:
        int64 (num_shingles,), whose text each is, and uint64 (num_shingles,).

    Example:
        >>> [(_, units)] = read_units(["a b c d", "b c d", "我们"])
        >>> rows, hashes = hash_shingles(units, word_length=3,
        ...                              character_length=4)
        >>> rows, bool(hashes[1] == hashes[2])
        (array([0, 0, 1, 2]), True)
    """
    counts = np.diff(units.splits)
    rows = np.repeat(np.arange(len(counts)), counts)
    starts = np.arange(len(units.values))
    ends = starts + np.where(units.kinds == WORD, word_length, character_length)
    fits = ends <= units.splits[1:][rows]
    rows, starts, ends = rows[fits], starts[fits], ends[fits]
    short = (np.bincount(rows, minlength=len(counts)) == 0) & (counts > 0)
    if short.any():
        rows = np.concatenate([rows, np.flatnonzero(short)])
        starts = np.concatenate([starts, units.splits[:-1][short]])
        ends = np.concatenate([ends, units.splits[1:][short]])
    return rows, hash_runs(units.values, starts, ends)


def hash_runs(values, starts, ends):
    """Returns a hash of values[start:end] for each pair, whatever its length.

    Equal runs have equal hashes wherever they stand: the sum of value times
    BASE ** position, from a cumulative sum, divided by BASE ** start.

    Args:
        values: uint64 (num_values,).
        starts, ends: int (num_runs,).

    Returns:
        uint64 (num_runs,).

    Example:
        >>> values = np.array([5, 6, 7, 5, 6], "uint64")
        >>> first, second, third = hash_runs(values, [0, 3, 1], [2, 5, 3])
        >>> bool(first == second), bool(first == third)
        (True, False)
    """
    powers, inverses = _powers(1 << max(len(values), 1).bit_length())
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * powers[: len(values)], out=sums[1:])
    return mix((sums[ends] - sums[starts]) * inverses[starts])


def mix(values):
    """Returns uint64 whose every bit depends on every bit of `values`.

    Reference: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
    generators", figure 15 (constants of Stafford's variant 13).
    """
    values = np.asarray(values, np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(
        0xBF58476D1CE4E5B9
    )
    values = (values ^ (values >> np.uint64(27))) * np.uint64(
        0x94D049BB133111EB
    )
    return values ^ (values >> np.uint64(31))


def text_hash(text, *, size_bytes):
    """Returns the BLAKE2b of a text as bytes; half characters count too."""
    return hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=size_bytes
    ).digest()


def _pieces(text):
    """Yields a text in pieces that cut no word."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        end = cut = start + PIECE_CHARACTERS
        # Between two characters of Chinese any place will do.
        while (
            text[cut - 1].isalnum()
            and text[cut].isalnum()
            and end - cut < LONGEST_WORD
        ):
            cut -= 1
        end = end if end - cut == LONGEST_WORD else cut
        yield text[start:end]
        start = end
    yield text[start:]


def _units_of(pieces):
    # Code point 0 ends a piece, so it may not stand within one.
    joined = "".join([f"{piece.replace(chr(0), ' ')}\0" for piece in pieces])
    if not unicodedata.is_normalized("NFC", joined):
        joined = unicodedata.normalize("NFC", joined)
    if joined.isascii():
        points = np.frombuffer(joined.encode(), np.uint8)
    else:
        encoded = joined.encode("utf-32-le", "surrogatepass")
        points = np.frombuffer(encoded, np.uint32)
    all_values, all_kinds = _tables()
    kinds = all_kinds[points]
    is_word, is_character = kinds == WORD, kinds == CHARACTER
    # A piece's last character is its end, which is no word.
    starts = is_character | is_word
    starts[1:] &= ~(is_word[1:] & is_word[:-1])
    ends = is_character | is_word
    ends[:-1] &= ~(is_word[1:] & is_word[:-1])
    starts, ends = np.flatnonzero(starts), np.flatnonzero(ends) + 1
    splits = np.searchsorted(starts, np.flatnonzero(points == 0))
    return Units(
        hash_runs(all_values[points], starts, ends),
        kinds[starts],
        np.concatenate([[0], splits]),
    )


@functools.lru_cache(maxsize=8)
def _powers(count):
    """Returns BASE ** i and its inverse modulo 2**64, for i below `count`."""
    inverse = pow(BASE, -1, 2**64)
    tables = []
    for base in (BASE, inverse):
        table = np.full(count, base, np.uint64)
        table[0] = 1
        tables.append(np.multiply.accumulate(table))
    return tables


@functools.cache
def _tables():
    """Returns the hash and the kind of every code point."""
    folded = np.arange(NUM_CODE_POINTS, dtype=np.uint64)
    kinds = np.full(NUM_CODE_POINTS, CHARACTER, np.uint8)
    for point in range(NUM_TABLED):
        character = chr(point)
        plain = unicodedata.normalize("NFKC", character).casefold()
        # A ligature that stands for several letters stays one.
        if len(plain) == 1:
            folded[point], character = ord(plain), plain
        category = unicodedata.category(character)
        if (
            category[0] in "ZC"
            or category in ("Ps", "Pe", "Pi", "Pf")
            or character in PUNCTUATION
        ):
            kinds[point] = SEPARATOR
        elif category[0] in "LNM":
            kinds[point] = WORD
    for script in UNSPACED_SCRIPTS:
        blocks = SCRIPTS[script]
        for first, last in zip(blocks[::2], blocks[1::2], strict=True):
            block = slice(ord(first), ord(last) + 1)
            kinds[block][kinds[block] == WORD] = CHARACTER
    return mix(folded + np.uint64(1)), kinds
