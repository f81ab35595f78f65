import dataclasses
import json

import pytest
import tensorflow as tf
import tensorflow_text  # noqa: F401  (its ops are in the SavedModel)

from experiments import run_sft
from kerasgpt.checkpoints import load_model
from kerasgpt.config import InputError
from kerasgpt.data.prepare import load_corpus
from kerasgpt.files import read_manifest
from kerasgpt.generation import Generator
from kerasgpt.training import sft

PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
PROMPTS = [
    "Hello, how much is it?",
    "And what colour is it?",
    "你好，多少钱？",
    "那它是什么颜色？",
    "<|user|> ",
]


def tiny(folder, *overrides):
    return run_sft.TINY.override(
        [
            f"run_dir={folder / 'chat'}",
            f"export_dir={folder / 'export'}",
            # Compiling takes longer than these few steps.
            "pretrain.jit_compile=false",
            "train.jit_compile=false",
            *overrides,
        ]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where run_sft.py ran once, with the smallest of all settings."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        # One conversation is enough: each of its lengths is compiled.
        patch.setattr(run_sft, "CONVERSATIONS", run_sft.CONVERSATIONS[1:])
        run_sft.main(tiny(folder))
    return folder


def test_the_folder_holds_a_whole_run(folder):
    (base,) = folder.glob("base_*")
    chat = folder / "chat"
    for stage in (base, chat):
        read_manifest(stage / "model")
        assert json.loads((stage / "result.json").read_text())["step"] == 4
        assert (stage / "metrics.jsonl").is_file()
        assert list((stage / "tensorboard").glob("events.*"))
        assert list((stage / "checkpoints").iterdir())
    read_manifest(base / "tokenizer")
    assert [path.name for path in (folder / "export").iterdir()] == ["1"]


def test_every_task_was_asked_of_both_models(folder):
    report = json.loads((folder / "chat" / "report.json").read_text())
    assert set(report["scores"]) == {"base", "chat"}
    for scores in report["scores"].values():
        _, count = scores["all"]
        assert count == report["questions that fit the context"] > 10
        assert count == sum(count for _, count in scores["tasks"].values())
        languages = {task.rpartition(".")[2] for task in scores["tasks"]}
        assert languages == {"en", "zh"}
    metrics = report["metrics"]
    assert list(metrics) == [
        "base on documents",
        "base on conversations",
        "chat on conversations",
    ]
    for values in metrics.values():
        assert values["loss"] > 0
        assert values["bits_per_byte"] > 0
    # Base and chat are measured on the same rows.
    assert (
        metrics["chat on conversations"]["before"]
        == (metrics["base on conversations"])
    )
    assert report["config"] == tiny(folder).to_dict()
    # The context is so short that many conversations do not fit.
    assert report["skipped rows"]


def test_the_report_shows_tables_and_plots(folder):
    text = (folder / "chat" / "report.md").read_text()
    assert "| held-out exact match | base | chat | questions |" in text
    assert "- skipped rows: " in text
    for name in ("tasks.png", "curves.png"):
        assert f"![{name}]({name})" in text
        picture = (folder / "chat" / name).read_bytes()
        assert picture.startswith(PNG_START)
        assert picture.endswith(PNG_END)


def test_the_export_answers_as_the_model_folder_does(folder):
    model, tokenizer = load_model(folder / "chat")
    expected = Generator(model, tokenizer, jit_compile=False).reply(
        [[{"role": "user", "content": text}] for text in PROMPTS],
        max_new_tokens=16,
    )
    loaded = tf.saved_model.load(str(folder / "export" / "1"))
    count = len(PROMPTS)
    outputs = loaded.signatures["chat"](
        roles=tf.constant([["user"]] * count),
        contents=tf.constant([[text] for text in PROMPTS]),
        max_new_tokens=tf.fill([count], 16),
        temperature=tf.zeros([count]),
        top_k=tf.zeros([count], tf.int32),
        top_p=tf.ones([count]),
        seed=tf.zeros([count], tf.int32),
    )
    replies = [text.decode() for text in outputs["text"].numpy()]
    assert replies == expected
    assert any(expected)


def test_the_same_settings_return_at_once(folder):
    config = tiny(folder)
    lines = []
    result = sft.run(config, load_corpus(config.data), tell=lines.append)
    assert f"base: already trained, see {result.base.folder}." in lines
    assert f"chat: already trained, see {result.chat.folder}." in lines
    assert not any("validation" in line for line in lines)


def test_other_settings_are_refused_in_the_same_folder_or_replace_it(folder):
    config = tiny(folder, "train.steps=2")
    corpus = load_corpus(config.data)
    with pytest.raises(InputError) as caught:
        sft.run(config, corpus)
    told = str(caught.value)
    assert f"{folder / 'chat'}: holds a run with train.steps=4, not 2" in told
    assert "\n" not in told
    read_manifest(folder / "chat" / "model")

    lines = []
    sft.run(
        dataclasses.replace(config, overwrite=True), corpus, tell=lines.append
    )
    assert any("base: already trained" in line for line in lines)
    assert any(line.startswith("chat 2/2  validation") for line in lines)
    assert not (folder / "chat" / "report.md").exists()
    result = json.loads((folder / "chat" / "result.json").read_text())
    assert result["step"] == 2
