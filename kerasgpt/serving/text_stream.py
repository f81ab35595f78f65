"""Owns ids -> whole characters, up to a stop string. Not: decoding itself."""

# How a tokenizer ends the text of a character of which bytes are missing, and
# the character that SentencePieceTokenizer's escapes begin with.
UNFINISHED = "\ufffd\U0010ffff"
# An escape and what it escapes: four bytes and a digit.
_LONGEST_CHARACTER_TOKENS = 5


class TextStream:
    """Turns ids that come a few at a time into text that comes so too.

    The pieces joined are the text of all ids, cut where a stop string first
    begins. Text that may be the beginning of one is held back, and so is a
    character that is not whole yet.

    Only the ids since the last whole character are decoded again: the work
    grows with the answer's length, not with its square.

    Args:
        decode: async function from lists of ids to their texts, as
            `Backend.decode`. The text of two lists one after the other is
            that of the joined list wherever a whole character ends.
        stops: tuple of non-empty str.

    Attributes:
        is_stopped: bool. A stop string was found; nothing comes after.
        num_characters: int. Whole characters so far, held back or cut ones
            included: where the character begins that the next id is of.

    Example:
        >>> import asyncio
        >>> async def decode(rows):
        ...     return [bytes(row).decode(errors="replace") for row in rows]
        >>> async def pieces():
        ...     stream = TextStream(decode, stops=("END",))
        ...     ids = "你 EEND!".encode()
        ...     return [await stream.push([one]) for one in ids]
        >>> asyncio.run(pieces())
        ['', '', '你', ' ', '', 'E', '', '', '']
    """

    def __init__(self, decode, *, stops=()):
        self.is_stopped = False
        self.num_characters = 0
        self._decode = decode
        self._stops = stops
        self._longest_stop = max(map(len, stops), default=0)
        self._open_ids = []
        self._num_taken = 0
        self._unfinished = ""
        self._held = ""

    async def push(self, token_ids):
        """Returns the text, maybe "", that these further ids settle.

        Args:
            token_ids: list of int.
        """
        if self.is_stopped:
            return ""
        self._open_ids += token_ids
        (text,) = await self._decode([self._open_ids])
        whole = text.rstrip(UNFINISHED)
        fresh = whole[self._num_taken :]
        self._unfinished = text[len(whole) :]
        if self._unfinished:
            self._num_taken = max(self._num_taken, len(whole))
        else:
            self._open_ids = []
            self._num_taken = 0
        return self._take(fresh, is_last=False)

    def finish(self):
        """Returns what was held back, as no id comes after."""
        if self.is_stopped:
            return ""
        return self._take(self._unfinished, is_last=True)

    def _take(self, fresh, *, is_last):
        self.num_characters += len(fresh)
        held = self._held + fresh
        starts = [held.find(stop) for stop in self._stops]
        found = min((start for start in starts if start >= 0), default=None)
        end = len(held) if found is None else found
        if not is_last:
            # Another stop string may have begun before the one found.
            nearest = max(0, len(held) - self._longest_stop + 1)
            end = next(
                (
                    start
                    for start in range(nearest, end)
                    if any(s.startswith(held[start:]) for s in self._stops)
                ),
                end,
            )
        self.is_stopped = end == found
        self._held = "" if self.is_stopped else held[end:]
        return held[:end]


async def character_offsets(decode, token_ids, text):
    """Returns where in `text` the character begins that each id is of.

    Exact for ids of valid text; ids of stray bytes are placed at the U+FFFD
    that stands for them.

    Args:
        decode: see `TextStream`.
        token_ids: list of int.
        text: str, their text.

    Returns:
        list of int, one an id.
    """
    distinct = list(dict.fromkeys(token_ids))
    texts = await decode([[token_id] for token_id in distinct])
    alone = dict(zip(distinct, texts, strict=True))
    windows = [
        (start, start + size)
        for start, token_id in enumerate(token_ids)
        if not _is_whole(alone[token_id])
        for size in range(2, _LONGEST_CHARACTER_TOKENS + 1)
        if start + size <= len(token_ids)
    ]
    texts = await decode([token_ids[start:end] for start, end in windows])
    joined = dict(zip(windows, texts, strict=True))
    offsets, offset = [], 0
    while len(offsets) < len(token_ids):
        start = len(offsets)
        end, piece = start + 1, alone[token_ids[start]]
        if not _is_whole(piece):
            ends = range(start + 2, start + 1 + _LONGEST_CHARACTER_TOKENS)
            whole = (end for end in ends if _is_whole(joined.get((start, end))))
            end = next(whole, start + 1)
            piece = joined.get((start, end), "\ufffd")
        offsets += [offset] * (end - start)
        if text.startswith(piece, offset):
            offset += len(piece)
    return offsets


def _is_whole(text):
    return text is not None and not any(mark in text for mark in UNFINISHED)
