"""Owns the proof that files become rows, and what is damaged is told."""

import gzip
import json
import pathlib
import shutil
import sys

import pyarrow
import pyarrow.parquet
import pytest

from kerasgpt.config import InputError
from kerasgpt.data import rows, tables, text_lines
from kerasgpt.data.rows import (
    DOCUMENT_CHARACTERS,
    Skipped,
    cut,
    file_kind,
    read_rows,
    tfds_rows,
)

SHAKESPEARE = (
    pathlib.Path(__file__).parents[3]
    / "shared"
    / "data"
    / "tinyshakespeare.txt"
)
TEXTS = ["first", "第二", 'third, "quoted"\nin two lines', ""]


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        if isinstance(content, str):
            content = content.encode()
        path.write_bytes(content)
        return path

    return write


def read(path, columns=None):
    """Returns (rows, [(place in the file, reason)]) of a file."""
    found = list(read_rows(path, lambda names: columns or names))
    read = [item[1] for item in found if not isinstance(item, Skipped)]
    faults = [
        (item.location.removeprefix(str(path)).lstrip(", "), item.reason)
        for item in found
        if isinstance(item, Skipped)
    ]
    return read, faults


def json_lines(count, text="Document {}: 你好"):
    return "\n".join(
        json.dumps({"text": text.format(number)}, ensure_ascii=False)
        for number in range(count)
    )


def quoted(text):
    return '"' + text.replace('"', '""') + '"'


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", ".txt"),
        ("a.MD", ".md"),
        ("a.Json.GZ", ".json"),
        ("a.b.jsonl.zst", ".jsonl"),
        ("a.parquet.gz", ".parquet"),
        ("a.gz", ""),
        ("a.docx", ""),
        ("a", ""),
        (".txt", ""),
    ],
)
def test_the_suffix_says_how_a_file_is_read(name, kind):
    assert file_kind(name) == kind
    assert file_kind(pathlib.Path(name)) == kind


# Every kind of file, plain and compressed.


def as_file(kind, tmp_path):
    table = [
        {"id": str(index), "text": text} for index, text in enumerate(TEXTS)
    ]
    path = tmp_path / f"a{kind}"
    if kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path)
    elif kind == ".jsonl":
        path.write_text("\n".join(map(json.dumps, table)))
    elif kind == ".json":
        path.write_text(json.dumps(table, indent=1, ensure_ascii=False))
    else:
        comma = "\t" if kind == ".tsv" else ","
        lines = [
            comma.join(map(quoted, row.values()))
            for row in [{"id": "id", "text": "text"}, *table]
        ]
        path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("codec", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    "kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet"]
)
def test_every_kind_gives_the_same_rows(kind, codec, tmp_path):
    path = as_file(kind, tmp_path)
    if codec:
        packed = path.with_name(path.name + codec)
        content = path.read_bytes()
        packed.write_bytes(
            gzip.compress(content)
            if codec == ".gz"
            else pyarrow.compress(content, codec="zstd", asbytes=True)
        )
        path = packed
    read_back, faults = read(path)
    assert faults == []
    assert [row["text"] for row in read_back] == TEXTS
    assert [row["id"] for row in read_back] == ["0", "1", "2", "3"]


def test_only_the_chosen_columns_of_a_table_are_read(tmp_path):
    for kind in (".csv", ".parquet"):
        read_back, _ = read(as_file(kind, tmp_path), ["text"])
        assert read_back == [{"text": text} for text in TEXTS]


def test_a_table_whose_columns_are_refused_is_left_out(tmp_path):
    def refuse(columns):
        raise ValueError(f"no text among {columns}")

    for kind in (".csv", ".parquet"):
        path = as_file(kind, tmp_path)
        assert list(read_rows(path, refuse)) == [
            Skipped(str(path), "no text among ['id', 'text']")
        ]


def test_several_members_of_one_gzip_file_are_one_text(write):
    path = write("a.txt.gz", gzip.compress(b"one\n") + gzip.compress(b"two\n"))
    assert read(path) == ([{"text": "one\ntwo\n"}], [])


def test_more_rows_than_are_read_at_once(tmp_path):
    count = 3 * tables.ROWS_AT_ONCE + 1
    csv = tmp_path / "a.csv"
    csv.write_text("text\n" + "".join(f"t{i}\n" for i in range(count)))
    parquet = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"t{i}" for i in range(count)]})
    pyarrow.parquet.write_table(table, parquet, row_group_size=50)
    for path in (csv, parquet):
        read_back, faults = read(path)
        assert [row["text"] for row in read_back] == [
            f"t{i}" for i in range(count)
        ]
        assert faults == []


# Text.


