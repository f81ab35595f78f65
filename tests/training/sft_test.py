import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest

from kerasgpt.checkpoints import load_model
from kerasgpt.config import InputError
from kerasgpt.data.prepare import load_corpus
from kerasgpt.generation import Generator
from kerasgpt.models.lora import LoRAConfig
from kerasgpt.training import pretrain, sft, stage
from tests.conftest import GOLDENS
from tests.tokenizers.families import put_family

CONTEXT = 64


def chat(number, answer=None):
    return [
        {"role": "user", "content": f"How much is cup {number}?"},
        {"role": "assistant", "content": answer or f"{number} euros."},
    ]


CHATS = [chat(number) for number in range(60)]
# Longer than the context.
LONG = chat(99, "x" * CONTEXT)


def quiet(line):
    pass


@pytest.fixture(autouse=True, scope="module")
def plain_graphs():
    """Samples are written without XLA: compiling would take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        plain = functools.partial(Generator, jit_compile=False)
        patch.setattr(pretrain, "Generator", plain)
        patch.setattr(sft, "Generator", plain)
        yield


def tiny(folder, *overrides, chats=CHATS, name="chat"):
    """Returns the config of a run in `folder`, whose data it writes there."""
    path = folder / "chats.jsonl"
    lines = [json.dumps({"messages": one}) for one in chats]
    path.write_text("\n".join(lines))
    stages = [
        f"{section}.{setting}"
        for section in ("pretrain", "train")
        for setting in (
            "optimizer=adamw",
            "steps=2",
            "batch_tokens=128",
            "jit_compile=false",
        )
    ]
    return sft.SFTConfig(run_dir=str(folder / name)).override(
        [
            f"data.path={path}",
            "tokenizer.kind=byte",
            "model.depth=1",
            "model.model_dim=16",
            "model.num_heads=2",
            "model.head_dim=8",
            f"model.context_length={CONTEXT}",
            "data.validation_fraction=0.2",
            *stages,
            *overrides,
        ]
    )


def run(config, tell=quiet):
    return sft.run(config, load_corpus(config.data), tell=tell)


def weights(stage_result):
    return stage_result.model.get_weights()


def are_equal(one, other):
    return all(
        np.array_equal(first, second)
        for first, second in zip(one, other, strict=True)
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was trained: (its folder, its SFTResult, its lines)."""
    folder = tmp_path_factory.mktemp("runs")
    lines = []
    result = run(tiny(folder), tell=lines.append)
    return folder, result, lines


@pytest.fixture
def trained(monkeypatch):
    """The calls of `stage.train`, which then only returns its model."""
    calls = {}

    def train(model, tokenizer, rows, config, folder, *, name, **options):
        call = {"rows": rows, "weights": model.get_weights(), **options}
        calls.setdefault(name, []).append(call)
        (folder / "checkpoints").mkdir(exist_ok=True)
        return stage.StageResult(model, tokenizer, folder, {})

    monkeypatch.setattr(stage, "train", train)
    return calls


def test_a_base_and_a_chat_model_are_trained(finished):
    folder, result, lines = finished
    base, tuned = result.base, result.chat
    assert base.folder.parent == tuned.folder.parent == folder
    assert base.folder.name.startswith("base_")
    assert not are_equal(weights(base), weights(tuned))
    assert tuned.metrics["step"] == 2
    assert result.corpus.skipped == []
    assert result.corpus.chats == CHATS
    assert 0 < result.used_fraction <= 1
    (line,) = (line for line in lines if "conversations" in line)
    assert "0 rows skipped" in line


def test_the_base_is_measured_on_the_conversations_first(finished):
    _, result, _ = finished
    path = result.chat.folder / "metrics.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    assert (first["step"], first["split"]) == (0, "validation")
    assert first["loss"] == result.chat.metrics["before"]["loss"]


def test_the_same_run_is_returned_at_once(finished):
    folder, result, _ = finished
    lines = []
    again = run(tiny(folder), tell=lines.append)
    assert f"base: already trained, see {result.base.folder}." in lines
    assert f"chat: already trained, see {result.chat.folder}." in lines
    assert are_equal(weights(again.base), weights(result.base))
    assert are_equal(weights(again.chat), weights(result.chat))
    assert again.chat.metrics == result.chat.metrics
    assert again.used_fraction == result.used_fraction


