"""Owns rules by which a document is dropped, in English and Chinese.

Not: how it is measured (measures.py), or changing it (cleaning.py).
"""

import dataclasses
import functools
import re

from kerasgpt.config import Config, setting
from kerasgpt.data import measures
from kerasgpt.data.measures import Measured

CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)


def _fraction(default, description):
    return setting(default, description, minimum=0.0, maximum=1.0)


@dataclasses.dataclass(frozen=True)
class QualityConfig(Config):
    """Thresholds of the rules by which a document is dropped; none = off.

    Each setting is `min_` or `max_` and the name of the function that measures
    it. Numbers are the papers' where a paper is named: Gopher (Rae et al.
    2021, appendix A.1.1 and table A1), C4 (Raffel et al. 2020, section 2.2),
    FineWeb (Penedo et al. 2024, section 3.6). They were found on English web
    pages; for Chinese a word counts 1.5 characters.
    """

    judged_from_words: int = setting(
        100,
        "documents with fewer words outside ``` code are not judged by shares "
        "of lines and words, which a few repetitions or numbers decide there",
        minimum=0,
    )
    min_characters: int | None = setting(1, "without white space", minimum=0)
    max_lost_fraction: float | None = _fraction(
        0.01, "share of characters that an earlier program could not decode"
    )
    max_placeholders: int | None = setting(
        0, "times lorem ipsum and the like (C4: 0)", minimum=0
    )
    max_curly_brackets: int | None = setting(
        None, "braces (C4: 0, which drops all code)", minimum=0
    )
    min_sentences: int | None = setting(None, "sentences (C4: 3)", minimum=0)
    min_words: int | None = setting(
        None, "words (Gopher: 50); short texts of your own are kept", minimum=0
    )
    max_words: int | None = setting(
        None, "words (Gopher: 100000); books are kept", minimum=0
    )
    max_word_length: int | None = setting(
        1000, "characters of the longest ASCII word (C4: 1000)", minimum=1
    )
    min_mean_word_length: float | None = setting(
        3.0, "characters, where words are spaced (Gopher: 3)", minimum=0.0
    )
    max_mean_word_length: float | None = setting(
        10.0, "characters, where words are spaced (Gopher: 10)", minimum=0.0
    )
    max_symbol_fraction: float | None = _fraction(
        0.1, "# and ellipses to words (Gopher: 0.1)"
    )
    max_bullet_fraction: float | None = _fraction(
        0.9, "lines that start with a bullet (Gopher: 0.9)"
    )
    max_ellipsis_fraction: float | None = _fraction(
        0.3, "lines that end with an ellipsis (Gopher: 0.3)"
    )
    min_alphabetic_fraction: float | None = _fraction(
        0.8, "words with a letter (Gopher: 0.8)"
    )
    min_grammar_words: int | None = setting(
        2,
        "different ones of eight English words, or of the most frequent "
        "Chinese characters (Gopher: 2)",
        minimum=0,
    )
    min_ended_fraction: float | None = _fraction(
        0.12, "lines that end with punctuation (FineWeb: 0.12)"
    )
    max_short_line_fraction: float | None = _fraction(
        0.67,
        "lines below 30 letters, or 10 Chinese characters, that do not end "
        "with punctuation, as those of verse and dialogue do (FineWeb: 0.67)",
    )
    max_duplicate_line_fraction: float | None = _fraction(
        0.3, "lines that repeat another (Gopher: 0.3)"
    )
    max_duplicate_line_characters: float | None = _fraction(
        0.2, "characters in such lines (Gopher: 0.2; FineWeb: 0.1)"
    )
    max_duplicate_paragraph_fraction: float | None = _fraction(
        0.3, "paragraphs that repeat another (Gopher: 0.3)"
    )
    max_duplicate_paragraph_characters: float | None = _fraction(
        0.2, "characters in such paragraphs (Gopher: 0.2)"
    )
    max_top_2gram: float | None = _fraction(
        0.2, "text in the most frequent 2 words (Gopher: 0.2)"
    )
    max_top_3gram: float | None = _fraction(
        0.18, "text in the most frequent 3 words (Gopher: 0.18)"
    )
    max_top_4gram: float | None = _fraction(
        0.16, "text in the most frequent 4 words (Gopher: 0.16)"
    )
    max_duplicate_5gram: float | None = _fraction(
        0.15, "text in repeated runs of 5 words (Gopher: 0.15)"
    )
    max_duplicate_6gram: float | None = _fraction(0.14, "of 6 (Gopher: 0.14)")
    max_duplicate_7gram: float | None = _fraction(0.13, "of 7 (Gopher: 0.13)")
    max_duplicate_8gram: float | None = _fraction(0.12, "of 8 (Gopher: 0.12)")
    max_duplicate_9gram: float | None = _fraction(0.11, "of 9 (Gopher: 0.11)")
    max_duplicate_10gram: float | None = _fraction(0.1, "of 10 (Gopher: 0.1)")


