"""Owns the proof that raw files become prepared data, once and the same."""

import gzip
import json
import os
import pathlib
import random
import re

import pyarrow
import pyarrow.parquet
import pytest

from kerasgpt.config import InputError
from kerasgpt.data import prepared, staging
from kerasgpt.data.preparation import PreparationConfig, prepare_files
from kerasgpt.data.prepared import read_prepared, read_rows_of, row_text

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"
SYLLABLES = ("ba", "do", "fi", "gu", "ke", "lo", "mi", "nu", "pa", "ro")


def english(number):
    draw = random.Random(number)
    chosen = ["".join(draw.choices(SYLLABLES, k=3)) for _ in range(14)]
    return f"Story {number}: the {' '.join(chosen)} of that and {number * 7}."


def chinese(number):
    draw = random.Random(number)
    signs = "".join(chr(draw.randrange(0x4E00, 0x5500)) for _ in range(30))
    return f"第{number}个故事在这里，{signs}，一共有{number * 7}页。"


EVERYDAY = "从前有一座山，山上有一座庙，庙里有一个老和尚在讲故事。"


def lines(texts):
    return "".join(
        json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts
    )


@pytest.fixture
def raw(tmp_path):
    """Returns a folder of English and Chinese documents and chats."""
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "en.jsonl").write_text(lines(map(english, range(120))))
    with gzip.open(folder / "zh.jsonl.gz", "wt") as file:
        file.write(lines(map(chinese, range(80))))
    chats = [
        {"instruction": f"What is {n} plus {n}?", "output": f"It is {n + n}."}
        for n in range(30)
    ]
    (folder / "chats.json").write_text(json.dumps(chats))
    return folder


def run(paths, output, *settings, **options):
    config = PreparationConfig().override(["num_workers=1", *settings])
    options.setdefault("tell", lambda line: None)
    return prepare_files(
        [str(path) for path in paths], output, config, **options
    )


def texts(folder, **options):
    return [row_text(row) for _, row in read_prepared(folder, **options)]


def left_out(folder):
    return list(read_rows_of(folder / "left_out.jsonl.zst"))


