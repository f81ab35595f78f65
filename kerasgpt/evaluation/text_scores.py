"""Owns scores of a reply against a right answer, in English and Chinese.

Not: which task is scored by which (tasks.py), or BLEU (translation.py). All
are shares from 0 to 1.
"""

import collections
import re

from kerasgpt.evaluation.words import ngrams, words

# Left out by SQuAD's exact match and F1.
ARTICLES = {"a", "an", "the"}
# "Buyer: Anna." and "买家：安娜。": a name, its value up to a sign of the end.
ROLE = re.compile(r"\s*([^:：.;。；\n]+?)\s*[:：]\s*(.*?)\s*(?:[.;。；\n]|$)")


def rouge(answer, reply):
    """Returns ROUGE-1, ROUGE-2 and ROUGE-L as F1.

    Words are those of `words`, without signs. Google's `rouge-score` keeps
    a-z and 0-9 only, so that every Chinese text scores 0 there; in English
    without a stemmer the two agree (tests/goldens/rouge.json).

    Args:
        answer, reply: strs.

    Returns:
        dict of "rouge1", "rouge2" and "rougeL".

    Example:
        Of "a red hat" and "a blue hat", 2 of 3 words and no pair:

        >>> scores = rouge("a red hat", "a blue hat")
        >>> [round(score, 4) for score in scores.values()]
        [0.6667, 0.0, 0.6667]

    Reference: Lin 2004, ROUGE, sections 2 and 3.
    """
    one, other = (words(text, with_signs=False) for text in (answer, reply))
    return {
        "rouge1": _overlap(one, other),
        "rouge2": _overlap(ngrams(one, 2), ngrams(other, 2)),
        "rougeL": _f1(_longest_common(one, other), len(one), len(other)),
    }


def token_f1(answer, reply):
    """Returns the F1 of the words of an answer, in any order, as SQuAD does.

    Case, signs and English articles do not count; a Chinese character is a
    word. Two texts without words are equal.

    Example:
        2 of 2 words of the answer, 2 of 3 of the reply:

        >>> round(token_f1("The red hat", "red hat, sir"), 4)
        0.8

    Reference: Rajpurkar et al. 2016, SQuAD (arXiv 1606.05250), section 6.1.
    """
    one, other = _answer_words(answer), _answer_words(reply)
    return _overlap(one, other) if one or other else 1.0


def normalised_match(answer, reply):
    """Returns 1.0 if both say the same, but for case, signs and articles.

    Example:
        >>> normalised_match("The red hat.", "red hat")
        1.0
    """
    return float(_answer_words(answer) == _answer_words(reply))


def role_f1(answer, reply):
    """Returns the F1 of roles: those named with the right value.

    Args:
        answer, reply: strs such as "Buyer: Anna. Seller: Ben.", "买家：安娜。",
            or one role a line. Case does not count. An answer without roles
            must be met as it is.

    Example:
        One of two roles is right:

        >>> role_f1("Buyer: Anna. Seller: Ben.", "Buyer: Anna. Seller: Leo.")
        0.5
    """
    one, other = _roles(answer), _roles(reply)
    return _overlap(one, other) if one else float(answer == reply)


def _answer_words(text):
    return [
        word for word in words(text, with_signs=False) if word not in ARTICLES
    ]


def _roles(text):
    return [(name.lower(), value.lower()) for name, value in ROLE.findall(text)]


def _overlap(one, other):
    """Returns the F1 of what two lists share, each as often as it is there."""
    shared = collections.Counter(one) & collections.Counter(other)
    return _f1(sum(shared.values()), len(one), len(other))


def _f1(num_shared, num_one, num_other):
    return 2 * num_shared / max(1, num_one + num_other)


def _longest_common(one, other):
    """Returns the length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for item in one:
        before = 0
        for place, candidate in enumerate(other, start=1):
            above = row[place]
            row[place] = (
                before + 1 if item == candidate else max(above, row[place - 1])
            )
            before = above
    return row[-1]