def test_other_fine_tuning_shares_the_base_model(finished):
    folder, result, _ = finished
    lines = []
    config = tiny(folder, "train.steps=1", "shuffle_answers=true", name="b")
    other = run(config, tell=lines.append)
    assert f"base: already trained, see {result.base.folder}." in lines
    assert other.base.folder == result.base.folder
    assert not are_equal(weights(other.chat), weights(result.chat))
    assert len(list(folder.glob("base_*"))) == 1


@pytest.mark.parametrize(
    "override",
    ["seed=1", "pretrain.steps=3", "model.depth=2", "data.num_products=90"],
)
def test_what_the_base_depends_on_gives_it_another_folder(finished, override):
    folder, result, _ = finished
    assert tiny(folder).base.run_dir == str(result.base.folder)
    assert tiny(folder, override).base.run_dir != str(result.base.folder)


@pytest.mark.parametrize(
    "override",
    ["data.replay_fraction=0.1", "data.max_skipped_fraction=0.2"],
)
def test_what_only_fine_tuning_knows_shares_the_base(finished, override):
    folder, result, _ = finished
    config = tiny(folder, override)
    assert config.base.run_dir == str(result.base.folder)
    # What is allowed counts for the base too, which checks the lengths.
    assert config.base.data == config.data
    lines = []
    pretrain.run(config.base, result.corpus, tell=lines.append)
    assert lines[-1] == f"base: already trained, see {result.base.folder}."


@pytest.mark.parametrize(
    "override",
    [
        "model.depth=3",
        "tokenizer.kind=byte",
        "pretrain.steps=3",
    ],
)
def test_a_start_together_with_the_shape_of_a_model_is_refused(override):
    config = sft.SFTConfig()
    section = override.partition(".")[0]
    for overrides in ((override, "init=a"), ("init=a", override)):
        with pytest.raises(InputError) as caught:
            config.override(overrides)
        told = str(caught.value)
        assert told.startswith("init=a: brings its own model and tokenizer")
        assert f"leave out {section}.*" in told
    assert config.override(["init=a", "train.steps=3"]).init == "a"


def test_the_export_is_named_after_the_run():
    config = sft.SFTConfig()
    assert str(config.export_folder) == "saved_models/shop_chat"
    config = config.override(["run_dir=experiments/runs/mine"])
    assert str(config.export_folder) == "saved_models/mine"
    config = config.override(["export_dir=elsewhere/x"])
    assert str(config.export_folder) == "elsewhere/x"


def test_changed_files_give_a_new_base_and_can_be_overwritten(
    tmp_path, trained
):
    config = tiny(tmp_path)
    run(config)
    changed = tiny(tmp_path, chats=CHATS[:-1])
    assert changed == config
    with pytest.raises(InputError, match="the data changed") as caught:
        run(changed)
    assert "overwrite=true" in str(caught.value)
    run(dataclasses.replace(changed, overwrite=True))
    assert len(list(tmp_path.glob("base_*"))) == 2


def start_from(init, folder, name="chat"):
    """Returns the config of a run in `folder` that starts from a model."""
    defaults = sft.SFTConfig()
    return dataclasses.replace(
        tiny(folder, name=name),
        init=str(init),
        model=defaults.model,
        tokenizer=defaults.tokenizer,
        pretrain=defaults.pretrain,
    )


def test_fine_tuning_starts_from_the_weights_of_the_base(finished, trained):
    folder, result, _ = finished
    base = result.base
    returned = run(start_from(base.folder, folder, name="start")).base
    (call,) = trained["chat"]
    assert are_equal(call["weights"], weights(base))
    assert are_equal(weights(returned), weights(base))
    assert "base" not in trained


def test_a_trained_model_folder_can_be_the_start(finished, tmp_path, trained):
    _, result, _ = finished
    tuned = result.chat
    # Neither a base model is trained nor the default settings are asked.
    run(start_from(tuned.folder / "model", tmp_path))
    (call,) = trained["chat"]
    assert are_equal(call["weights"], weights(tuned))
    assert [path.name for path in tmp_path.glob("base_*")] == []


def test_a_start_that_was_trained_anew_is_other_data(
    finished, tmp_path, trained
):
    _, result, _ = finished
    init = tmp_path / "init"
    shutil.copytree(result.base.folder / "model", init)
    run(start_from(init, tmp_path))
    run(start_from(init, tmp_path))
    shutil.rmtree(init)
    shutil.copytree(result.chat.folder / "model", init)
    with pytest.raises(InputError, match="the data changed"):
        run(start_from(init, tmp_path))


