import dataclasses

import pytest

from kerasgpt.checkpoints.model_folder import (
    load_config,
    load_model,
    save_model,
)
from kerasgpt.config import InputError
from kerasgpt.evaluation.classification import class_probabilities
from kerasgpt.models import GPTCausalLM
from kerasgpt.tokenizers import ByteTokenizer
from kerasgpt.training import classify, sft
from tests.descriptors import tiny_config


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tokenizer = ByteTokenizer()
    model = GPTCausalLM(
        tiny_config(
            vocabulary_size=tokenizer.vocabulary_size, context_length=32
        ),
        name="gpt",
    )
    model.build()
    save_model(folder / "model", model, tokenizer)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "my.csv"
    lines = [
        f"{'xy'[i % 2]} {i},{('first', 'second')[i % 2]}" for i in range(200)
    ]
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    return path


def config_of(run_dir, base, table, *more):
    return classify.ClassifyConfig().override(
        [
            f"run_dir={run_dir}",
            f"init={base}",
            f"data.path={table}",
            "train.steps=30",
            "train.evaluate_steps=15",
            "train.batch_tokens=256",
            "train.learning_rate=0.02",
            "train.jit_compile=false",
            *more,
        ]
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory, base, table):
    run_dir = tmp_path_factory.mktemp("runs") / "mine"
    return classify.run(config_of(run_dir, base, table), tell=lambda _: None)


def test_it_learns_what_the_label_hangs_on(result):
    texts = [row.text for row in result.corpus.test]
    model, tokenizer = result.classifier.model, result.classifier.tokenizer
    found = class_probabilities(model, tokenizer, texts).argmax(1)
    right = [
        model.config.labels[number] == row.label
        for number, row in zip(found, result.corpus.test, strict=True)
    ]
    assert len(right) > 20 and sum(right) / len(right) > 0.95
    metrics = result.classifier.metrics
    assert metrics["before"]["loss"] == pytest.approx(0.69, abs=0.05)
    assert metrics["loss"] < 0.3 and "bits_per_byte" not in metrics


def test_its_folder_reloads_as_a_classifier_and_as_nothing_else(result):
    folder = result.classifier.folder
    model, tokenizer = load_model(folder, kinds=("classifier",))
    assert set(model.config.labels) == {"first", "second"}
    texts = ["x 1000", "y 1000"]
    expected = class_probabilities(result.classifier.model, tokenizer, texts)
    assert (class_probabilities(model, tokenizer, texts) == expected).all()
    told = "of kind 'classifier'; this needs one of gpt"
    for load in (load_model, lambda path: load_config(path / "model")):
        with pytest.raises(InputError, match=told):
            load(folder)


def test_a_causal_model_is_no_classifier(base):
    with pytest.raises(InputError, match="of kind 'gpt'; this needs one of cl"):
        load_model(base, kinds=("classifier",))


def test_a_finished_run_is_returned_at_once(result, base, table):
    config = config_of(result.classifier.folder, base, table)
    lines = []
    again = classify.run(config, tell=lines.append)
    assert any("already trained" in line for line in lines)
    assert again.classifier.metrics == result.classifier.metrics
    other = dataclasses.replace(config, seed=7)
    with pytest.raises(InputError, match=r"holds a run with seed=0, not 7"):
        classify.run(other)


def test_changed_data_are_refused(result, base, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("text,label\n" + "a,b\nc,d\ne,b\nf,d\n" * 9)
    config = config_of(result.classifier.folder, base, other)
    with pytest.raises(InputError, match=r"holds a run with data\.path"):
        classify.run(config)


def test_bad_data_leave_no_folder(tmp_path, base):
    run_dir = tmp_path / "run"
    with pytest.raises(InputError, match="no such file"):
        classify.run(config_of(run_dir, base, tmp_path / "none.csv"))
    assert not run_dir.exists()


def test_a_given_model_brings_its_own_shape(base, table):
    with pytest.raises(InputError, match=r"leave out model\."):
        config_of("run", base, table, "model.depth=2")


def test_the_base_is_that_of_run_sft():
    run_dir = "runs/mine"
    ours = classify.ClassifyConfig().override([f"run_dir={run_dir}"]).base
    theirs = sft.SFTConfig().override([f"run_dir={run_dir}"]).base
    assert ours.run_dir == theirs.run_dir


@pytest.mark.slow
def test_your_own_texts_pretrain_a_base(tmp_path, table):
    config = classify.ClassifyConfig().override(
        [
            f"run_dir={tmp_path}/run",
            f"data.path={table}",
            "model.depth=1",
            "model.model_dim=16",
            "model.head_dim=8",
            "tokenizer.kind=byte",
            "pretrain.steps=2",
            "train.steps=2",
            "train.jit_compile=false",
            "pretrain.jit_compile=false",
        ]
    )
    result = classify.run(config, tell=lambda _: None)
    assert result.base.folder.parent == tmp_path
    assert result.classifier.metrics["step"] == 2