def test_a_text_is_cut_at_lines_and_says_where(write):
    line = "0123456789 line\n"
    path = write("a.txt", "\ufeff" + line * 2000)
    found = list(read_rows(path, None))
    per_document = DOCUMENT_CHARACTERS // len(line)
    assert [location for location, _ in found] == [
        f"{path}, line {1 + number * per_document}"
        for number in range(len(found))
    ]
    assert "".join(row["text"] for _, row in found) == line * 2000


def test_a_line_longer_than_a_piece_is_cut_and_loses_no_character(
    write, monkeypatch
):
    # Pieces end within a character of three bytes.
    monkeypatch.setattr(rows, "PIECE_BYTES", 1000)
    text = "x" + "这是一行没有换行的文字，" * 3000
    for encoding in ("utf-8", "gb18030"):
        path = write("a.txt", text.encode(encoding))
        read_back, faults = read(path)
        assert "".join(row["text"] for row in read_back) == text
        assert faults == []
        assert all(len(row["text"]) <= DOCUMENT_CHARACTERS for row in read_back)


def test_a_document_with_invalid_bytes_is_left_out_alone(write):
    good = "good line\n" * 999
    path = write("a.txt", good.encode() + b"caf\xe9 au lait\n" + good.encode())
    read_back, faults = read(path)
    assert "".join(row["text"] for row in read_back) in (
        "good line\n" * kept for kept in range(900, 1998)
    )
    ((place, reason),) = faults
    assert place.startswith("line ")
    assert reason == (
        f"invalid UTF-8 at byte {len(good) + 3}; convert the file to UTF-8"
    )


def test_cutting_pieces_is_cutting_the_whole():
    text = "a line of text\n" * 3000 + "z" * 25_000
    pieces = text.splitlines(keepends=True)
    assert list(cut(pieces)) == list(cut([text]))
    assert "".join(cut([text])) == text


# JSON.


def test_a_malformed_line_is_left_out_and_reading_goes_on(write):
    path = write("a.jsonl", '{"text": "a"}\n{"text": \n\n{"text": "b"}\n[')
    read_back, faults = read(path)
    assert [row["text"] for row in read_back] == ["a", "b"]
    assert [place for place, _ in faults] == ["line 2", "line 5"]
    assert "malformed JSON at column" in faults[0][1]


def test_a_line_that_is_too_long_is_left_out_unread(write, monkeypatch):
    monkeypatch.setattr(rows, "LONGEST_ROW_BYTES", 200)
    long = json.dumps({"text": "x" * 1000})
    path = write("a.jsonl", f'{{"text": "a"}}\n{long}\n{{"text": "b"}}\n{long}')
    read_back, faults = read(path)
    assert [row["text"] for row in read_back] == ["a", "b"]
    assert faults == [
        ("line 2", "a line of more than 200 bytes"),
        ("line 4", "a line of more than 200 bytes"),
    ]


def test_a_list_gives_its_items_up_to_the_malformed_one(write):
    path = write("a.json", '[{"text": "a"},\n {"text": "b"}\n {"text": "c"}]')
    read_back, faults = read(path)
    assert [row["text"] for row in read_back] == ["a", "b"]
    assert faults == [
        ("line 3", "malformed JSON at column 2: Expecting ',' delimiter")
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('[{"text": "a"}', "Expecting ',' delimiter"),
        ('[{"text": "a"},', "Expecting value"),
        ('[{"text": "a"}] {"text": "b"}', "more after the end of the list"),
    ],
)
def test_the_end_of_a_list_matters(write, content, reason):
    read_back, ((place, told),) = read(write("a.json", content))
    assert [row["text"] for row in read_back] == ["a"]
    assert place == "line 1"
    assert reason in told


def test_an_item_that_is_too_long_ends_the_reading(write, monkeypatch):
    monkeypatch.setattr(rows, "LONGEST_ROW_BYTES", 500)
    monkeypatch.setattr(rows, "PIECE_BYTES", 64)
    path = write("a.json", json.dumps([{"text": "a"}, {"text": "x" * 2000}]))
    read_back, ((_, reason),) = read(path)
    assert read_back == [{"text": "a"}]
    assert "an item of more than 500 bytes" in reason


def test_items_may_be_longer_than_a_piece(write, monkeypatch):
    monkeypatch.setattr(rows, "PIECE_BYTES", 7)
    items = [{"text": "你好 " * length} for length in range(40)]
    path = write("a.json", json.dumps(items, indent=2, ensure_ascii=False))
    assert read(path) == (items, [])


def test_objects_over_several_lines_need_no_list(write):
    objects = [{"text": "a"}, {"text": "b\nc"}]
    content = "\n".join(json.dumps(row, indent=2) for row in objects)
    path = write("a.json", content)
    found = list(read_rows(path, None))
    assert [row for _, row in found] == objects
    assert [location for location, _ in found] == [
        f"{path}, line 1",
        f"{path}, line 4",
    ]


# Tables.


