"""Owns tables -> rows: CSV through pandas, Parquet through pyarrow.

Not: which columns are wanted (sources.py).
"""

import re
import shutil
import tempfile
import warnings

import pyarrow
import pyarrow.parquet

from kerasgpt.config import InputError
from kerasgpt.data.text_lines import (
    LONGEST_ROW_BYTES,
    PIECE_BYTES,
    Skipped,
    Stopped,
    first_line,
    open_bytes,
)

ROWS_AT_ONCE = 64
BAD_LINE = re.compile(r"Skipping line (\d+): (.*)")


def csv_rows(place, lines, choose_columns, *, separator):
    """Yields rows of a CSV file, and its broken ones as Skipped."""
    try:
        import pandas
    except ImportError as error:
        raise InputError(
            f"{place.path}: tables need pandas; pip install kerasgpt[tables]."
        ) from error
    feed = _Feed(lines)
    index = 0
    place.at("row", 1)
    chunks = None
    while True:
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always", pandas.errors.ParserWarning)
            try:
                if chunks is None:
                    chunks = pandas.read_csv(
                        feed,
                        sep=separator,
                        index_col=False,
                        dtype=str,
                        keep_default_na=False,
                        on_bad_lines="warn",
                        chunksize=ROWS_AT_ONCE,
                    )
                feed.start_chunk()
                chunk = next(chunks)
            except StopIteration:
                chunk = None
            except (ValueError, pandas.errors.ParserError) as error:
                raise Stopped(feed.fault or first_line(error)) from error
        told = "\n".join(str(note.message) for note in notes)
        if "Length of header" in told:
            # Cut rows would be silent: what is behind a comma, no field.
            place.at("line", 2)
            raise Stopped("more fields than the header; are texts quoted?")
        for line, reason in BAD_LINE.findall(told):
            yield Skipped(f"{place.path}, line {line}", reason)
        if chunk is None:
            return
        if index == 0:
            try:
                columns = choose_columns([*map(str, chunk.columns)])
            except ValueError as error:
                place.at("", 0)
                raise Stopped(str(error)) from error
        for row in chunk[columns].to_dict("records"):
            index += 1
            yield place.at("row", index), row


class _Feed:
    """A text file for pandas that refuses to feed it one endless row.

    Attributes:
        fault: str, why it refused, or "".
    """

    def __init__(self, lines):
        self.pieces = lines.pieces(PIECE_BYTES)
        self.fault = ""
        self.rest = ""
        self.fed = 0

    def start_chunk(self):
        """Counts from here what the rows of the next chunk take."""
        self.fed = 0

    def read(self, size=-1):
        """Returns up to `size` characters, "" at the end."""
        if not self.rest:
            _, self.rest, _ = next(self.pieces, (0, "", ""))
        text, self.rest = self.rest[:size], self.rest[size:]
        self.fed += len(text)
        if self.fed > 2 * LONGEST_ROW_BYTES:
            self.fault = (
                f"more than {2 * LONGEST_ROW_BYTES:,} bytes in at most "
                f"{ROWS_AT_ONCE} rows; is a quote never closed?"
            )
            raise ValueError(self.fault)
        return text

    def __iter__(self):
        return iter(self.read, "")


def parquet_rows(place, choose_columns):
    """Yields rows of a Parquet file."""
    with _seekable(place.path) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file, buffer_size=PIECE_BYTES)
        except pyarrow.ArrowException as error:
            raise Stopped(f"no Parquet: {first_line(error)}") from error
        try:
            columns = choose_columns(table.schema_arrow.names)
        except ValueError as error:
            raise Stopped(str(error)) from error
        index = 0
        place.at("row", 1)
        try:
            for batch in table.iter_batches(ROWS_AT_ONCE, columns=columns):
                for row in batch.to_pylist():
                    index += 1
                    yield place.at("row", index), row
        except pyarrow.ArrowException as error:
            place.at("row", index + 1)
            raise Stopped(f"damaged: {first_line(error)}") from error


def _seekable(path):
    """Returns an open file that can be read in any order."""
    file = open_bytes(path)
    if file.seekable():
        return file
    # Closed, and gone, by who asked for it.
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115
    with file:
        shutil.copyfileobj(file, unpacked, PIECE_BYTES)
    unpacked.seek(0)
    return unpacked