def test_adapters_are_trained_beside_the_base(finished, tmp_path, trained):
    _, result, _ = finished
    config = start_from(result.base.folder, tmp_path)
    lines = []
    tuned = run(config.override(["lora.rank=2"]), tell=lines.append).chat
    (call,) = trained["chat"]
    assert call["lora"] == LoRAConfig(rank=2)
    assert len(tuned.model.trainable_variables) == 4
    # Two kernels of 16 x 16.
    assert any("trains 128 parameters beside" in line for line in lines)


def test_rows_may_be_shorter_than_the_context(finished, tmp_path, trained):
    _, result, _ = finished
    config = start_from(result.base.folder, tmp_path)
    run(config.override(["row_length=48"]))
    (call,) = trained["chat"]
    assert call["rows"]["train"].row_length == 48
    with pytest.raises(InputError, match="row_length=65: is more than"):
        run(config.override(["row_length=65", "overwrite=true"]))


def test_a_folder_of_transformers_needs_a_tokenizer(tmp_path):
    config = start_from(GOLDENS / "huggingface" / "gpt2", tmp_path)
    with pytest.raises(InputError, match="brings no tokenizer"):
        run(config)
    assert not (tmp_path / "chat").exists()


def test_a_start_that_is_missing_leaves_no_folder(tmp_path):
    config = start_from(tmp_path / "none", tmp_path)
    with pytest.raises(InputError, match="holds no trained model"):
        run(config)
    assert not (tmp_path / "chat").exists()


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("model.num_heads=0", "model.num_heads=2"),
        ("data.max_skipped_fraction=0.01", "data.max_skipped_fraction=0.05"),
    ],
)
def test_a_corrected_setting_is_not_taken_for_another_run(
    tmp_path, trained, wrong, right
):
    chats = [*CHATS, LONG]
    with pytest.raises(InputError):
        run(tiny(tmp_path, wrong, chats=chats))
    run(tiny(tmp_path, right, chats=chats))
    assert len(trained["chat"]) == 1


def test_the_folder_of_another_run_is_refused(finished):
    folder, result, _ = finished
    tuned = result.chat
    before = (tuned.folder / "config.json").read_bytes()
    with pytest.raises(InputError, match=r"with train\.steps=2, not 5"):
        run(tiny(folder, "train.steps=5"))
    assert (tuned.folder / "config.json").read_bytes() == before
    load_model(tuned.folder)


def test_where_and_how_it_is_judged_may_change(finished):
    folder, result, _ = finished
    lines = []
    overrides = ["evaluation.questions_per_task=3", "export_dir=elsewhere"]
    run(tiny(folder, *overrides), tell=lines.append)
    assert f"chat: already trained, see {result.chat.folder}." in lines


def test_conversations_that_are_too_long_are_skipped_and_counted(
    tmp_path, trained
):
    lines = []
    chats = [*CHATS[:30], LONG, *CHATS[30:]]
    result = run(tiny(tmp_path, chats=chats), tell=lines.append)
    (skipped,) = result.corpus.skipped
    assert skipped.location == "conversation 31"
    assert f"does not fit the context of {CONTEXT}" in skipped.reason
    assert result.corpus.chats == CHATS
    assert any("1 rows skipped" in line for line in lines)
    num_tokens = 0
    for rows in trained["chat"][0]["rows"].values():
        *_, sample_weight = rows.assemble(np.arange(len(rows)))
        num_tokens += sample_weight.sum()
    # What the assistant says, and its end of turn.
    assert num_tokens == sum(len(one[1]["content"]) + 1 for one in CHATS)


def test_a_long_conversation_keeps_the_turns_that_fit(tmp_path, trained):
    long = [*chat(7), *LONG]
    result = run(tiny(tmp_path, chats=[*CHATS, long]))
    assert result.corpus.skipped == []
    kept = result.corpus.chats[-1]
    assert kept == long[:2] or kept == long[:3]


def test_too_many_conversations_that_are_too_long_are_an_error(
    tmp_path, trained
):
    config = tiny(tmp_path, chats=[*CHATS, *[LONG] * 4])
    with pytest.raises(InputError, match="4 of 64 rows cannot be used") as told:
        run(config)
    assert "max_skipped_fraction=0.05" in str(told.value)
    assert "\n" not in str(told.value)
    # Told before the base model is trained.
    assert trained == {}


def test_nothing_but_too_long_conversations_are_an_error(tmp_path, trained):
    chats = [chat(number, "x" * CONTEXT) for number in range(20)]
    config = tiny(tmp_path, "data.max_skipped_fraction=1", chats=chats)
    with pytest.raises(InputError, match="too few conversations fit"):
        run(config)
    assert trained == {}


