import dataclasses
import functools
import json

import numpy as np
import pytest

from kerasgpt.checkpoints.model_folder import (
    load_tokenizer,
    save_model,
    save_tokenizer,
)
from kerasgpt.config import InputError
from kerasgpt.data.prepare import Corpus, load_corpus
from kerasgpt.data.shards import load_shards
from kerasgpt.files import write_manifest
from kerasgpt.generation import Generator
from kerasgpt.tokenizers import ByteTokenizer
from kerasgpt.training import pretrain, stage
from tests.descriptors import tiny_word_piece
from tests.tokenizers.families import put_family

CHATS = [
    [
        {"role": "user", "content": f"How much is cup {number}?"},
        {"role": "assistant", "content": f"{number} euros."},
    ]
    for number in range(40)
]
DOCUMENTS = [
    f"Cup {number} costs {number} euros.\nIt is red." for number in range(40)
]
IS_VALIDATION = [number % 5 == 0 for number in range(40)]
CORPUS = Corpus(DOCUMENTS, DOCUMENTS, CHATS, IS_VALIDATION, [], None)


def tiny(folder, *overrides):
    return pretrain.PretrainConfig(run_dir=str(folder)).override(
        [
            "tokenizer.kind=byte",
            "model.depth=1",
            "model.model_dim=16",
            "model.num_heads=2",
            "model.head_dim=8",
            "model.context_length=64",
            "train.optimizer=adamw",
            "train.steps=2",
            "train.batch_tokens=128",
            "train.jit_compile=false",
            "data.validation_fraction=0.2",
            *overrides,
        ]
    )


@pytest.fixture(autouse=True)
def plain_graphs(monkeypatch):
    """Samples are written without XLA: compiling would take seconds."""
    monkeypatch.setattr(
        pretrain,
        "Generator",
        functools.partial(Generator, jit_compile=False),
    )


@pytest.fixture
def trained(monkeypatch):
    """The calls of `stage.train`, which then only returns its model."""
    calls = []

    def train(model, tokenizer, rows, config, folder, **options):
        calls.append({"rows": rows, "weights": model.get_weights(), **options})
        (folder / "checkpoints").mkdir(exist_ok=True)
        return stage.StageResult(model, tokenizer, folder, {})

    monkeypatch.setattr(stage, "train", train)
    return calls


def test_a_base_model_is_trained_and_found_again(tmp_path):
    lines = []
    result = pretrain.run(tiny(tmp_path), CORPUS, tell=lines.append)
    assert result.metrics["step"] == 2
    assert result.folder == tmp_path
    assert f"{result.model.count_params():,} parameters" in lines[0]
    assert "documents" in lines[0]

    lines = []
    again = pretrain.run(tiny(tmp_path), CORPUS, tell=lines.append)
    assert lines[-1] == f"base: already trained, see {tmp_path}."
    assert again.metrics == result.metrics
    pairs = zip(
        again.model.get_weights(), result.model.get_weights(), strict=True
    )
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)


def test_all_documents_are_packed_into_rows_of_the_context(tmp_path, trained):
    pretrain.run(tiny(tmp_path), CORPUS, tell=lambda line: None)
    (call,) = trained
    num_targets = 0
    for rows in call["rows"].values():
        assert rows.row_length == 64
        *_, sample_weight = rows.assemble(np.arange(len(rows)))
        num_targets += sample_weight.sum()
    # Every byte of every document, and its end.
    assert num_targets == sum(len(text) + 1 for text in DOCUMENTS)


def test_samples_go_on_from_the_first_words_of_documents(tmp_path, trained):
    result = pretrain.run(tiny(tmp_path), CORPUS, tell=lambda line: None)
    text = trained[0]["sample"](result.model)
    assert text.startswith("Cup 0 costs 0 euros. → ")
    assert "\nCup 1 costs 1 euros. → " in text


def test_the_seed_decides_about_the_weights(tmp_path, trained):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        pretrain.run(
            tiny(tmp_path / name, f"seed={seed}"),
            CORPUS,
            tell=lambda line: None,
        )
    first, again, other = (call["weights"] for call in trained)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert any(
        not np.array_equal(one, two)
        for one, two in zip(first, other, strict=True)
    )


def test_the_tokenizer_is_learned_once_and_kept(tmp_path, monkeypatch):
    config = pretrain.TokenizerConfig(vocabulary_size=400)
    folder = tmp_path / "tokenizer"
    tokenizer = pretrain.build_tokenizer(folder, CORPUS, config)
    assert tokenizer.kind == "sentence_piece"
    assert 300 < tokenizer.vocabulary_size <= 400
    # It has pieces of the documents and of the conversations.
    assert len(tokenizer.encode("euros. How much")) < 8
    monkeypatch.delattr(pretrain, "train_tokenizer")
    again = pretrain.build_tokenizer(folder, CORPUS, config)
    assert again.fingerprint() == tokenizer.fingerprint()


