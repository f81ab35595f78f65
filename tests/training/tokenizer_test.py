import json
import subprocess
import sys

import pytest

from kerasgpt.checkpoints.model_folder import load_tokenizer
from kerasgpt.config import InputError
from kerasgpt.files import read_manifest
from kerasgpt.tokenizers.huggingface import save_huggingface_tokenizer
from kerasgpt.training.tokenizer import (
    CompareTokenizersConfig,
    TrainTokenizerConfig,
    compare,
    open_tokenizer,
    read_sample,
    train,
)
from tests.descriptors import tiny_byte_pair

ENGLISH = "it is so that the theory of the thing is in number {} and {}\n"
CHINESE = "你好，世界！今天是第{}天，我们有{}个问题。\n"


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    rows = [ENGLISH.format(n, 3 * n) for n in range(60)]
    (folder / "en.jsonl").write_text(
        "".join(json.dumps({"text": row}) + "\n" for row in rows)
    )
    rows = [CHINESE.format(n, 7 * n) for n in range(60)]
    (folder / "zh.jsonl").write_text(
        "".join(json.dumps({"text": row}) + "\n" for row in rows)
    )
    return [str(folder)]


@pytest.mark.parametrize("kind", ["byte_pair", "word_piece", "byte"])
def test_a_tokenizer_is_trained_written_and_measured(kind, inputs, tmp_path):
    told = []
    config = TrainTokenizerConfig(kind=kind, vocabulary_size=320)
    tokenizer = train(inputs, tmp_path / "out", config, tell=told.append)
    loaded = load_tokenizer(tmp_path / "out")
    assert loaded.fingerprint() == tokenizer.fingerprint()
    read_manifest(tmp_path / "out", required=("report.json", "report.md"))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["fingerprint"] == tokenizer.fingerprint()
    assert set(report["usage"]) == {"all", "en", "zh"}
    # A tenth of them.
    assert report["usage"]["all"]["num_texts"] == 12
    table = (tmp_path / "out" / "report.md").read_text()
    assert "| zh |" in table
    assert "120 texts" in told[0]
    assert "| zh |" in told[-1]


def test_several_are_compared_in_one_table(inputs, tmp_path):
    save_huggingface_tokenizer(tmp_path, tiny_byte_pair())
    told = []
    config = CompareTokenizersConfig().override(
        [
            "kinds=byte_pair,byte",
            "vocabulary_sizes=280,340",
            f"folders={tmp_path}",
        ]
    )
    found = compare(inputs, config, tell=told.append)
    assert list(found) == [
        "byte_pair 280",
        "byte_pair 340",
        "byte 265",
        f"{tmp_path} {tiny_byte_pair().vocabulary_size}",
    ]
    sizes = [usage["all"].compression for usage in found.values()]
    # More pieces, fewer tokens; bytes are one a token.
    assert sizes[1] > sizes[0] > sizes[2] == 1.0
    lines = told[-1].strip().split("\n")
    assert len(lines) == 2 + len(found)
    assert "zh: tokens/character" in lines[0]
    assert "en: tokens/word" in lines[0]


def test_what_is_learned_is_not_measured(inputs):
    config = TrainTokenizerConfig().override(["sample.measured_fraction=0.25"])
    learned, measured = read_sample(inputs, config.sample, tell=lambda _: None)
    assert len(measured) == 30
    assert not set(learned) & set(measured)
    assert len(learned) == 90


def test_the_sample_has_the_size_that_is_asked_for(inputs):
    config = TrainTokenizerConfig().override(["sample.megabytes=0.003"])
    told = []
    learned, measured = read_sample(inputs, config.sample, tell=told.append)
    size = sum(len(text.encode()) for text in learned + measured)
    assert 2800 < size <= 3000
    assert "0.0 MB are used" in told[0]


def test_one_text_is_learned_and_measured(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("to be or not to be")
    config = TrainTokenizerConfig().sample
    learned, measured = read_sample([path], config, tell=lambda _: None)
    assert learned == measured == ["to be or not to be"]


def test_an_existing_folder_is_replaced_only_if_told(inputs, tmp_path):
    config = TrainTokenizerConfig(kind="byte")
    quiet = {"tell": lambda _: None}
    train(inputs, tmp_path / "out", config, **quiet)
    with pytest.raises(InputError, match="exists; choose another"):
        train(inputs, tmp_path / "out", config, **quiet)
    train(inputs, tmp_path / "out", config, overwrite=True, **quiet)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["kinds=word"], "'word' is none of"),
        (["vocabulary_sizes=2k"], "must be numbers"),
        (["kinds="], "nothing to compare"),
        (["folders=nowhere"], "nowhere: holds no tokenizer"),
    ],
)
def test_comparisons_that_cannot_be_are_refused(settings, message, inputs):
    config = CompareTokenizersConfig().override(settings)
    with pytest.raises(InputError, match=message):
        compare(inputs, config, tell=lambda _: None)


def test_ours_and_those_of_hugging_face_are_opened(inputs, tmp_path):
    save_huggingface_tokenizer(tmp_path, tiny_byte_pair())
    theirs = open_tokenizer(tmp_path)
    assert theirs.encode("to be") == tiny_byte_pair().encode("to be")
    config = TrainTokenizerConfig(kind="byte")
    train(inputs, tmp_path / "out", config, tell=lambda _: None)
    assert open_tokenizer(tmp_path / "out").kind == "byte"


@pytest.mark.slow
def test_the_commands_run(inputs, tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "kerasgpt.cli", "tokenizer", *arguments],
            capture_output=True,
            text=True,
        )

    out = tmp_path / "out"
    done = run(
        "train",
        *inputs,
        "--output",
        str(out),
        "kind=byte_pair",
        "vocabulary_size=320",
    )
    assert done.returncode == 0, done.stderr
    assert "bytes/token" in done.stdout
    assert load_tokenizer(out).vocabulary_size == 320
    done = run("compare", *inputs, "kinds=", f"folders={out}")
    assert done.returncode == 0, done.stderr
    assert f"| {out} 320 |" in done.stdout
    done = run("train", "kind=byte", "--output", str(out))
    assert done.returncode == 2
    assert "an INPUT is needed" in done.stderr
    assert run("train", "--help").returncode == 0
