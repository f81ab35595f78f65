"""Owns bytes of a file -> lines of text: decompressing and decoding.

Not: what stands in the lines (rows.py).
"""

import codecs
import dataclasses
import io
import pathlib

import pyarrow

from kerasgpt.data.languages import is_everyday_chinese

# Suffixes of compressed files -> pyarrow's name of the codec.
CODECS = {".gz": "gzip", ".zst": "zstd"}
# Read at once; a longer line of plain text is cut here, which loses nothing.
PIECE_BYTES = 2**20
# What one line of JSON, one item of a list, or the rows of a table read at
# once may take: enough for a book, and one core's share of a small machine.
LONGEST_ROW_BYTES = 16 * 2**20
# Decompressed at once: what comes after the last whole one is lost where a
# file is cut off.
UNPACKED_BYTES = 2**13
# What decides the encoding of a file.
OPENING_BYTES = 2**16
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Something that was left out: where it stands, and the rule it breaks.

    Attributes:
        location: str, a file, and its line, item or row where known.
        reason: str, one line.
    """

    location: str
    reason: str


class Stopped(Exception):
    """What ends the reading of a file; the text is the reason."""


class Place:
    """Where reading stands: a file, and a line, item or row of it."""

    def __init__(self, path):
        self.path = path
        self.unit, self.number = "", 0

    def at(self, unit, number):
        self.unit, self.number = unit, number
        return str(self)

    def __str__(self):
        where = f", {self.unit} {self.number}" if self.unit else ""
        return f"{self.path}{where}"


def open_bytes(path):
    """Returns a binary file, decompressed if the suffix says so."""
    codec = CODECS.get(pathlib.Path(str(path).lower()).suffix)
    if codec is None:
        return open(path, "rb", buffering=PIECE_BYTES)
    return io.BufferedReader(
        pyarrow.input_stream(str(path), compression=codec), UNPACKED_BYTES
    )


class Lines:
    """Lines of a file as text, with the reason where one cannot be decoded.

    Attributes:
        opening: str, how the text begins.
    """

    def __init__(self, place):
        self.place = place
        self.is_utf16 = False
        opening = self._read_opening()
        # With nothing behind its mark a file may be anything.
        self.is_utf16 = opening.startswith(UTF16_MARKS) and len(opening) > 2
        if self.is_utf16:
            opening = self._read_opening()
        elif b"\x00" in opening[:8192]:
            raise Stopped("is a binary file; text is needed")
        has_mark = opening.startswith(codecs.BOM_UTF8)
        self.mark_bytes = len(codecs.BOM_UTF8) if has_mark else 0
        self.attempts = UTF8_ATTEMPTS
        is_utf8 = _decodes(opening, *UTF8_ATTEMPTS[0], final=False)
        if not is_utf8 and _decodes(opening, *GB18030_ATTEMPTS[0], final=False):
            self.attempts = GB18030_ATTEMPTS
        self.opening, _, _ = self._decode(
            opening[self.mark_bytes :], 0, final=False
        )

    def pieces(self, longest):
        """Yields (line number, text, fault) of lines, or parts of long ones.

        Args:
            longest: int, bytes read at once.
        """
        number, offset, rest, is_blank = 1, self.mark_bytes, b"", True
        with self._open() as file:
            file.read(self.mark_bytes)
            while data := file.readline(longest):
                self.place.at("line", number)
                is_whole = data.endswith(b"\n") or len(data) < longest
                data = rest + data
                text, rest, fault = self._decode(data, offset, final=is_whole)
                offset += len(data) - len(rest)
                is_blank = is_blank and not text.strip()
                yield number, text, fault
                number += data.endswith(b"\n")
        if is_blank:
            self.place.at("", 0)
            raise Stopped("is empty")

    def _read_opening(self):
        opening = b""
        with self._open() as file:
            try:
                while len(opening) < OPENING_BYTES and (part := file.read1()):
                    opening += part
            except OSError:
                # What can be read will be; then the error comes again.
                if not opening:
                    raise
        return opening

    def _open(self):
        file = open_bytes(self.place.path)
        if not self.is_utf16:
            return file
        return io.BufferedReader(
            pyarrow.transcoding_input_stream(
                pyarrow.PythonFile(file), "utf-16", "utf-8"
            ),
            PIECE_BYTES,
        )

    def _decode(self, data, offset, *, final):
        """Returns (text, bytes left over, fault)."""
        if data.isascii():
            return data.decode("ascii"), b"", ""
        for encoding, is_plausible in self.attempts:
            decoded = _decodes(data, encoding, is_plausible, final=final)
            if decoded:
                return *decoded, ""
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            fault = (
                f"invalid UTF-8 at byte {offset + error.start}; convert the "
                f"file to UTF-8"
            )
        return data.decode("utf-8", "surrogateescape"), b"", fault


def _always(text):
    return True


def _is_plausible(text):
    return text.isascii() or is_everyday_chinese(text)


# (encoding, whether a text may be what it gives), in the order tried.
UTF8_ATTEMPTS = (("utf-8", _always), ("gb18030", is_everyday_chinese))
GB18030_ATTEMPTS = (
    ("gb18030", _is_plausible),
    ("utf-8", _always),
    ("gb18030", _always),
)


def _decodes(data, encoding, is_plausible, *, final):
    """Returns (text, bytes of a character that goes on), or None."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        text = decoder.decode(data, final)
    except UnicodeDecodeError:
        return None
    return (text, decoder.getstate()[0]) if is_plausible(text) else None


def first_line(error):
    r"""Returns the first line of what an exception says, or its name.

    Example:
        >>> first_line(ValueError("no number\nfor x")), first_line(OSError())
        ('no number', 'OSError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
