"""Owns text -> words as BERT cuts it, in the graph. Not: words -> pieces.

The same as Hugging Face's `BertNormalizer` and `BertPreTokenizer`: both ask of
a character nothing but which one it is, so that one table tells what each
becomes. (All but one thing: where accents are stripped, theirs also sorts
neighbouring marks that stay, of which rare scripts have some.)

Stands for the words of TF Text's `FastBertTokenizer`, which are faster (8.6 to
15 MB/s of the shop's texts against 2.3) and other ones: with them 3 to 6 of the
8 texts of tests/goldens/bert have other ids (Han beside letters, characters
without width, long words), and it cannot strip accents and keep case, or keep
Han characters together.
"""

import functools
import sys
import unicodedata
from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Blocks of Han characters, each a word of its own.
HAN = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
# Theirs knows the categories of Unicode 8: marks, punctuation and formats that
# came later are letters there. These ranges hold no older ones.
NEWER_RANGES = (
    "61d 7fd 890-8e2 9fd-9fe a76 afa-aff b55 c04-c3c c77 c84 d00 d3b-d3c d81 "
    "eba 180f-1886 1abf-1ace 1b7d-1b7e 1df6-1dfb 2e43-2e5d a82c a8c5 a8ff a9bd "
    "10d24-10f89 11070-11074 110c2-110cd 111cf 1123e 1133b 11438-1145e "
    "11660-1166c 116b9 1182f-11fff 12ff1-13438 16e97-16f4f 16fe2-16fe4 "
    "1cf00-1cf46 1e000-1e2ef 1e944-1e95f"
)
NEWER = frozenset(
    code
    for part in NEWER_RANGES.split()
    for first, last in [(part.split("-") * 2)[:2]]
    for code in range(int(first, 16), int(last, 16) + 1)
)
# Those that have another category since then.
IN_UNICODE_8 = {0x166D: "Po", 0x111C9: "Po", 0x1734: "Mn"}
PUNCTUATION = ("Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps")
SPACE, ITSELF = ord(" "), -1
PAGE = 256
# A longer word is unknown; this character, of no vocabulary, stands for it.
LONGEST_WORD, TOO_LONG = 100, "\ue000"


class _Table(NamedTuple):
    """What each character becomes.

    Attributes:
        pages: int32 (pages, 256). Row of each character of a page; pages that
            are equal are one.
        page_of: int32 (0x1100,). Page of each 256 characters.
        row_splits: int64 (rows + 1,), and values: int32. The characters of a
            row; `ITSELF` = the one that was asked for.
    """

    pages: np.ndarray
    page_of: np.ndarray
    row_splits: np.ndarray
    values: np.ndarray


class BertWords(tf.Module):
    """Cuts text into words: at white space, punctuation, Han characters.

    Control characters vanish.

    Args:
        lower_case: bool.
        strip_accents: bool. Characters are decomposed, their marks dropped.
        split_han: bool. Each Han character is a word.

    Example:
        >>> words = BertWords(
        ...     lower_case=True, strip_accents=True, split_han=True)
        >>> found = words(tf.constant(["Thé 你好!"])).values.numpy()
        >>> [word.decode() for word in found]
        ['the', '你', '好', '!']
    """

    def __init__(self, *, lower_case, strip_accents, split_han):
        super().__init__(name="bert_words")
        self._table = _Table(
            *map(tf.constant, _build(lower_case, strip_accents, split_han))
        )

    def __call__(self, strings):
        """Returns the words of each string.

        Args:
            strings: string tensor (batch,), valid UTF-8.

        Returns:
            string RaggedTensor (batch, None).
        """
        table = self._table
        characters = tf.strings.unicode_decode(strings, "UTF-8")
        asked = characters.values
        page = tf.gather(table.page_of, asked // PAGE)
        row = tf.gather(
            tf.reshape(table.pages, [-1]), page * PAGE + asked % PAGE
        )
        become = tf.gather(
            tf.RaggedTensor.from_row_splits(
                table.values, table.row_splits, validate=False
            ),
            row,
        )
        own = tf.repeat(asked, become.row_lengths())
        values = tf.where(become.values == ITSELF, own, become.values)
        text = tf.strings.unicode_encode(
            tf.RaggedTensor.from_row_splits(
                values,
                tf.gather(become.row_splits, characters.row_splits),
                validate=False,
            ),
            "UTF-8",
        )
        text = tf.strings.regex_replace(
            text, f"[^ ]{{{LONGEST_WORD + 1},}}", TOO_LONG
        )
        return tf.strings.split(text)


@functools.cache
def _build(lower_case, strip_accents, split_han):
    """Returns the _Table of arrays."""
    rows = {(ITSELF,): 0, (): 1}
    codes = np.zeros(sys.maxunicode + 1, np.int32)
    for code in range(len(codes)):
        # Most of them are unassigned, or for private use.
        kind = unicodedata.category(chr(code))
        if kind == "Co":
            codes[code] = rows[()]
        elif kind != "Cn" or _is_han(code):
            become = _become(code, lower_case, strip_accents, split_han)
            codes[code] = rows.setdefault(become, len(rows))
    pages, page_of = np.unique(
        codes.reshape(-1, PAGE), axis=0, return_inverse=True
    )
    return _Table(
        pages.astype(np.int32),
        page_of.reshape(-1).astype(np.int32),
        np.cumsum([0, *map(len, rows)]).astype(np.int64),
        np.array([one for row in rows for one in row], np.int32),
    )


def _become(code, lower_case, strip_accents, split_han):
    """Returns the tuple of codes that one becomes."""
    text, kind = chr(code), _category(code)
    if text in "\t\n\r" or kind in ("Zs", "Zl", "Zp"):
        return (SPACE,)
    if text in "\0\ufffd" or kind in ("Cc", "Cf"):
        return ()
    if strip_accents and code not in NEWER:
        text = "".join(
            one
            for one in unicodedata.normalize("NFD", text)
            if _category(ord(one)) != "Mn"
        )
    if lower_case:
        text = "".join(one.lower() for one in text)
    become = []
    for one in text:
        itself = ITSELF if ord(one) == code else ord(one)
        become += [SPACE, itself, SPACE] if _is_apart(one) else [itself]
    if split_han and _is_han(code):
        become = [SPACE, *become, SPACE]
    return tuple(become)


def _is_han(code):
    return any(first <= code <= last for first, last in HAN)


def _is_apart(letter):
    if letter.isascii():
        return letter.isprintable() and not letter.isalnum() and letter != " "
    return _category(ord(letter))[0] == "P"


def _category(code):
    """Returns the category of a character as of Unicode 8."""
    kind = IN_UNICODE_8.get(code) or unicodedata.category(chr(code))
    is_newer = code in NEWER and kind in ("Mn", "Cf", *PUNCTUATION)
    return "Lo" if is_newer else kind