def test_a_row_with_too_many_fields_is_left_out(write):
    path = write("a.csv", "id,text\n1,one\n2,two,three\n3\n4,four\n")
    read_back, faults = read(path)
    assert [row["text"] for row in read_back] == ["one", "", "four"]
    assert faults == [("line 3", "expected 2 fields, saw 3")]


def test_a_table_whose_commas_are_no_separators_is_left_out(write):
    path = write("a.csv", "id,text\n1,Hello, world\n2,Good, bye\n")
    assert read(path) == (
        [],
        [("line 2", "more fields than the header; are texts quoted?")],
    )


def test_a_quote_that_is_never_closed_ends_the_reading(write):
    path = write("a.csv", 'text\n"one"\n"two\nthree\n')
    _, ((_, reason),) = read(path)
    assert "EOF inside string" in reason


def test_an_endless_row_is_not_read_to_its_end(write, monkeypatch):
    monkeypatch.setattr(tables, "LONGEST_ROW_BYTES", 10_000)
    path = write("a.csv", 'text\n"' + "never closed\n" * 500_000)
    _, ((place, reason),) = read(path)
    assert "is a quote never closed?" in reason
    assert int(place.removeprefix("line ")) < 100_000


def test_what_looks_like_no_value_is_text(write):
    path = write("a.csv", "text,n\nNA,1\nnull,2\n007,3\n")
    read_back, _ = read(path)
    assert [row["text"] for row in read_back] == ["NA", "null", "007"]


def test_tables_name_the_package_they_need(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"pip install kerasgpt\[tables\]"):
        read(write("a.csv", "text\na\n"))


def test_a_damaged_parquet_file_gives_the_rows_before(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"text {i}" * 20 for i in range(1000)]})
    pyarrow.parquet.write_table(
        table, path, row_group_size=100, compression="gzip"
    )
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(content)
    read_back, ((place, _),) = read(path)
    assert 0 < len(read_back) < 1000
    assert read_back == table.to_pylist()[: len(read_back)]
    assert place.startswith("row ")


@pytest.mark.parametrize("content", [b"PAR1 no table", b"short", b""])
def test_what_is_no_parquet_is_left_out(write, content):
    assert "no Parquet" in read(write("a.parquet", content))[1][0][1]


# Compressed files that are damaged.


@pytest.mark.parametrize("codec", [".gz", ".zst"])
def test_a_file_that_is_cut_off_gives_the_rows_before(write, codec):
    content = json_lines(20_000, "{} 你好").encode()
    packed = (
        gzip.compress(content)
        if codec == ".gz"
        else pyarrow.compress(content, codec="zstd", asbytes=True)
    )
    path = write(f"a.jsonl{codec}", packed[: len(packed) * 2 // 3])
    read_back, ((place, reason),) = read(path)
    assert 1000 < len(read_back) < 20_000
    assert place == f"line {len(read_back)}"
    assert reason == "cannot be read: Truncated compressed stream"


@pytest.mark.parametrize("codec", [".gz", ".zst"])
def test_what_is_not_compressed_is_left_out(write, codec):
    read_back, ((place, reason),) = read(write(f"a.txt{codec}", "a text"))
    assert read_back == []
    assert place == ""
    assert reason.startswith("cannot be read: ")


def test_a_file_that_may_not_be_read_is_left_out(write, monkeypatch):
    def refuse(path, *arguments, **options):
        raise PermissionError(13, "Permission denied")

    path = write("a.txt", "a text")
    monkeypatch.setattr(text_lines, "open_bytes", refuse)
    assert read(path) == ([], [("", "cannot be read: Permission denied")])


# TensorFlow Datasets.


@pytest.mark.skipif(
    not SHAKESPEARE.is_file(), reason="the text is not beside this checkout"
)
def test_a_dataset_is_read_from_a_manual_folder(tmp_path):
    (tmp_path / "manual").mkdir()
    # TFDS checks its hash: only the real file will do.
    shutil.copy(SHAKESPEARE, tmp_path / "manual" / "input.txt")
    ((location, row),) = tfds_rows(
        "tiny_shakespeare",
        data_dir=str(tmp_path / "data"),
        manual_dir=str(tmp_path / "manual"),
    )
    assert location == "tfds:tiny_shakespeare, example 1"
    assert len(row["text"]) == 1_003_854
    assert SHAKESPEARE.read_text().startswith(row["text"])


def test_messages_of_a_dataset_are_a_list():
    import numpy as np

    row = {
        "messages": {
            "role": np.array([b"user", b"assistant"], object),
            "content": np.array(["你好".encode(), b"Hi"], object),
        },
        "id": np.int64(3),
    }
    assert rows._plain(row) == {
        "messages": [
            {"role": "user", "content": "你好"},
            {"role": "assistant", "content": "Hi"},
        ],
        "id": 3,
    }