def files(folder):
    """Returns name -> content of what a folder delivers."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file()
    }


def test_mixed_files_become_documents_and_chats(raw, tmp_path):
    manifest = run([raw], tmp_path / "out", "split.validation_fraction=0.2")
    found = list(read_prepared(tmp_path / "out"))
    chats = [row for _, row in found if "messages" in row]
    documents = [row for _, row in found if "text" in row]
    assert len(chats) == 30
    assert {row["text"] for row in documents} == {
        *map(english, range(120)),
        *map(chinese, range(80)),
    }
    assert {row["language"] for row in documents} == {"en", "zh"}
    assert documents[0]["location"].startswith(str(raw))
    splits = manifest["statistics"]["splits"]
    assert splits["train"]["documents"]["documents"] + (
        splits["validation"]["documents"]["documents"]
    ) == len(documents)
    assert 20 < splits["validation"]["documents"]["documents"] < 70
    assert len(manifest["inputs"]) == 3


def test_processes_and_one_process_give_the_same(raw, tmp_path):
    run([raw], tmp_path / "one")
    run([raw], tmp_path / "three", "num_workers=3")
    assert files(tmp_path / "one") == files(tmp_path / "three")


def test_a_second_run_reads_nothing_again(raw, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run([raw], out)
    before = files(out)

    def fail(*_):
        raise AssertionError("was staged before")

    monkeypatch.setattr(staging, "stream_input", fail)
    told = []
    run([raw], out, tell=told.append)
    assert files(out) == before
    assert told[0] == "3 inputs were cleaned before."


def test_one_changed_file_is_the_only_one_read_again(
    raw, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    run([raw], out)
    (raw / "en.jsonl").write_text(lines(map(english, range(130))))
    read, stream = [], staging.stream_input

    def spy(one, config):
        read.append(pathlib.Path(one.path).name)
        return stream(one, config)

    monkeypatch.setattr(staging, "stream_input", spy)
    run([raw], out)
    assert read == ["en.jsonl"]
    assert set(map(english, range(130))) < set(texts(out))
    # And the folder is what it were without a past; the old shard is gone.
    monkeypatch.undo()
    run([raw], tmp_path / "fresh")
    assert files(out) == files(tmp_path / "fresh")


def test_an_interrupted_run_goes_on(raw, tmp_path, monkeypatch):
    out = tmp_path / "out"
    stage, staged = staging.stream_input, []

    def stop(one, config):
        if len(staged) == 2:
            raise KeyboardInterrupt
        staged.append(one.path)
        return stage(one, config)

    monkeypatch.setattr(staging, "stream_input", stop)
    with pytest.raises(KeyboardInterrupt):
        run([raw], out)
    assert not (out / "manifest.json").exists()
    monkeypatch.undo()
    told = []
    run([raw], out, tell=told.append)
    assert told[0] == "2 inputs were cleaned before."
    run([raw], tmp_path / "fresh")
    assert files(out) == files(tmp_path / "fresh")


def test_other_settings_are_refused_with_the_reason(raw, tmp_path):
    out = tmp_path / "out"
    run([raw], out)
    before = files(out)
    with pytest.raises(InputError) as error:
        run([raw], out, "cleaning.quality.min_words=5")
    assert "cleaning.quality.min_words was None, is 5" in str(error.value)
    assert "overwrite=true" in str(error.value)
    assert files(out) == before
    run([raw], out, "cleaning.quality.min_words=5", "overwrite=true")
    assert files(out) != before
    # How many processes there are is no such setting.
    run([raw], out, "cleaning.quality.min_words=5", "num_workers=2")


def test_another_word_list_is_another_setting(raw, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("lamp\n")
    setting = f"cleaning.word_list={words}"
    run([raw], tmp_path / "out", setting)
    assert not any("lamp" in text for text in texts(tmp_path / "out"))
    words.write_text("bridge\n")
    with pytest.raises(InputError, match="word_list sha256 was"):
        run([raw], tmp_path / "out", setting)


def test_a_folder_with_other_files_is_refused(raw, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_text("years of work")
    with pytest.raises(InputError, match="holds other files"):
        run([raw], tmp_path / "mine", "overwrite=true")
    with pytest.raises(InputError, match="lies within the input"):
        run([raw], raw)
    run([raw], tmp_path / "out")
    with pytest.raises(InputError, match="lies within the input"):
        run([tmp_path / "out"], tmp_path / "out")


# Duplicates, evaluation, splits, mixture.


def test_duplicates_within_and_across_inputs_keep_their_origin(tmp_path):
    long = " ".join(english(n) for n in range(8))
    (tmp_path / "a.jsonl").write_text(lines([english(1), english(2), long]))
    (tmp_path / "b.jsonl").write_text(
        lines([english(2).upper(), long + " The end.", english(3)])
    )
    out = tmp_path / "out"
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    manifest = run(paths, out)
    assert texts(out) == [english(1), english(2), long, english(3)]
    assert [
        (row["location"], row["rule"], row["of"]) for row in left_out(out)
    ] == [
        (f"{paths[1]}, line 1", "exact_duplicate", f"{paths[0]}, line 2"),
        (f"{paths[1]}, line 2", "near_duplicate", f"{paths[0]}, line 3"),
    ]
    clusters = manifest["statistics"]["clusters"]
    assert clusters["sizes"] == {"2": 2}
    assert clusters["largest"][0]["location"] == f"{paths[0]}, line 2"
    manifest = run(paths, tmp_path / "exact", "remove_near_duplicates=false")
    assert manifest["statistics"]["dropped"].keys() == {"exact_duplicate"}


def test_what_is_asked_in_evaluation_is_kept_out(raw, tmp_path):
    evaluation = tmp_path / "evaluation.jsonl"
    evaluation.write_text(lines([f"Q: {english(5)} A:", chinese(9), "Yes."]))
    setting = f"contamination.paths={evaluation}"
    out = tmp_path / "out"
    manifest = run([raw], out, setting)
    assert not {english(5), chinese(9)} & set(texts(out))
    assert {english(6), chinese(8)} < set(texts(out))
    found = manifest["statistics"]["contamination"]
    assert {row["item"] for row in found} == {
        f"{evaluation}, line 1",
        f"{evaluation}, line 2",
    }
    assert (
        f"{raw}/en.jsonl, line 6"
        in found[-1]["documents"] + (found[0]["documents"])
    )
    manifest = run(
        [raw], tmp_path / "told", setting, "contamination.is_dropped=false"
    )
    assert english(5) in texts(tmp_path / "told")
    assert manifest["statistics"]["contamination"] == found


def test_a_document_keeps_its_split_when_data_grow(raw, tmp_path):
    settings = ["split.validation_fraction=0.3", "split.test_fraction=0.2"]
    run([raw / "en.jsonl"], tmp_path / "small", *settings)
    run([raw / "zh.jsonl.gz", raw / "en.jsonl"], tmp_path / "large", *settings)
    for split in ("train", "validation", "test"):
        small = texts(tmp_path / "small", splits=(split,))
        large = texts(tmp_path / "large", splits=(split,))
        assert small and set(small) < set(large)


def test_weights_say_how_often_a_source_is_learned_from(raw, tmp_path):
    weights = "mixture.weights=en.jsonl=2.5,zh.jsonl.gz=0.5"
    paths = [raw / "en.jsonl", raw / "zh.jsonl.gz", raw / "chats.json"]
    manifest = run(paths, tmp_path / "out", weights)
    sources = manifest["statistics"]["sources"]
    count = {
        pathlib.Path(source).name: splits["train"]["documents"]
        for source, splits in sources.items()
    }
    assert 2.3 * 120 * 0.9 < count["en.jsonl"] < 2.7 * 120
    assert 0.3 * 80 < count["zh.jsonl.gz"] < 0.7 * 80
    assert count["chats.json"] >= 25
    with pytest.raises(InputError, match="there is no input wiki"):
        run(paths, tmp_path / "none", "mixture.weights=wiki=2")


def test_variations_are_of_the_training_split_only(raw, tmp_path):
    settings = ["split.validation_fraction=0.3", "augmentation.swap_rate=0.2"]
    run([raw], tmp_path / "plain", *settings)
    varied = tmp_path / "varied"
    run([raw], varied, *settings, "augmentation.num_variations=2")
    for split in ("train", "validation"):
        before = texts(tmp_path / "plain", splits=(split,))
        after = texts(varied, splits=(split,))
        assert set(before) <= set(after)
        if split == "validation":
            assert after == before
        else:
            assert 2 * len(before) < len(after) <= 3 * len(before)


def test_shards_are_cut_and_their_order_is_kept(raw, tmp_path):
    run([raw / "en.jsonl"], tmp_path / "whole", "split.validation_fraction=0")
    cut = tmp_path / "cut"
    run(
        [raw / "en.jsonl"],
        cut,
        "split.validation_fraction=0",
        "shard_bytes=2000",
    )
    assert len(list(cut.glob("documents-train-*"))) > 5
    assert texts(cut) == texts(tmp_path / "whole")


# Bad inputs.


def test_bad_files_are_named_counted_and_put_aside(raw, tmp_path):
    packed = gzip.compress(lines(map(english, range(200, 2200))).encode())
    (raw / "cut.jsonl.gz").write_bytes(packed[: len(packed) * 2 // 3])
    (raw / "broken.csv").write_text(
        f"id,text\n1,{english(4000)}\n2,a,b,c\n3,{english(4001)}\n"
    )
    (raw / "mixed.txt").write_bytes(
        english(4002).encode() + b"\nbad \xff\xfe bytes\n"
    )
    (raw / "gb.txt").write_bytes(EVERYDAY.encode("gb18030"))
    (raw / "long.jsonl").write_text(
        lines([english(4004), "x" * (17 * 2**20), english(4005)])
    )
    pyarrow.parquet.write_table(
        pyarrow.table({"price": [1.5]}), raw / "other.parquet"
    )
    (raw / "empty.txt").write_text("")
    (raw / "loop").symlink_to(raw)
    (raw / "nowhere.txt").symlink_to(raw / "missing.txt")
    out = tmp_path / "out"
    manifest = run([raw], out, "num_workers=2")
    found = set(texts(out))
    assert {english(n) for n in (4000, 4001, 4004, 4005)} <= found
    assert EVERYDAY in found
    assert sum(f"Story {n}:" in " ".join(found) for n in range(200, 2200)) > 500
    told = {}
    for row in left_out(out):
        path, _, place = row["location"].partition(", ")
        told.setdefault(pathlib.Path(path).name, []).append(
            (place, row["rule"], row.get("text", ""))
        )
    assert re.match(r"line \d+", told["cut.jsonl.gz"][-1][0])
    assert "Truncated" in told["cut.jsonl.gz"][-1][1]
    assert told["broken.csv"] == [
        ("line 3", "expected … fields, saw …", "expected 2 fields, saw 4")
    ]
    assert told["mixed.txt"][0][0] == "line 1"
    assert "invalid UTF-8 at byte" in told["mixed.txt"][0][2]
    assert told["long.jsonl"] == [
        (
            "line 2",
            "a line of more than … bytes",
            "a line of more than 16,777,216 bytes",
        )
    ]
    assert "columns: price" in told["other.parquet"][0][2] or (
        "price" in told["other.parquet"][0][2]
    )
    assert told["empty.txt"] == [("", "is empty", "is empty")]
    assert told["loop"][0][1] == "a link to a folder that is read already"
    assert told["nowhere.txt"][0][1] == "a link that leads nowhere"
    counted = manifest["statistics"]["skipped"]
    assert sum(entry["count"] for entry in counted.values()) == sum(
        len(rows) for name, rows in told.items()
    ) - sum(
        row[1] in manifest["statistics"]["dropped"]
        for rows in told.values()
        for row in rows
    )


def test_inputs_without_a_document_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no file that ends in"):
        run([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(InputError, match="no such file"):
        run([tmp_path / "missing.txt"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "a.txt").write_text(" \n\n")
    with pytest.raises(InputError, match="no document is left: is empty"):
        run([tmp_path / "a.txt"], tmp_path / "out")


@pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="there is no /dev/full"
)
def test_a_full_disk_leaves_finished_shards_as_they_were(raw, tmp_path):
    out = tmp_path / "out"
    run([raw], out)
    before = files(out)
    (raw / "more.txt").write_text(english(777))
    # What is written here meets a full disk.
    (out / ".documents-train.part").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"No space left on device"):
        run([raw], out)
    (out / ".documents-train.part").unlink()
    after = files(out)
    assert {name: after[name] for name in before} == before
    assert texts(out)
    run([raw], out)
    assert english(777) in texts(out)


def test_a_disk_that_is_full_while_cleaning_leaves_nothing(
    raw, tmp_path, monkeypatch
):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepared, "flush_file", full)
    with pytest.raises(InputError, match=r"zst: cannot be written: No space"):
        run([raw], tmp_path / "out")
    assert list((tmp_path / "out" / ".staged").iterdir()) == []


def test_a_damaged_staged_input_is_read_again(raw, tmp_path):
    out = tmp_path / "out"
    run([raw], out)
    before = files(out)
    rows, *_ = sorted((out / ".staged").glob("*/rows.jsonl.zst"))
    rows.write_bytes(rows.read_bytes()[:-20])
    told = []
    run([raw], out, tell=told.append)
    assert told[0] == "2 inputs were cleaned before."
    assert files(out) == before


def test_a_damaged_shard_is_refused(raw, tmp_path):
    out = tmp_path / "out"
    run([raw], out)
    (shard,) = out.glob("documents-train-*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        texts(out)
    shard.unlink()
    with pytest.raises(InputError, match="missing"):
        texts(out)
    manifest = out / "manifest.json"
    manifest.write_text(manifest.read_text().replace("documents", "dokuments"))
    with pytest.raises(InputError, match="damaged"):
        texts(out)


@pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real files are not beside this checkout"
)
def test_real_files_go_through(tmp_path):
    demo = SHARED / "demo"
    manifest = run(
        [demo / "c4_demo.jsonl", demo / "alpaca_zh_demo.json"],
        tmp_path / "out",
        "num_workers=2",
    )
    statistics = manifest["statistics"]
    read = statistics["read"]["documents"]
    written = sum(
        entry["documents"]
        for kinds in statistics["splits"].values()
        for entry in kinds.values()
    )
    dropped = sum(e["count"] for e in statistics["dropped"].values())
    assert read == 1300
    assert written + dropped == read
    assert written > 0.9 * read