def test_a_tokenizer_of_own_texts_knows_nothing_of_the_shop(
    tmp_path, monkeypatch
):
    learned = []

    def train_tokenizer(kind, texts, *, vocabulary_size):
        learned.extend(texts)
        raise InputError("that is all")

    monkeypatch.setattr(pretrain, "train_tokenizer", train_tokenizer)
    (tmp_path / "texts.txt").write_text("Once upon a time.")
    config = tiny(
        tmp_path / "run",
        f"data.documents_path={tmp_path / 'texts.txt'}",
        "tokenizer.kind=sentence_piece",
    )
    with pytest.raises(InputError, match="that is all"):
        pretrain.run(config)
    assert learned == ["Once upon a time."]


@pytest.mark.parametrize("kind", ["unigram", "byte_pair", "byte"])
def test_every_kind_of_tokenizer_is_learned(kind, tmp_path):
    config = pretrain.TokenizerConfig(kind=kind, vocabulary_size=400)
    tokenizer = pretrain.build_tokenizer(tmp_path / "a", CORPUS, config)
    assert tokenizer.decode(tokenizer.encode("Cup 3 杯")) == "Cup 3 杯"
    again = pretrain.build_tokenizer(tmp_path / "a", CORPUS, config)
    assert again.fingerprint() == tokenizer.fingerprint()


def test_a_tokenizer_that_is_given_is_copied(tmp_path):
    theirs = put_family(tmp_path, "qwen2")
    config = pretrain.TokenizerConfig(path=str(theirs))
    tokenizer = pretrain.build_tokenizer(tmp_path / "a", CORPUS, config)
    again = load_tokenizer(tmp_path / "a")
    assert again.fingerprint() == tokenizer.fingerprint()
    assert again.chat_format == tokenizer.chat_format
    assert again.chat_format.name == "chatml"


def test_a_tokenizer_that_loses_text_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    save_tokenizer(tmp_path / "a", tiny_word_piece())
    config = pretrain.TokenizerConfig(path=str(tmp_path / "a"))
    with pytest.raises(InputError, match="'word_piece' does not give texts"):
        pretrain.build_tokenizer(tmp_path / "b", CORPUS, config)
    assert not (tmp_path / "b").exists()


def test_a_damaged_tokenizer_is_found(tmp_path):
    config = pretrain.TokenizerConfig(vocabulary_size=400)
    pretrain.build_tokenizer(tmp_path / "tokenizer", CORPUS, config)
    path = tmp_path / "tokenizer" / "sentencepiece.model"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        pretrain.build_tokenizer(tmp_path / "tokenizer", CORPUS, config)


@pytest.mark.parametrize("size", [100, 299])
def test_a_vocabulary_that_is_too_small_is_refused(tmp_path, size):
    with pytest.raises(InputError, match=f"^tokenizer.vocabulary_size={size}:"):
        tiny(tmp_path, f"tokenizer.vocabulary_size={size}")
    with pytest.raises(InputError, match="seed=-1: must be at least 0"):
        tiny(tmp_path, "seed=-1")


