"""Owns one file -> rows: text, JSON, datasets; tables by tables.py.

Not: what a row means (formats.py), or which files there are (sources.py).
"""

import json
import pathlib
import re

from kerasgpt.config import InputError
from kerasgpt.data.tables import csv_rows, parquet_rows
from kerasgpt.data.text_lines import (
    CODECS,
    LONGEST_ROW_BYTES,
    PIECE_BYTES,
    Lines,
    Place,
    Skipped,
    Stopped,
    first_line,
)

TEXT_SUFFIXES = (".txt", ".md")
ROW_SUFFIXES = (".json", ".jsonl")
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
SUFFIXES = TEXT_SUFFIXES + ROW_SUFFIXES + TABLE_SUFFIXES
TFDS_PREFIX = "tfds:"
# A text file is cut into documents of about this size, so that some of one
# file can be held out; few enough cuts to cost no context worth speaking of.
DOCUMENT_CHARACTERS = 10_000
JSON_SPACE = re.compile(r"[ \t\r\n]*")


def file_kind(path):
    """Returns the suffix that says how a file is read, or "".

    Example:
        >>> file_kind("a/B.JSONL.gz"), file_kind("a.csv"), file_kind("a.gz")
        ('.jsonl', '.csv', '')
    """
    path = pathlib.PurePath(str(path).lower())
    if path.suffix in CODECS:
        path = path.with_suffix("")
    return path.suffix if path.suffix in SUFFIXES else ""


def read_rows(path, choose_columns):
    """Yields (location, row) of a file, and Skipped for what is damaged.

    In memory of the size of one row, or of LONGEST_ROW_BYTES:

    - text: {"text": …}, at about DOCUMENT_CHARACTERS cut at a line; a single
      long line is cut too. A document with invalid bytes is left out;
    - JSON lines: a malformed line, one with invalid bytes, or one that is
      longer than LONGEST_ROW_BYTES, is left out, and reading goes on;
    - a JSON list, or objects over several lines: reading stops where it is
      malformed or an item longer than LONGEST_ROW_BYTES, what came before is
      kept;
    - CSV, TSV: a row with too many fields is left out, one with too few is
      filled up with empty ones; reading stops where a quote never ends;
    - Parquet: reading stops where it is damaged;
    - compressed: reading stops where the file is cut off or damaged.

    Text is UTF-8, or UTF-16 with its mark, or GB 18030. The opening of a file
    decides: what is no UTF-8 there, and everyday Chinese in GB 18030, is
    that. A line that is wrong in the encoding of its file is tried in the
    other one.

    Args:
        path: pathlib.Path of a file of a known kind.
        choose_columns: function of a table's columns, a list of str. Returns
            those to read, or raises ValueError, and the table is left out.

    Yields:
        (str, row), or Skipped.
    """
    kind = file_kind(path)
    place = Place(path)
    try:
        if kind == ".parquet":
            yield from parquet_rows(place, choose_columns)
            return
        lines = Lines(place)
        if kind in TEXT_SUFFIXES:
            yield from _documents(place, lines)
        elif kind in ROW_SUFFIXES:
            yield from _json_rows(place, lines)
        else:
            yield from csv_rows(
                place,
                lines,
                choose_columns,
                separator="\t" if kind == ".tsv" else ",",
            )
    except Stopped as error:
        yield Skipped(str(place), str(error))
    except (OSError, UnicodeError) as error:
        # Of the system, or of a codec: "Truncated compressed stream".
        reason = getattr(error, "strerror", "") or first_line(error)
        yield Skipped(str(place), f"cannot be read: {reason}")


def cut(lines):
    r"""Yields texts of about DOCUMENT_CHARACTERS, cut at ends of lines.

    Args:
        lines: iterable of str, lines or longer pieces of one text.

    Example:
        >>> [len(text) for text in cut(["a" * 9_000 + "\n", "b" * 12_000])]
        [9001, 10000, 2000]
    """
    for _, text, _ in _cut((1, line, "") for line in lines):
        yield text


def tfds_rows(name, *, data_dir="", manual_dir=""):
    """Yields (location, row) of the training split of a TFDS dataset.

    Args:
        name: str, as `tensorflow_datasets.load` takes it.
        data_dir: str, folder of prepared datasets; "" = TFDS's own.
        manual_dir: str, folder with files that were fetched by hand, such as
            tiny_shakespeare's input.txt; nothing is downloaded then.

    Raises:
        InputError: if it cannot be loaded.
    """
    import tensorflow_datasets

    options = {}
    if manual_dir:
        options["download_and_prepare_kwargs"] = {
            "download_config": tensorflow_datasets.download.DownloadConfig(
                manual_dir=manual_dir
            )
        }
    try:
        dataset = tensorflow_datasets.load(
            name, split="train", data_dir=data_dir or None, **options
        )
    except Exception as error:
        # The builders raise all kinds; the first line says what is wrong.
        raise InputError(f"{TFDS_PREFIX}{name}: {first_line(error)}") from error
    for index, example in enumerate(
        tensorflow_datasets.as_numpy(dataset), start=1
    ):
        row = {key: _plain(value) for key, value in example.items()}
        yield f"{TFDS_PREFIX}{name}, example {index}", row


def _documents(place, lines):
    for number, text, fault in _cut(lines.pieces(PIECE_BYTES)):
        location = place.at("line", number)
        if fault:
            yield Skipped(location, fault)
        elif text.strip():
            yield location, {"text": text}


