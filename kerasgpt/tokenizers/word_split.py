r"""Owns the cutting of a text into words, inside which byte pairs merge.

The expressions of GPT-2 and its heirs end in `\s+(?!\S)|\s+`: of white space
before a word, the last character stays with the word. RE2, which is what runs
in a graph, has no look-ahead. So that last character is cut off first, and
what is left has one character of white space before each word.
"""

import dataclasses

import tensorflow as tf

# Unicode's White_Space; RE2's \s is that of ASCII.
_SPACE = (
    r"\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}"
    r"\x{205f}\x{3000}"
)
# The same without \n and \r.
_BLANK = (
    r"\t\v\f \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}"
    r"\x{205f}\x{3000}"
)
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_LOOK_AHEAD = r"|\s+(?!\S)|\s+"
# Between words: a byte that no valid UTF-8 has, and that RE2 never matches.
_CUT = b"\xff"


@dataclasses.dataclass(frozen=True)
class WordSplit:
    """How one family of tokenizers cuts words.

    Attributes:
        regex: str, as the family publishes it.
        blank: str, the class of white space whose last character goes with a
            word.
        digits_apart: bool. Each digit was a text of its own already.
    """

    regex: str
    blank: str = _BLANK
    digits_apart: bool = False

    @property
    def pattern(self):
        """Str, for RE2: the words of what `last_blank` has cut."""
        pattern = self.regex.replace(_LOOK_AHEAD, r"|\s+")
        if self.digits_apart:
            pattern = pattern.replace(r" ?\p{N}+", r"\p{N}")
        pattern = pattern.replace(r"[^\s", f"[^{_SPACE}")
        return pattern.replace(r"\s", f"[{_SPACE}]")

    @property
    def last_blank(self):
        """Str, for RE2: white space, and its last character before a word."""
        digit = r"\p{N}" if self.digits_apart else ""
        word = f"[^{_SPACE}{digit}]"
        return f"([{self.blank}]+)([{self.blank}]{word})"


_GPT2 = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    + _LOOK_AHEAD
)
_LATER = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+" + _LOOK_AHEAD
WORD_SPLITS = {
    "gpt2": WordSplit(_GPT2, _SPACE),
    # SmolLM, StarCoder.
    "gpt2_digits": WordSplit(_GPT2, _SPACE, digits_apart=True),
    # GPT-4's cl100k as well.
    "llama3": WordSplit(_ENDING + rf"|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}" + _LATER),
    "qwen2": WordSplit(_ENDING + rf"|{_LEAD}\p{{L}}+|\p{{N}}" + _LATER),
    # GPT-4o.
    "o200k": WordSplit(
        rf"{_LEAD}{_UPPER}*{_LOWER}+{_ENDING}?"
        rf"|{_LEAD}{_UPPER}+{_LOWER}*{_ENDING}?|\p{{N}}{{1,3}}"
        + _LATER.replace(r"[\r\n]*", r"[\r\n/]*")
    ),
}


def split_words(strings, name):
    r"""Returns the words of each string, in eager and graph code.

    Args:
        strings: string (batch,), valid UTF-8.
        name: str, one of `WORD_SPLITS`.

    Returns:
        string RaggedTensor (batch, None). Empty strings may be among them.

    Example:
        >>> [word.decode() for word in split_words(["I'm  here\n"], "gpt2")[0]
        ...  .numpy() if word]
        ['I', "'m", ' ', ' here', '\n']
    """
    split = WORD_SPLITS[name]
    strings = tf.strings.regex_replace(
        strings, split.last_blank, rb"\1" + _CUT + rb"\2"
    )
    # Twelve times as fast as tf_text.regex_split, which captures groups.
    strings = tf.strings.regex_replace(strings, split.pattern, rb"\0" + _CUT)
    return tf.strings.split(strings, _CUT)