def test_of_much_text_the_tokenizer_learns_a_random_part(tmp_path, monkeypatch):
    learned = []
    original = pretrain.train_tokenizer

    def train_tokenizer(kind, texts, *, vocabulary_size):
        learned.append(texts)
        return original(kind, texts, vocabulary_size=vocabulary_size)

    monkeypatch.setattr(pretrain, "train_tokenizer", train_tokenizer)
    contents = [message["content"] for chat in CHATS for message in chat]
    size = sum(map(len, DOCUMENTS + contents))
    monkeypatch.setattr(pretrain, "TOKENIZER_CHARACTERS", size // 2)
    config = pretrain.TokenizerConfig(vocabulary_size=400)
    for name in ("a", "b"):
        pretrain.build_tokenizer(tmp_path / name, CORPUS, config)
    texts, again = learned
    assert texts == again
    assert len(texts) == len(DOCUMENTS + contents) // 2
    # Documents, questions and answers alike.
    for group in (DOCUMENTS, contents[::2], contents[1::2]):
        assert 0.2 < len(set(texts) & set(group)) / len(group) < 0.8


def chats_of(*lengths):
    # <|document|> <|user|> text <|end_of_turn|>
    return dataclasses.replace(
        CORPUS,
        chats=[
            [{"role": "user", "content": "a" * (length - 3)}]
            for length in lengths
        ],
        is_validation=[False] * len(lengths),
    )


@pytest.mark.parametrize(
    ("lengths", "context"),
    [
        ([10] * 100, 256),
        ([256] * 100, 256),
        ([257] * 100, 512),
        ([10] * 90 + [600] * 10, 1024),
        # One in a hundred may be too long.
        ([10] * 99 + [600], 256),
        # Attention over more would cost too much; it can be set.
        ([2000] * 100, 2048),
        ([5000] * 100, 2048),
        ([], 256),
    ],
)
def test_the_context_holds_nearly_all_conversations(lengths, context):
    corpus = chats_of(*lengths)
    assert pretrain.choose_context(corpus, ByteTokenizer()) == context


def test_too_long_conversations_are_found_before_the_training(
    tmp_path, trained
):
    long = [
        CHATS[0][0],
        {"role": "assistant", "content": "x" * 64},
    ]
    corpus = dataclasses.replace(
        CORPUS,
        chats=[*CHATS, *[long] * 5],
        is_validation=[*IS_VALIDATION, *[False] * 5],
    )
    config = tiny(tmp_path)
    with pytest.raises(InputError, match="5 of 45 rows cannot be used"):
        pretrain.run(config, corpus, tell=lambda line: None)
    # Nothing but the tokenizer was made, and the corrected run may go on.
    assert not (tmp_path / "data").exists()
    assert not trained
    allowed = config.override(["data.max_skipped_fraction=0.2"])
    pretrain.run(allowed, corpus, tell=lambda line: None)
    assert len(trained) == 1


def test_the_shop_has_the_default_context():
    corpus = dataclasses.replace(chats_of(*[5000] * 9), world="a world")
    assert pretrain.choose_context(corpus, ByteTokenizer()) == 256


def write_chats(path, chats=CHATS):
    lines = [json.dumps({"messages": chat}) for chat in chats]
    path.write_text("\n".join(lines))
    return f"data.path={path}"


def test_changed_files_are_not_mixed_into_a_run(tmp_path, trained):
    config = tiny(tmp_path / "run", write_chats(tmp_path / "chats.jsonl"))
    pretrain.run(config, tell=lambda line: None)
    pretrain.run(config, tell=lambda line: None)
    write_chats(tmp_path / "chats.jsonl", CHATS[:-1])
    with pytest.raises(InputError, match="the data changed") as caught:
        pretrain.run(config, tell=lambda line: None)
    assert "overwrite=true" in str(caught.value)
    again = dataclasses.replace(config, overwrite=True)
    pretrain.run(again, tell=lambda line: None)


def test_settings_of_fine_tuning_only_do_not_make_another_base(
    tmp_path, trained
):
    pretrain.run(tiny(tmp_path), CORPUS, tell=lambda line: None)
    overrides = (
        "data.replay_fraction=0.1",
        "data.max_skipped_fraction=0.5",
    )
    pretrain.run(tiny(tmp_path, *overrides), CORPUS, tell=lambda line: None)
    assert len(trained) == 2
    other = tiny(tmp_path, "data.validation_fraction=0.3")
    with pytest.raises(InputError, match=r"data\.validation_fraction=0\.2"):
        pretrain.run(other, CORPUS, tell=lambda line: None)


def test_another_start_is_other_data(tmp_path):
    config = tiny(tmp_path).data
    inits = [tmp_path / "a", tmp_path / "b"]
    for init in inits:
        (init / "model").mkdir(parents=True)
        (init / "model" / "model.safetensors").write_text("weights")
        (init / "model" / "manifest.json").write_text(f"of {init.name}")
    run = tmp_path / "run"
    run.mkdir()
    pretrain.claim_data(run, config, init=str(inits[0]))
    # The same model, whatever it is called.
    pretrain.claim_data(run, config, init=str(inits[0] / "model"))
    for init in (str(inits[1]), ""):
        with pytest.raises(InputError, match="the data changed"):
            pretrain.claim_data(run, config, init=init)


def test_a_changed_file_of_a_folder_counts_too(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    config = tiny(tmp_path, f"data.documents_path={folder}").data
    before = pretrain.source_hashes(config)
    assert before.startswith("documents_path ")
    assert pretrain.source_hashes(config) == before
    # Files that are not read do not count.
    (folder / ".b.txt").write_text("two")
    (folder / "b.png").write_text("two")
    assert pretrain.source_hashes(config) == before
    (folder / "b.txt").write_text("two")
    assert pretrain.source_hashes(config) != before


def test_the_shop_and_tensorflow_datasets_have_no_files():
    for path in ("", "tfds:tiny_shakespeare"):
        config = tiny("run", f"data.documents_path={path}").data
        assert pretrain.source_hashes(config) == ""


@pytest.mark.parametrize("content", [None, b"", b"{", b"\x00\x01", b"\xff"])
def test_a_file_that_cannot_be_read_leaves_no_folder(tmp_path, content):
    path = tmp_path / "texts.jsonl"
    if content is not None:
        path.write_bytes(content)
    config = tiny(tmp_path / "run", f"data.documents_path={path}")
    with pytest.raises(InputError, match=r"texts\.jsonl"):
        pretrain.run(config)
    assert not (tmp_path / "run").exists()


def test_the_folder_of_other_settings_is_refused(tmp_path, trained):
    pretrain.run(tiny(tmp_path), CORPUS, tell=lambda line: None)
    with pytest.raises(InputError, match=r"train\.steps=2, not 3"):
        pretrain.run(tiny(tmp_path, "train.steps=3"), CORPUS)


def test_own_texts_train_end_to_end(tmp_path, trained):
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(DOCUMENTS):
        (tmp_path / "texts" / f"{number}.md").write_text(text)
    config = tiny(
        tmp_path / "run",
        f"data.documents_path={tmp_path / 'texts'}",
        write_chats(tmp_path / "chats.jsonl"),
    )
    assert sorted(load_corpus(config.data).documents) == sorted(DOCUMENTS)
    pretrain.run(config, tell=lambda line: None)
    assert len(trained[0]["rows"]["train"]) > 0


def _other_tokenizer(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"], manifest["sha256"]
    manifest["tokenizer_fingerprint"] = "of another"
    write_manifest(folder, **manifest)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "train.token_ids.npy").write_bytes(b"half"),
        lambda folder: (folder / "train.offsets.npy").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        _other_tokenizer,
    ],
    ids=["corrupt", "missing", "manifest", "another tokenizer"],
)
def test_damaged_shards_are_made_anew(tmp_path, trained, damage):
    pretrain.run(tiny(tmp_path), CORPUS, tell=lambda line: None)
    # A copy: the file is mapped into memory.
    before = np.array(trained[0]["rows"]["train"].token_ids)
    damage(tmp_path / "data")
    with pytest.raises(InputError):
        load_shards(
            tmp_path / "data",
            tokenizer_fingerprint=ByteTokenizer().fingerprint(),
        )
    pretrain.run(tiny(tmp_path), CORPUS, tell=lambda line: None)
    after = trained[1]["rows"]["train"].token_ids
    np.testing.assert_array_equal(after, before)


