"""Owns cleaning one text: which edits in which order, and whether it stays.

Not: an edit (edits.py, privacy.py) or a measure of quality (quality.py).
"""

import dataclasses
import functools
import re

from kerasgpt.config import Config, InputError, setting
from kerasgpt.data import edits, languages, privacy, quality
from kerasgpt.data.privacy import PrivacyConfig
from kerasgpt.data.quality import QualityConfig
from kerasgpt.data.sources import read_text

# Edits in their order; personal data is masked before them, so that the length
# of a line is what it will be.
TEXT_EDITS = {
    "repair_encoding": edits.repair_encoding,
    "remove_html": edits.remove_html,
    "remove_control_characters": edits.remove_control_characters,
    "normalize_unicode": edits.normalize_unicode,
    "remove_boilerplate": edits.remove_boilerplate,
    "tidy_white_space": edits.tidy_white_space,
}
EDITS = (*privacy.MASKS, *TEXT_EDITS)
# Rules that drop a document, in their order.
DROPS = ("languages", "word_list", *quality.RULES)
# Edits that a web page needs and a conversation does not: what people and
# assistants say about HTML or cookies is meant.
PAGE_EDITS = ("remove_html", "remove_boilerplate")
# One edit may uncover work for another, as "&amp;lt;" does: they are repeated
# until nothing changes. More passes than this are somebody's joke.
MAX_PASSES = 8


@dataclasses.dataclass(frozen=True)
class CleaningConfig(Config):
    """Which rules clean a text; conversations get those that fit them."""

    repair_encoding: bool = setting(
        True, "undo wrong decoding, such as â€™ for ’ or 浣犲ソ for 你好"
    )
    remove_html: bool = setting(
        True, "tags, comments, scripts and entities of documents, not in code"
    )
    remove_control_characters: bool = setting(
        True, "control, zero-width and direction characters"
    )
    normalize_unicode: bool = setting(
        True, "composed form (NFC), which leaves full-width punctuation alone"
    )
    remove_boilerplate: bool = setting(
        True, "lines of menus, cookie notices, copyright, of documents"
    )
    tidy_white_space: bool = setting(
        True, "spaces at the end of lines, more than one empty line"
    )
    languages: str = setting(
        "",
        "codes of languages kept, commas between, such as en,zh; empty = all; "
        "a text of unknown language is kept",
    )
    word_list: str = setting(
        "",
        "file with a word or phrase a line: documents with one are dropped",
    )
    quality: QualityConfig = setting(
        QualityConfig(), "when documents are dropped"
    )
    privacy: PrivacyConfig = setting(PrivacyConfig(), "what is masked")

    def __post_init__(self):
        super().__post_init__()
        for code in _split_codes(self.languages) if self.languages else ():
            if code not in languages.CODES:
                raise InputError(
                    f"languages={self.languages}: {code} is none of "
                    f"{', '.join(languages.CODES)}."
                )


@dataclasses.dataclass(frozen=True)
class Cleaned:
    """A text after cleaning.

    Attributes:
        text: str, as the edits left it, dropped or not.
        dropped_by: str, the name of the rule that drops it, or "".
        counts: dict of the edits that found something to the number of
            places; of white space, the number of characters.
        language: str, as `languages.identify` says.
    """

    text: str
    dropped_by: str
    counts: dict
    language: str


def clean(text, config, *, is_chat=False):
    """Returns a text cleaned, and whether it is kept.

    Pure: the same in this process, in a pool and in a pipeline elsewhere.
    Cleaning what is clean changes nothing.

    Args:
        text: str.
        config: CleaningConfig.
        is_chat: bool. A turn of a conversation: without the edits and the
            quality rules of web pages.

    Returns:
        Cleaned.

    Raises:
        InputError: if the word list cannot be read.

    Example:
        >>> cleaned = clean("<p>It&#39;s 5 &lt; 6.</p>", CleaningConfig())
        >>> cleaned.text, cleaned.counts
        ("It's 5 < 6.", {'remove_html': 4, 'tidy_white_space': 1})
        >>> clean("你好 ，世界", CleaningConfig()).language
        'zh'
    """
    counts = {}
    for _ in range(MAX_PASSES):
        text, found = _edit(text, config, is_chat=is_chat)
        for rule, count in found.items():
            counts[rule] = counts.get(rule, 0) + count
        # Tidy white space is no work for other edits.
        if not found.keys() - {"tidy_white_space"}:
            break
    language = languages.identify(text)
    if is_chat:
        dropped_by = _turn_dropped_by(text, language, config)
    else:
        dropped_by = _dropped_by(text, language, config)
    return Cleaned(text, dropped_by, counts, language)


def clean_chat(messages, config):
    """Returns (messages cleaned, Cleaned of the conversation as a whole).

    A conversation is dropped if one of its turns is, or becomes empty that
    was not.

    Args:
        messages: list of {"role", "content"}.
        config: CleaningConfig.

    Returns:
        list of {"role", "content"}, and Cleaned, whose text is the contents
        joined by line breaks.
    """
    counts, dropped_by, cleaned_messages = {}, "", []
    for message in messages:
        turn = clean(message["content"], config, is_chat=True)
        cleaned_messages.append({**message, "content": turn.text})
        for rule, count in turn.counts.items():
            counts[rule] = counts.get(rule, 0) + count
        if turn.dropped_by and message["content"].strip():
            dropped_by = dropped_by or turn.dropped_by
    text = "\n".join(message["content"] for message in cleaned_messages)
    language = languages.identify(text)
    if not dropped_by and not is_kept_language(language, config.languages):
        dropped_by = "languages"
    return cleaned_messages, Cleaned(text, dropped_by, counts, language)


def is_kept_language(language, kept):
    """Returns whether a language is among those kept, or unknown.

    Args:
        language: str, a code.
        kept: str, codes with commas between; empty = all.

    Example:
        >>> is_kept_language("fr", "en,zh"), is_kept_language("und", "en,zh")
        (False, True)
    """
    return not kept or language == "und" or language in _split_codes(kept)


def has_listed_word(text, path):
    """Returns whether a text holds a word or phrase of a list.

    Latin words are matched as whole words, others anywhere, in any case.

    Args:
        text: str.
        path: str, a UTF-8 file with one a line.

    Raises:
        InputError: if the file cannot be read or is empty.
    """
    return _word_pattern(path).search(text) is not None


def _edit(text, config, *, is_chat):
    """Returns (text after every edit once, counts of those that found)."""
    text, counts = privacy.mask(text, config.privacy)
    for rule, function in TEXT_EDITS.items():
        if getattr(config, rule) and not (is_chat and rule in PAGE_EDITS):
            text, count = function(text)
            if count:
                counts[rule] = count
    return text, counts


def _dropped_by(text, language, config):
    if not is_kept_language(language, config.languages):
        return "languages"
    if config.word_list and has_listed_word(text, config.word_list):
        return "word_list"
    return quality.judge(text, language, config.quality)


def _turn_dropped_by(text, language, config):
    if config.word_list and has_listed_word(text, config.word_list):
        return "word_list"
    return quality.judge(
        text, language, config.quality, rules=quality.TURN_RULES
    )


def _split_codes(text):
    return [code.strip() for code in text.split(",")]


@functools.cache
def _word_pattern(path):
    words = {line.strip() for line in read_text(path).split("\n")} - {""}
    patterns = [
        rf"\b{re.escape(word)}\b" if word.isascii() else re.escape(word)
        for word in sorted(words)
    ]
    return re.compile("|".join(patterns), re.IGNORECASE)
