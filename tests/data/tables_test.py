"""Owns the proof that tables are read in bounded memory, as they are.

What damaged tables give stands in rows_test.py.
"""

import gzip
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest

from kerasgpt.data.tables import csv_rows, parquet_rows
from kerasgpt.data.text_lines import Lines, Place, Stopped

ROWS = [
    {"id": str(i), "text": f'第{i}行, "quoted"\nand more'} for i in range(200)
]


def quoted(text):
    doubled = text.replace('"', '""')
    return f'"{doubled}"'


@pytest.fixture
def csv_file(tmp_path):
    path = tmp_path / "a.csv"
    lines = [f"{row['id']},{quoted(row['text'])}\n" for row in ROWS]
    path.write_text("id,text\n" + "".join(lines))
    return path


@pytest.fixture
def parquet_file(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, path, row_group_size=30)
    return path


def csv(path, choose=lambda columns: columns):
    place = Place(path)
    yield from csv_rows(place, Lines(place), choose, separator=",")


def parquet(path, choose=lambda columns: columns):
    yield from parquet_rows(Place(path), choose)


def test_rows_are_what_was_written(csv_file, parquet_file):
    assert [row for _, row in csv(csv_file)] == ROWS
    assert [row for _, row in parquet(parquet_file)] == ROWS
    assert next(csv(csv_file))[0] == f"{csv_file}, row 1"
    assert next(parquet(parquet_file))[0] == f"{parquet_file}, row 1"


def test_only_chosen_columns_are_read(csv_file, parquet_file):
    def choose(columns):
        assert columns == ["id", "text"]
        return ["text"]

    for found in (csv(csv_file, choose), parquet(parquet_file, choose)):
        assert next(found)[1] == {"text": ROWS[0]["text"]}


def test_columns_that_are_refused_stop_the_reading(csv_file, parquet_file):
    def refuse(columns):
        raise ValueError(f"none of {columns}")

    for found in (csv(csv_file, refuse), parquet(parquet_file, refuse)):
        with pytest.raises(Stopped, match="none of"):
            next(found)


def test_a_compressed_table_is_unpacked_to_disk(tmp_path, parquet_file):
    path = tmp_path / "b.parquet.gz"
    path.write_bytes(gzip.compress(parquet_file.read_bytes()))
    assert [row for _, row in parquet(path)] == ROWS


def test_memory_is_that_of_a_chunk(tmp_path):
    path = tmp_path / "long.csv"
    line = f"1,{'text ' * 200}\n"
    path.write_text("id,text\n" + line * 8_000)
    tracemalloc.start()
    count = sum(1 for _ in csv(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 8_000
    assert peak < path.stat().st_size / 2
