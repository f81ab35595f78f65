"""Owns the proof that shards are whole, named by content and read as written.

Damaged and missing shards stand in preparation_test.py.
"""

import json
import subprocess

import pytest

from kerasgpt.config import InputError
from kerasgpt.data.preparation import SplitConfig
from kerasgpt.data.prepared import (
    RowWriter,
    ShardWriter,
    content_key,
    is_prepared,
    read_prepared,
    read_rows_of,
    split_of,
    write_prepared_manifest,
)
from kerasgpt.data.sources import Document, find_inputs, stream_documents

ROWS = [{"text": f'{n} 你好\n"', "source": "s"} for n in range(50)]


def write(folder, shard_bytes=10**6, split="train"):
    writer = ShardWriter(folder, "documents", split, shard_bytes=shard_bytes)
    for row in ROWS:
        writer.write(row)
    writer.close()
    return writer.files


def test_rows_come_back(tmp_path):
    files = write(tmp_path, shard_bytes=500)
    assert len(files) > 3
    write_prepared_manifest(tmp_path, files)
    assert [row for _, row in read_prepared(tmp_path)] == ROWS
    assert {split for split, _ in read_prepared(tmp_path)} == {"train"}
    assert list(read_prepared(tmp_path, splits=("test",))) == []
    assert list(read_prepared(tmp_path, kinds=("chats",))) == []


def test_a_writer_that_is_given_up_says_nothing(tmp_path, capfd):
    with pytest.raises(KeyError), RowWriter(tmp_path / "rows") as writer:
        writer.write({"text": "half"})
        raise KeyError
    del writer
    assert capfd.readouterr() == ("", "")


def test_equal_rows_give_equal_names(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    assert write(tmp_path / "a") == write(tmp_path / "b")


def test_the_manifest_decides_what_there_is(tmp_path):
    first = write(tmp_path, shard_bytes=500)
    write_prepared_manifest(tmp_path, first)
    # Written, but not listed yet: the folder is what it was.
    second = write(tmp_path)
    assert len([*read_prepared(tmp_path)]) == len(ROWS)
    write_prepared_manifest(tmp_path, second)
    assert {path.name for path in tmp_path.glob("*.zst")} == set(second)


def test_inputs_read_the_training_split_only(tmp_path):
    files = write(tmp_path) | write(tmp_path, split="validation")
    write_prepared_manifest(tmp_path, files)
    (one,), _ = find_inputs([tmp_path])
    assert "documents-train" in one.path
    documents = [
        item
        for item in stream_documents([tmp_path])
        if isinstance(item, Document)
    ]
    assert [document.text for document in documents] == [
        row["text"] for row in ROWS
    ]


def test_any_zstd_reads_a_shard(tmp_path):
    with RowWriter(tmp_path / "a.jsonl.zst") as writer:
        writer.write(ROWS[0])
    assert list(read_rows_of(writer.path)) == ROWS[:1]
    line = json.dumps(ROWS[0], ensure_ascii=False) + "\n"
    assert writer.num_bytes == len(line.encode())
    try:
        seen = subprocess.run(
            ["zstdcat", writer.path], capture_output=True, check=True
        ).stdout
    except FileNotFoundError:
        pytest.skip("there is no zstdcat")
    assert len(seen) == writer.num_bytes


def test_another_folder_is_no_prepared_data(tmp_path):
    assert not is_prepared(tmp_path)
    (tmp_path / "manifest.json").write_text('{"files": {}}')
    assert not is_prepared(tmp_path)
    with pytest.raises(InputError, match="holds no prepared data"):
        list(read_prepared(tmp_path))


def test_places_are_cut_into_splits():
    config = SplitConfig(validation_fraction=0.1, test_fraction=0.2)
    assert [
        split_of(place, config) for place in (0, 0.09, 0.1, 0.29, 0.31)
    ] == [
        "validation",
        "validation",
        "test",
        "test",
        "train",
    ]


def test_keys_differ_where_their_parts_do():
    assert content_key("ab", "c") != content_key("a", "bc")
    assert content_key("a") == content_key("a")
