"""Owns the proof that an input is cleaned and kept with its counts."""

import json
import os
import signal

import numpy as np
import pytest

from kerasgpt.config import InputError
from kerasgpt.data import staging
from kerasgpt.data.deduplication import hash_texts, sign_texts
from kerasgpt.data.sources import Document, Input
from kerasgpt.data.staging import (
    StagingConfig,
    clean_documents,
    cleaning_processes,
    input_digest,
    is_staged,
    load_staged,
    stage_input,
    staged_folder,
    staged_left_out,
    staged_rows,
)

CONFIG = StagingConfig()


@pytest.fixture
def one(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": text} for text in ("<b>Hi</b> there.", " ", "你好。")]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n{broken\n")
    return Input("a", str(path))


def die(documents, config):
    os.kill(os.getpid(), signal.SIGKILL)


def stage(one, folder, config=CONFIG, num_workers=1):
    with cleaning_processes(config, num_workers) as clean_all:
        return stage_input(one, folder, config, clean_all)


def test_rows_hashes_and_counts_are_kept(one, tmp_path):
    folder = tmp_path / "staged"
    counts = stage(one, folder)
    assert is_staged(folder)
    loaded, hashes, signatures = load_staged(folder)
    assert loaded == counts
    rows = list(staged_rows(folder))
    assert rows == [
        {
            "text": text,
            "source": "a",
            "location": f"{one.path}, line {line}",
            "language": language,
        }
        for text, line, language in (
            ("Hi there.", 1, "und"),
            ("你好。", 3, "zh"),
        )
    ]
    texts = [row["text"] for row in rows]
    np.testing.assert_array_equal(hashes, hash_texts(texts))
    np.testing.assert_array_equal(signatures, sign_texts(texts, CONFIG.near))
    assert counts.read["documents"] == 3
    assert counts.kept == {"documents": 2, "characters": 12, "bytes": 18}
    assert counts.edits["remove_html"] == {"documents": 1, "places": 2}
    assert counts.languages == {"und": 1, "zh": 1}
    assert counts.dropped["min_characters"]["count"] == 1
    ((rule, entry),) = counts.skipped.items()
    assert rule.startswith("malformed JSON at column …")
    assert entry["examples"][0]["location"] == f"{one.path}, line 4"
    assert [row["rule"] for row in staged_left_out(folder)] == [
        rule,
        "min_characters",
    ] or [row["rule"] for row in staged_left_out(folder)] == [
        "min_characters",
        rule,
    ]


def test_conversations_stay_conversations():
    messages = [
        {"role": "user", "content": "Hi\u200b!"},
        {"role": "assistant", "content": "<b>is bold</b>"},
    ]
    ((row, _),), _, _ = clean_documents(
        [Document("Hi!", "s", "l", messages)], CONFIG
    )
    assert row["messages"] == [
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "<b>is bold</b>"},
    ]
    assert "text" not in row


def test_many_batches_in_processes_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "BATCH_ROWS", 3)
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(50))
    )
    stage(Input("a", str(path)), tmp_path / "staged", num_workers=2)
    rows = list(staged_rows(tmp_path / "staged"))
    assert [row["text"] for row in rows] == [f"text {n}" for n in range(50)]


def test_a_folder_is_named_by_all_that_matters(one, tmp_path):
    def name(one=one, config=CONFIG, digest="d"):
        return staged_folder(tmp_path, one, config, digest)

    words = tmp_path / "words.txt"
    words.write_text("a")
    listed = StagingConfig().override([f"cleaning.word_list={words}"])
    names = {
        name(),
        name(digest="e"),
        name(one=Input("b", one.path)),
        name(config=CONFIG.override(["near.threshold=0.7"])),
        name(config=listed),
    }
    words.write_text("b")
    names.add(name(config=listed))
    assert len(names) == 6
    assert name() == name()
    assert input_digest(one) == input_digest(one) != ""
    assert input_digest(Input("x", "tfds:x")) == ""


def test_a_process_that_is_killed_is_told(one, tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "clean_documents", die)
    with pytest.raises(InputError, match="a cleaning process was killed"):
        stage(one, tmp_path / "staged", num_workers=2)
    assert not (tmp_path / "staged").exists()


def test_what_is_damaged_is_told(one, tmp_path):
    folder = tmp_path / "staged"
    stage(one, folder)
    (folder / "hashes.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match="damaged; delete it"):
        load_staged(folder)


def test_without_near_duplicates_nothing_is_signed(one, tmp_path):
    config = StagingConfig(remove_near_duplicates=False)
    stage(one, tmp_path / "staged", config)
    assert load_staged(tmp_path / "staged")[2].shape == (0, 512)
