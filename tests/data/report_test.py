"""Owns the proof that the report shows what was counted, and runs nothing."""

import json

import pytest

from kerasgpt.config import InputError
from kerasgpt.data.preparation import PreparationConfig, prepare_files
from kerasgpt.data.report import (
    count_tokens,
    estimate_epochs,
    write_data_report,
)
from kerasgpt.files import read_json
from kerasgpt.tokenizers.byte import ByteTokenizer

EVIL = "<script>alert(1)</script> | `x` [a](javascript:b)"


@pytest.fixture
def folder(tmp_path):
    texts = ["A short text.", "a short text", "你好，世界。", "Lorem ipsum."]
    chat = {"instruction": EVIL, "output": "Lorem ipsum is allowed here."}
    rows = [{"text": text} for text in texts] + [chat]
    path = tmp_path / "raw.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n{\n")
    setting = f"contamination.paths={path}"
    config = PreparationConfig().override(
        [
            "num_workers=1",
            setting,
            "contamination.is_dropped=false",
            "split.validation_fraction=0",
        ]
    )
    prepare_files([str(path)], tmp_path / "out", config, tell=lambda line: None)
    return tmp_path / "out"


def test_the_report_names_counts_rules_and_examples(folder):
    path = write_data_report(folder)
    markdown = (folder / "report" / "report.md").read_text()
    for text in (
        "| read | 5 | 0.0 |",
        "| unreadable | 1 |",
        "| max_placeholders | 1 |",
        "| exact_duplicate | 1 |",
        "raw.jsonl, line 6",
        "1 of 2",
        "items of evaluation share",
        "cleaning.quality.max_placeholders",
    ):
        assert text in markdown, text
    assert path.read_text().startswith("<!doctype html>")
    for name in ("dropped", "languages", "lengths", "clusters"):
        image = (folder / "report" / f"{name}.png").read_bytes()
        assert image.startswith(b"\x89PNG")
        assert f"]({name}.png)" in markdown


def test_texts_of_the_data_are_shown_and_not_run(folder):
    text = write_data_report(folder).read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    markdown = (folder / "report" / "report.md").read_text()
    assert "<script>" not in markdown


def test_tokens_compression_and_epochs(folder):
    tokenizer = ByteTokenizer()
    write_data_report(folder, tokenizer=tokenizer, num_parameters=100)
    markdown = (folder / "report" / "report.md").read_text()
    tokens = count_tokens(folder, tokenizer)
    (source,) = tokens["sources"].values()
    # A byte is a token.
    assert source["tokens"] == source["bytes"]
    assert f"{source['tokens']:,} tokens in the training split" in markdown
    assert "1.00 |" in markdown
    epochs = estimate_epochs(source["tokens"], 100)
    assert f"{epochs:,.1f} epochs" in markdown
    told = read_json(folder / "report" / "report.json")
    assert told["tokens"]["fingerprint"] == tokenizer.fingerprint()
    with pytest.raises(InputError, match="--parameters needs --tokenizer"):
        write_data_report(folder, num_parameters=5)


def test_a_report_is_no_training_data(folder):
    before = count_tokens(folder, ByteTokenizer())
    write_data_report(folder)
    assert count_tokens(folder, ByteTokenizer()) == before


def test_another_folder_has_no_report(tmp_path):
    with pytest.raises(InputError, match="holds no prepared data"):
        write_data_report(tmp_path)