def test_a_conversation_of_exactly_the_context_fits(tmp_path, trained):
    # <|document|> and two turns of two control ids each. The last token is
    # only predicted, so it needs no position.
    question = "How much is cup 99?"
    answer = "x" * (CONTEXT + 1 - 5 - len(question))
    chats = [*CHATS, chat(99, answer)]
    result = run(tiny(tmp_path, chats=chats))
    assert result.corpus.skipped == []
    chats = [*CHATS, chat(99, answer + "x")]
    (tmp_path / "b").mkdir()
    result = run(tiny(tmp_path / "b", chats=chats))
    assert len(result.corpus.skipped) == 1


def test_rows_that_were_skipped_while_reading_are_in_the_result(
    tmp_path, trained
):
    config = tiny(tmp_path)
    path = tmp_path / "chats.jsonl"
    path.write_text(path.read_text() + '\n{"text": "a document"}')
    result = run(config)
    (skipped,) = result.corpus.skipped
    assert skipped.location == f"{path}, line 61"


def test_samples_answer_held_out_questions(tmp_path, trained):
    result = run(tiny(tmp_path))
    (call,) = trained["chat"]
    lines = call["sample"](result.chat.model).split("\nHow much")
    assert len(lines) == 2
    assert lines[0].startswith("How much is cup ")
    assert "? → " in lines[0]


def test_documents_are_replayed_while_fine_tuning(tmp_path, trained):
    documents = tmp_path / "documents.jsonl"
    documents.write_text(
        "\n".join(
            json.dumps({"text": f"Cup {number} costs {number} euros."})
            for number in range(60)
        )
    )
    path = f"data.documents_path={documents}"
    counts = []
    for fraction in (0.0, 0.5):
        (tmp_path / str(fraction)).mkdir()
        run(
            tiny(
                tmp_path / str(fraction),
                path,
                f"data.replay_fraction={fraction}",
            )
        )
        rows = trained["chat"][-1]["rows"]
        *_, sample_weight = rows["train"].assemble(
            np.arange(len(rows["train"]))
        )
        counts.append(sample_weight.sum())
    assert counts[1] > 2 * counts[0]


def test_shuffled_answers_are_dealt_out_anew_and_nothing_is_lost():
    system = {"role": "system", "content": "S"}
    chats = [[system, *chat(number)] for number in range(60)]
    before = json.dumps(chats)
    shuffled = sft.shuffled_answers(chats, seed=1)
    assert json.dumps(chats) == before
    assert sft.shuffled_answers(chats, seed=1) == shuffled
    assert sft.shuffled_answers(chats, seed=2) != shuffled
    answers = [one[-1]["content"] for one in chats]
    dealt = [one[-1]["content"] for one in shuffled]
    assert sorted(dealt) == sorted(answers)
    kept = sum(a == b for a, b in zip(dealt, answers, strict=True))
    assert kept < 10
    for one, other in zip(chats, shuffled, strict=True):
        assert one[:-1] == other[:-1]
        assert other[-1]["role"] == "assistant"


@pytest.mark.parametrize("name", ["questions_per_task", "max_new_tokens"])
def test_evaluation_settings_out_of_range_are_refused(name):
    with pytest.raises(InputError, match=f"evaluation.{name}=0"):
        sft.SFTConfig().override([f"evaluation.{name}=0"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name"), [("qwen2", "chatml"), ("gpt2", "alpaca")]
)
def test_a_tokenizer_of_another_family_is_trained_with_and_answers(
    family, name, tmp_path
):
    (tmp_path / "theirs").mkdir()
    theirs = put_family(tmp_path / "theirs", family)
    config = tiny(
        tmp_path,
        f"tokenizer.path={theirs}",
        "model.context_length=256",
        "pretrain.batch_tokens=256",
        "train.batch_tokens=256",
    )
    result = run(config)
    model, tokenizer = load_model(config.run_dir)
    # It is in the run's own folder, template included.
    shutil.rmtree(theirs)
    assert tokenizer.chat_format.name == name
    assert tokenizer.control_tokens == result.chat.tokenizer.control_tokens
    generator = Generator(model, tokenizer, jit_compile=False)
    assert generator.template.end_id == tokenizer.control_id(
        "<|im_end|>" if name == "chatml" else "<|endoftext|>"
    )
    (reply,) = generator.reply([CHATS[0][:1]], max_new_tokens=4)
    assert not any(token in reply for token in tokenizer.control_tokens)
    (text,) = generator.complete(["How"], max_new_tokens=4)
    assert isinstance(text, str)