def judge(text, language, config, *, rules=None):
    """Returns the name of the first rule that a document breaks, or "".

    Args:
        text: str.
        language: str, as `languages.identify` says.
        config: QualityConfig.
        rules: names of the rules asked; `None` = all.

    Example:
        >>> judge("Lorem ipsum dolor sit amet.", "und", QualityConfig())
        'max_placeholders'
        >>> judge("Open from nine to five.", "en", QualityConfig())
        ''
    """
    whole = prose = Measured(text, language)
    if "```" in text:
        # Code has no sentences and many signs.
        prose = Measured(CODE.sub("", text), language)
    is_long = prose.num_words >= config.judged_from_words
    for rule, measure, needs_length in _RULES:
        if (needs_length and not is_long) or (rules and rule not in rules):
            continue
        threshold = getattr(config, rule)
        if threshold is None:
            continue
        value = measure(prose if needs_length else whole)
        if value < threshold if rule.startswith("min") else value > threshold:
            return rule
    return ""


def _of_lines(function):
    # A line that ends with a colon names who speaks, and may come back.
    return lambda measured: function(
        [line for line in measured.lines if not line.endswith((":", "："))]
    )


def _of_paragraphs(function):
    return lambda measured: function(measured.paragraphs)


# (setting, what it is compared with, whether the text must be long enough).
# The cheap and frequent ones first: the first broken rule ends it.
_RULES = (
    ("min_characters", measures.characters, False),
    ("max_lost_fraction", measures.lost_fraction, False),
    ("max_placeholders", measures.placeholders, False),
    ("max_curly_brackets", measures.curly_brackets, False),
    ("min_sentences", measures.sentences, False),
    ("min_words", measures.num_words, False),
    ("max_words", measures.num_words, False),
    ("max_word_length", measures.word_length, False),
    ("min_mean_word_length", measures.mean_word_length, True),
    ("max_mean_word_length", measures.mean_word_length, True),
    ("max_symbol_fraction", measures.symbol_fraction, True),
    ("max_bullet_fraction", measures.bullet_fraction, True),
    ("max_ellipsis_fraction", measures.ellipsis_fraction, True),
    ("min_alphabetic_fraction", measures.alphabetic_fraction, True),
    ("min_grammar_words", measures.grammar_words, True),
    ("min_ended_fraction", measures.ended_fraction, True),
    ("max_short_line_fraction", measures.short_line_fraction, True),
    (
        "max_duplicate_line_fraction",
        _of_lines(measures.duplicate_fraction),
        True,
    ),
    (
        "max_duplicate_line_characters",
        _of_lines(measures.duplicate_characters),
        True,
    ),
    (
        "max_duplicate_paragraph_fraction",
        _of_paragraphs(measures.duplicate_fraction),
        True,
    ),
    (
        "max_duplicate_paragraph_characters",
        _of_paragraphs(measures.duplicate_characters),
        True,
    ),
    *(
        (
            f"max_top_{words}gram",
            functools.partial(measures.top_ngram, words=words),
            True,
        )
        for words in (2, 3, 4)
    ),
    *(
        (
            f"max_duplicate_{words}gram",
            functools.partial(measures.duplicate_ngrams, words=words),
            True,
        )
        for words in range(5, 11)
    ),
)
RULES = tuple(name for name, _, _ in _RULES)
# Rules that fit a turn of a conversation: it may be short, a list or a poem.
TURN_RULES = ("min_characters", "max_lost_fraction")
