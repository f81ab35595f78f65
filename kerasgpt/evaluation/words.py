"""Owns words, as scores and baselines count them. Not: tokens of a model."""

import re

# Han characters and kana each, a run of letters or of digits, or one sign.
WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]"
    r"|[^\W\d_\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]+|\d+|[^\w\s]"
)


def words(text, *, with_signs=True):
    """Returns the words of a text in lower case; Chinese by character.

    Chinese needs no dictionary this way: the usual choice for scores.

    Args:
        text: str.
        with_signs: bool. Punctuation counts as words, too.

    Example:
        >>> words("It's 12 元，好的。")
        ['it', "'", 's', '12', '元', '，', '好', '的', '。']
        >>> words("A red one.", with_signs=False)
        ['a', 'red', 'one']
    """
    found = WORD.findall(text.lower())
    if with_signs:
        return found
    return [word for word in found if word.isalnum()]


def ngrams(items, order):
    """Returns the runs of `order` neighbours, as tuples.

    Example:
        >>> ngrams("abc", 2)
        [('a', 'b'), ('b', 'c')]
    """
    return list(zip(*(items[start:] for start in range(order)), strict=False))
