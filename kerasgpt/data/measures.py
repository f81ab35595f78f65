"""Owns what is measured of a text: words, signs, lines, repetitions.

Not: the thresholds (quality.py).
"""

import functools
import itertools
import re

import numpy as np

from kerasgpt.data import languages

# Signs that end a sentence or a line of verse, in both languages.
END_SIGNS = tuple(".!?\"'”’…;:,。！？；：，、”』」）)]】》—")
BULLETS = (*"•●◦▪■◆▸►‣·※○", "- ", "* ", "– ")
ELLIPSES = ("...", "…")
SENTENCE_END = re.compile(r"[.!?](?=\s|[\"')\]”’]|$)|[。！？…]+")
# GB 18030 or UTF-8 read by the other's table, in a way that lost the bytes.
LOST = ("\ufffd", "锟斤拷", "烫烫烫", "屯屯屯")
PLACEHOLDERS = ("lorem ipsum", "此处填写内容", "请在此输入")
ENGLISH_GRAMMAR = frozenset(
    ("the", "be", "to", "of", "and", "that", "have", "with")
)
# As frequent in Chinese as Gopher's eight in English, modern and classical.
CHINESE_GRAMMAR = frozenset("的了是在不有和这這一之也而其以者于於為为")
# What stands for a word without letters where there are no spaces.
SIGNS = re.compile(r"[!-~]+|[^\w\s\u3000-\u303f\uff00-\uffef—…·“”‘’!-~]+")
MARKS = frozenset(",.!?;:'\"()-")
# Characters below which FineWeb calls a line short; five English words, so
# eight to ten Chinese characters.
SHORT_LINE, SHORT_LINE_UNSPACED = 30, 10
# Shares of fewer lines are chance: a row of a table is often one line.
MIN_LINES = 5
# No rule of repetition has a threshold below it by default.
CLEARLY_BELOW = 0.1
# A multiplier that mixes all 64 bits of a rolling hash (Knuth's, made odd).
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Measured:
    """A text, its language and what several rules look at, found once.

    Attributes:
        text: str.
        language: str, as `languages.identify` says.
        is_spaced: bool, whether words stand between spaces.
    """

    def __init__(self, text, language):
        self.text = text
        self.language = language
        self.is_spaced = language not in languages.UNSPACED
        self._counts = {}
        self._shares = {}

    @functools.cached_property
    def words(self):
        """What stands between white space, a list of str."""
        return self.text.split()

    @functools.cached_property
    def num_words(self):
        """Words, of unspaced languages by their number of letters."""
        if self.is_spaced:
            return len(self.words)
        counts = languages.count_scripts(self.text)
        latin = counts.pop("latin", 0)
        return (
            sum(counts.values()) / languages.CHARACTERS_PER_WORD
            + latin / languages.LETTERS_PER_WORD
        )

    @functools.cached_property
    def lines(self):
        """Lines with text, without white space around, a list of str."""
        lines = map(str.strip, self.text.split("\n"))
        return [line for line in lines if line]

    @functools.cached_property
    def units(self):
        """Numbers that are equal where words, or characters, are: uint64."""
        if self.is_spaced:
            # Their values differ from process to process, equality does not.
            hashes = map(hash, self.words)
            numbers = np.fromiter(hashes, np.int64, len(self.words))
            return numbers.view(np.uint64)
        joined = "".join(self.words)
        points = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
        return points.astype(np.uint64)

    @functools.cached_property
    def unit_length(self):
        """How many units stand for one word in the rules of repetition.

        Two characters: Chinese phrases of four come back as often as two words
        do in English.
        """
        return 1 if self.is_spaced else 2

    @functools.cached_property
    def paragraphs(self):
        """What stands between empty lines, a list of str."""
        pieces = map(str.strip, self.text.split("\n\n"))
        return [piece for piece in pieces if piece]

    def top_count(self, words):
        """Returns how often the most frequent run of so many words occurs."""
        if words not in self._counts:
            self._counts[words] = self._count_top(words)
        return self._counts[words]

    def repeated_share(self, words):
        """Returns the share of units in runs that occurred before.

        Or a bound of it, where that is clearly below every threshold.
        """
        if words not in self._shares:
            self._shares[words] = self._share_repeated(words)
        return self._shares[words]

    def _count_top(self, words):
        runs = np.sort(self._runs(words))
        if not len(runs):
            return 0
        starts = np.flatnonzero(runs[1:] != runs[:-1]) + 1
        return int(np.diff(starts, prepend=0, append=len(runs)).max())

    def _share_repeated(self, words):
        runs = self._runs(words)
        length = len(self.units) - len(runs) + 1
        ordered = np.sort(runs)
        num_repeated = np.count_nonzero(ordered[1:] == ordered[:-1])
        # No overlaps: what may be covered at most.
        bound = num_repeated * length / max(1, len(self.units))
        if bound < CLEARLY_BELOW:
            return bound
        is_repeated = np.ones(len(runs), np.int64)
        is_repeated[np.unique(runs, return_index=True)[1]] = 0
        # +1 where a repeated run starts, -1 behind its end.
        edges = np.zeros(len(self.units) + 1, np.int64)
        edges[: len(runs)] += is_repeated
        edges[length : length + len(runs)] -= is_repeated
        return float((np.cumsum(edges[:-1]) > 0).mean())

    def _runs(self, words):
        """Returns a number for each run of so many words, uint64."""
        units = self.units
        length = words * self.unit_length
        if len(units) < length:
            return units[:0]
        runs = units[: len(units) - length + 1] * MULTIPLIER
        for shift in range(1, length):
            runs ^= runs >> np.uint64(29)
            runs += units[shift : len(units) - length + 1 + shift]
            runs *= MULTIPLIER
        return runs


