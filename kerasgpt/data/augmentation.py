"""Owns variations of texts and chats that keep their meaning, all off at first.

Not: where they are wanted (preparation.py). Only the training split is varied:
what is measured is what people wrote.
"""

import dataclasses
import functools
import random
import re

from kerasgpt.config import Config, InputError, setting
from kerasgpt.data.prepared import content_key
from kerasgpt.data.sources import read_text

# A word with what stands behind it, or one Chinese character: what is swapped
# or left out as one.
PIECE = re.compile(r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+\s*|\s+")
# Ways of asking the same: around a user's turn, in its language.
TEMPLATES = {
    "en": ("{}", "Please tell me: {}", "Hello! {}", "{} Thank you."),
    "zh": ("{}", "请问，{}", "你好！{}", "{}谢谢。"),
}


@dataclasses.dataclass(frozen=True)
class AugmentationConfig(Config):
    """Variations added to the training split; of chats, of the user's turns."""

    num_variations: int = setting(
        0, "further copies of each, varied; 0 = none", minimum=0, maximum=100
    )
    use_templates: bool = setting(
        True, "word a user's turn in other ways, such as 请问，…"
    )
    synonyms: str = setting(
        "",
        "file with words that may stand for each other, a line a group, tabs "
        "between",
    )
    synonym_rate: float = setting(
        0.3, "of words that have synonyms", minimum=0.0, maximum=1.0
    )
    swap_rate: float = setting(
        0.0, "of words swapped with the next", minimum=0.0, maximum=0.5
    )
    deletion_rate: float = setting(
        0.0, "of words left out", minimum=0.0, maximum=0.5
    )
    seed: int = setting(0, "of all choices", minimum=0)


def vary_row(row, config, *, translate_back=None):
    """Returns variations of a row; fewer where they would be the same.

    A pure function of the row and the config: the same in any order, in any
    process.

    Args:
        row: dict of prepared data, with "text", or with "messages", of which
            only the user's are varied: an answer is what is learned.
        config: AugmentationConfig.
        translate_back: function of (text, language) that returns the text
            translated there and back; `None` = none is at hand.

    Returns:
        list of dict, without the row itself.

    Example:
        >>> row = {"messages": [{"role": "user", "content": "几点开门？"},
        ...                     {"role": "assistant", "content": "九点。"}],
        ...        "language": "zh"}
        >>> config = AugmentationConfig(num_variations=1)
        >>> vary_row(row, config)[0]["messages"][0]["content"]
        '你好！几点开门？'
    """
    seen, variations = [row], []
    for number in range(config.num_variations):
        rng = random.Random(
            content_key(str(config.seed), str(number), repr(row))
        )

        def vary(text, *, is_turn, rng=rng):
            return vary_text(
                text,
                row["language"],
                config,
                rng,
                is_turn=is_turn,
                translate_back=translate_back,
            )

        if "messages" in row:
            messages = [
                {**m, "content": vary(m["content"], is_turn=True)}
                if m["role"] == "user"
                else m
                for m in row["messages"]
            ]
            varied = {**row, "messages": messages}
        else:
            varied = {**row, "text": vary(row["text"], is_turn=False)}
        if varied not in seen:
            seen.append(varied)
            variations.append(varied)
    return variations


def vary_text(text, language, config, rng, *, is_turn, translate_back=None):
    """Returns a text varied once, as the config says.

    Args:
        text: str.
        language: str; templates are of "en" and "zh".
        config: AugmentationConfig.
        rng: random.Random.
        is_turn: bool, whether templates fit.
        translate_back: as in `vary_row`.
    """
    if translate_back:
        text = translate_back(text, language)
    if config.synonyms:
        text = replace_synonyms(
            text, _groups(config.synonyms), config.synonym_rate, rng
        )
    text = swap_words(text, config.swap_rate, rng)
    text = delete_words(text, config.deletion_rate, rng)
    if is_turn and config.use_templates and language in TEMPLATES:
        text = rng.choice(TEMPLATES[language]).format(text)
    return text


def swap_words(text, rate, rng):
    """Returns a text with some words, or Chinese characters, swapped.

    Stands, with `delete_words`, for KerasNLP's RandomSwap and RandomDeletion,
    whose choices depend on what they did before, so that no document could be
    varied by itself; measured on 20 words: 0.11 ms a text, and 0.003 here.

    Args:
        text: str.
        rate: float, share of words swapped with the next one.
        rng: random.Random.

    Reference: Wei & Zou 2019, "EDA: easy data augmentation techniques".

    Example:
        >>> swap_words("一二三", 0.5, random.Random(1))
        '二一三'
    """
    pieces = PIECE.findall(text)
    if rate:
        for index in range(len(pieces) - 1):
            if rng.random() < rate:
                here = slice(index, index + 2)
                pieces[here] = pieces[here][::-1]
    return "".join(pieces)


def delete_words(text, rate, rng):
    """Returns a text without some words, at least one stays.

    Args:
        text: str.
        rate: float, share of words left out.
        rng: random.Random.
    """
    pieces = PIECE.findall(text)
    if not rate or not pieces:
        return text
    kept = [piece for piece in pieces if rng.random() >= rate]
    return "".join(kept or [rng.choice(pieces)])


def replace_synonyms(text, groups, rate, rng):
    """Returns a text with some words replaced by others of their group.

    Args:
        text: str.
        groups: tuple of tuples of str.
        rate: float, share of the words that have synonyms.
        rng: random.Random.

    Example:
        >>> replace_synonyms("很便宜", (("便宜", "实惠"),), 1.0,
        ...                  random.Random(0))
        '很实惠'
    """
    pattern, others = _synonyms(groups)

    def replace(match):
        if rng.random() >= rate:
            return match[0]
        return rng.choice(others[match[0].lower()])

    return pattern.sub(replace, text)


@functools.cache
def _groups(path):
    groups = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = tuple(filter(None, map(str.strip, line.split("\t"))))
        if len(words) == 1:
            raise InputError(
                f"{path}, line {number}: needs two words or more, with tabs "
                f"between."
            )
        if words:
            groups.append(words)
    return tuple(groups)


@functools.lru_cache(maxsize=8)
def _synonyms(groups):
    """Returns a pattern of all words, and {word: its synonyms}."""
    others = {}
    for group in groups:
        for word in group:
            found = others.setdefault(word.lower(), [])
            found += [other for other in group if other != word]
    # The longest first, so that no word hides in another.
    words = sorted(others, key=lambda word: (-len(word), word))
    patterns = [
        rf"\b{re.escape(word)}\b" if word.isascii() else re.escape(word)
        for word in words
    ]
    return re.compile("|".join(patterns), re.IGNORECASE), others