def _cut(pieces):
    """Yields (line number, text, first fault) of documents."""
    parts, size, first_line, first_fault = [], 0, 1, ""
    for number, piece, fault in pieces:
        for line in piece.splitlines(keepends=True):
            for start in range(0, len(line), DOCUMENT_CHARACTERS):
                part = line[start : start + DOCUMENT_CHARACTERS]
                if parts and size + len(part) > DOCUMENT_CHARACTERS:
                    yield first_line, "".join(parts), first_fault
                    parts, size, first_fault = [], 0, ""
                if not parts:
                    first_line = number
                parts.append(part)
                size += len(part)
                first_fault = first_fault or fault
    if parts:
        yield first_line, "".join(parts), first_fault


def _json_rows(place, lines):
    start = lines.opening.lstrip()
    is_list = start.startswith("[")
    if is_list or (
        file_kind(place.path) == ".json" and not _is_json(start.splitlines())
    ):
        yield from _json_items(place, lines, is_list=is_list)
        return
    is_rest = False
    for number, line, fault in lines.pieces(LONGEST_ROW_BYTES):
        location = f"{place.path}, line {number}"
        was_rest, is_rest = is_rest, _is_cut(line)
        if was_rest:
            continue
        if is_rest:
            fault = f"a line of more than {LONGEST_ROW_BYTES:,} bytes"
        if fault:
            yield Skipped(location, fault)
        elif line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                column = getattr(error, "colno", 1)
                yield Skipped(location, _malformed(error, column))
                continue
            yield location, row


def _is_cut(line):
    """Returns whether the reader cut a line because it was too long."""
    return not line.endswith("\n") and len(line.encode("utf-8", "replace")) > (
        LONGEST_ROW_BYTES - 8
    )


def _is_json(lines):
    try:
        json.loads(lines[0])
    except (ValueError, RecursionError, IndexError):
        return False
    return True


def _malformed(error, column):
    reason = getattr(error, "msg", "nested too deeply")
    return f"malformed JSON at column {column}: {reason}"


def _json_items(place, lines, *, is_list):
    """Yields rows that stand in a list, or one after the other."""
    parser = _JSONParser(lines.pieces(PIECE_BYTES))
    if is_list:
        parser.skip("[")
    unit = "item" if is_list else "line"
    index = 0
    while not parser.is_at_end("]" if is_list else ""):
        index += 1
        try:
            if is_list and index > 1:
                parser.skip(",")
            line = parser.line
            row = parser.read_value()
        except (ValueError, RecursionError) as error:
            location = f"{place.path}, line {parser.line}"
            yield Skipped(location, _malformed(error, parser.column))
            return
        yield place.at(unit, index if is_list else line), row
    if is_list:
        parser.skip("]")
        if not parser.is_at_end(""):
            location = f"{place.path}, line {parser.line}"
            yield Skipped(location, "more after the end of the list")


class _JSONParser:
    """Reads one JSON value after the other from pieces of text.

    Stands for ijson, which would be one package more for these lines.

    Attributes:
        line, column: int, from 1, where the last step began or failed.
    """

    def __init__(self, pieces):
        self.pieces = pieces
        self.decoder = json.JSONDecoder()
        self.text, self.position, self.is_complete = "", 0, False
        self.line, self.column = 1, 1

    def skip(self, sign):
        """Moves behind a sign that must come next."""
        self._skip_space()
        if not self.text.startswith(sign, self.position):
            raise json.JSONDecodeError(
                f"Expecting {sign!r} delimiter", self.text, self.position
            )
        self._move_to(self.position + len(sign))

    def is_at_end(self, sign):
        """Returns whether the text, or `sign`, comes next."""
        self._skip_space()
        if self.position == len(self.text):
            # Of a list that never ends, `read_value` tells.
            return not sign
        return bool(sign) and self.text.startswith(sign, self.position)

    def read_value(self):
        """Returns the value that comes next."""
        self._skip_space()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.position)
            except ValueError as error:
                if self._read_more():
                    continue
                if not self.is_complete:
                    raise json.JSONDecodeError(
                        f"an item of more than {LONGEST_ROW_BYTES:,} bytes",
                        "",
                        0,
                    ) from error
                self._move_to(error.pos)
                raise
            if end < len(self.text) or not self._read_more():
                self._move_to(end)
                return value

    def _skip_space(self):
        while True:
            end = JSON_SPACE.match(self.text, self.position).end()
            self._move_to(end)
            if end < len(self.text) or not self._read_more():
                return

    def _move_to(self, position):
        breaks = self.text.count("\n", self.position, position)
        self.line += breaks
        if breaks:
            self.column = position - self.text.rfind("\n", 0, position)
        else:
            self.column += position - self.position
        self.position = position

    def _read_more(self):
        """Reads as much as there is unread, returns whether there was more."""
        unread = len(self.text) - self.position
        if self.is_complete or unread > LONGEST_ROW_BYTES:
            return False
        parts, size = [self.text[self.position :]], 0
        while size <= unread:
            _, piece, _ = next(self.pieces, (0, "", ""))
            if not piece:
                self.is_complete = True
                break
            parts.append(piece)
            size += len(piece)
        self.text, self.position = "".join(parts), 0
        return size > 0


def _plain(value):
    """Returns what TFDS gives as texts, lists and dicts.

    Messages come as {"role": […], "content": […]} and leave as a list.
    """
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        columns = {key: _plain(item) for key, item in value.items()}
        if all(isinstance(column, list) for column in columns.values()):
            return [
                dict(zip(columns, items, strict=True))
                for items in zip(*columns.values(), strict=True)
            ]
        return columns
    return value