def test_a_model_goes_on_learning_with_its_tokenizer(tmp_path, trained):
    first = pretrain.run(tiny(tmp_path / "first"), CORPUS, tell=quiet)
    save_model(tmp_path / "init", first.model, first.tokenizer)
    config = pretrain.PretrainConfig(run_dir=str(tmp_path / "more")).override(
        [f"init={tmp_path / 'init'}", "train.batch_tokens=128"]
    )
    result = pretrain.run(config, CORPUS, tell=quiet)
    assert result.tokenizer.kind == "byte"
    for one, other in zip(
        trained[-1]["weights"], trained[0]["weights"], strict=True
    ):
        np.testing.assert_array_equal(one, other)
    changed = first.model
    changed.set_weights([weight + 1 for weight in changed.get_weights()])
    save_model(tmp_path / "init", changed, first.tokenizer)
    pretrain.run(
        dataclasses.replace(config, overwrite=True), CORPUS, tell=quiet
    )
    np.testing.assert_array_equal(
        trained[-1]["weights"][0], trained[0]["weights"][0] + 1
    )


def test_what_the_start_brings_cannot_be_set():
    config = pretrain.PretrainConfig(init="a")
    for override in ("model.depth=2", "tokenizer.kind=byte"):
        with pytest.raises(InputError, match="brings its own model"):
            config.override([override])


def quiet(line):
    pass


def test_a_run_of_any_model_is_claimed_with_its_data_and_tokenizer(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("to be or not to be\n")
    config = tiny(tmp_path / "run", f"data.documents_path={path}").override(
        ["tokenizer.kind=byte_pair", "tokenizer.vocabulary_size=300"]
    )
    data = config.data
    texts = ["to be or not to be", "你好，世界"] * 9
    folder, tokenizer = pretrain.open_run(config, texts, data)
    (folder / "result.json").write_text("{}")
    # Other texts: the tokenizer is the one that was trained.
    _, again = pretrain.open_run(
        config.override(["distribute=none"]),
        ["x"],
        data,
        ignored=("distribute",),
    )
    assert again.fingerprint() == tokenizer.fingerprint()
    path.write_text("another text\n")
    with pytest.raises(InputError, match="the data changed since this run"):
        pretrain.open_run(config, texts, data)
