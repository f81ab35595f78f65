"""Owns what a tokenizer makes of texts, by language. Not: training one."""

import dataclasses
import hashlib
import heapq

from kerasgpt.data.languages import UNSPACED, identify

# Encoded at once.
_BATCH = 256


@dataclasses.dataclass
class Usage:
    """How a tokenizer writes the texts of one language.

    Attributes:
        num_texts, num_bytes, num_units, num_tokens: int. A unit is a word
            with white space around it, or in a script without one, such as
            Chinese, a character.
        num_unknown: int, tokens that stand for what cannot be spelled.
    """

    num_texts: int = 0
    num_bytes: int = 0
    num_units: int = 0
    num_tokens: int = 0
    num_unknown: int = 0

    @property
    def fertility(self):
        """Float, tokens a word or character. Lower is better."""
        return self.num_tokens / max(1, self.num_units)

    @property
    def compression(self):
        """Float, bytes a token. Higher is better."""
        return self.num_bytes / max(1, self.num_tokens)


def measure_usage(tokenizer, texts):
    """Returns a dict from language to Usage, and of "all" texts.

    Languages are those of `languages.identify`, the commonest first.

    Args:
        tokenizer: Tokenizer.
        texts: list of str.

    Example:
        >>> from kerasgpt.tokenizers.byte import ByteTokenizer
        >>> usage = measure_usage(ByteTokenizer(), ["你好世界", "so is it"])
        >>> usage["zh"].fertility, usage["en"].num_units
        (3.0, 3)
        >>> usage["all"].compression
        1.0
    """
    found = {}
    unknown_id = getattr(tokenizer, "unknown_id", None)
    for first in range(0, len(texts), _BATCH):
        batch = texts[first : first + _BATCH]
        rows = tokenizer.encode_batch(batch)
        for text, ids in zip(batch, rows, strict=True):
            language = identify(text)
            units = text.split()
            num_units = len(units)
            if language in UNSPACED:
                num_units = sum(map(len, units))
            for usage in (
                found.setdefault(language, Usage()),
                found.setdefault("all", Usage()),
            ):
                usage.num_texts += 1
                usage.num_bytes += len(text.encode())
                usage.num_units += num_units
                usage.num_tokens += len(ids)
                if unknown_id is not None:
                    usage.num_unknown += int((ids == unknown_id).sum())
    return dict(sorted(found.items(), key=lambda one: -one[1].num_bytes))


def sample_texts(texts, *, num_bytes):
    """Returns texts of at most so many bytes, chosen by their hash.

    Whatever the order of the texts, the choice is the same, and each source
    has the share that it has among all; no more than the choice is in memory.

    Args:
        texts: iterable of str. A text longer than `num_bytes` is left out.
        num_bytes: int.

    Returns:
        list of str, in the order of their hashes.

    Example:
        >>> sample_texts(["one", "two", "three", "four"], num_bytes=8)
        ['three', 'one']
    """
    kept, size = [], 0
    for number, text in enumerate(texts):
        content = text.encode()
        if len(content) > num_bytes:
            continue
        digest = hashlib.blake2b(content, digest_size=8).digest()
        # The largest hash first; the number spares comparing equal texts.
        place = -int.from_bytes(digest, "big")
        heapq.heappush(kept, (place, number, text, len(content)))
        size += len(content)
        while size > num_bytes:
            size -= heapq.heappop(kept)[3]
    return [text for _, _, text, _ in sorted(kept, reverse=True)]