def characters(measured):
    """Returns the number of characters that are no white space."""
    return sum(map(len, measured.words))


def lost_fraction(measured):
    """Returns the share of characters that an earlier program lost."""
    text = measured.text
    if text.isascii():
        return 0.0
    lost = sum(text.count(sign) * len(sign) for sign in LOST)
    return lost / len(text)


def placeholders(measured):
    """Returns how often the text says that a text is missing."""
    lowered = measured.text.lower()
    return sum(lowered.count(words) for words in PLACEHOLDERS)


def curly_brackets(measured):
    """Returns the number of opening and closing braces."""
    return measured.text.count("{") + measured.text.count("}")


def sentences(measured):
    """Returns the number of ends of sentences."""
    return len(SENTENCE_END.findall(measured.text))


def num_words(measured):
    """Returns the number of words; 1.5 Chinese characters are one."""
    return measured.num_words


def word_length(measured):
    """Returns the length of the longest word of ASCII characters."""
    return max(map(len, filter(str.isascii, measured.words)), default=0)


def mean_word_length(measured):
    """Returns characters per word; 5 where words have no spaces or letters.

    A Korean word is three syllables of one character each.
    """
    if not measured.is_spaced or measured.language == "ko":
        return languages.LETTERS_PER_WORD
    return characters(measured) / max(1, len(measured.words))


def symbol_fraction(measured):
    """Returns the number of # or of ellipses per word, the larger.

    A Chinese ellipsis is two characters and counts once.
    """
    text = measured.text
    ellipses = text.count("...") + text.count("…") - text.count("……")
    return max(text.count("#"), ellipses) / max(1, measured.num_words)


def bullet_fraction(measured):
    """Returns the share of lines that start with a bullet."""
    return _line_share(measured, lambda line: line.startswith(BULLETS))


def ellipsis_fraction(measured):
    """Returns the share of lines that end with an ellipsis."""
    return _line_share(measured, lambda line: line.endswith(ELLIPSES))


def alphabetic_fraction(measured):
    """Returns the share of words that hold a letter.

    Without spaces, numbers and signs other than punctuation are the words
    without letters.
    """
    words, total = measured.words, len(measured.words)
    if not measured.is_spaced:
        words = SIGNS.findall(measured.text)
        words = [word for word in words if not MARKS.issuperset(word)]
        total = measured.num_words + len(words)
    others = sum(
        not any(map(str.isalpha, word))
        for word in itertools.filterfalse(str.isalpha, words)
    )
    return 1 - others / max(1, total)


def grammar_words(measured):
    """Returns how many different words of grammar a text has.

    All of them for languages of which we know none.
    """
    if measured.language == "zh":
        return sum(word in measured.text for word in CHINESE_GRAMMAR)
    if measured.language in ("en", "und"):
        words = {word.lower() for word in set(measured.words)}
        return len(ENGLISH_GRAMMAR & words)
    return len(ENGLISH_GRAMMAR)


def ended_fraction(measured):
    """Returns the share of lines that end with punctuation."""
    if len(measured.lines) < MIN_LINES:
        return 1.0
    return _line_share(measured, lambda line: line.endswith(END_SIGNS))


def short_line_fraction(measured):
    """Returns the share of short lines that no punctuation ends."""
    shortest = SHORT_LINE if measured.is_spaced else SHORT_LINE_UNSPACED
    return _line_share(
        measured,
        lambda line: len(line) < shortest and not line.endswith(END_SIGNS),
    )


def duplicate_fraction(pieces):
    """Returns the share of pieces that repeat an earlier one.

    Args:
        pieces: list of str, lines or paragraphs.

    Example:
        >>> duplicate_fraction(["a", "b", "a", "a"])
        0.5
    """
    return 1 - len(set(pieces)) / len(pieces) if pieces else 0.0


def duplicate_characters(pieces):
    """Returns the share of characters in pieces that repeat an earlier one.

    Example:
        >>> duplicate_characters(["abc", "d", "abc", "d"])
        0.5
    """
    total = sum(map(len, pieces))
    return 1 - sum(map(len, set(pieces))) / total if total else 0.0


def top_ngram(measured, *, words):
    """Returns the share of a text in its most frequent run of words.

    Counted in words, or characters of unspaced languages; a run that occurs
    once counts nothing. No longer run is more frequent than one of two words:
    if that settles it, its bound is returned.

    Args:
        measured: Measured.
        words: int, length of the run.
    """
    share = measured.unit_length * words / max(1, len(measured.units))
    bound = measured.top_count(2)
    if bound * share < CLEARLY_BELOW:
        return bound * share
    count = measured.top_count(words)
    return min(1.0, count * share) if count > 1 else 0.0


def duplicate_ngrams(measured, *, words):
    """Returns the share of a text in runs of words that occurred before.

    What is in a repeated run of ten words is in one of five too: if that share
    settles it, it is returned.

    Args:
        measured: Measured.
        words: int, length of the run.
    """
    bound = measured.repeated_share(5)
    return bound if bound < CLEARLY_BELOW else measured.repeated_share(words)


def _line_share(measured, is_meant):
    lines = measured.lines
    if len(lines) < MIN_LINES:
        return 0.0
    return sum(map(is_meant, lines)) / len(lines)
