import dataclasses
import json

import numpy as np
import pytest

from kerasgpt.config import InputError
from kerasgpt.data.preparation import PreparationConfig, prepare_files
from kerasgpt.data.prepare import (
    Corpus,
    DataConfig,
    fit_chats,
    held_out,
    load_corpus,
    prepare_chats,
    prepare_documents,
)
from kerasgpt.data.prepared import read_prepared, row_text
from kerasgpt.data.sources import Skipped
from kerasgpt.tokenizers import ByteTokenizer

FRACTION = 0.2
TEXTS = [f"document number {number}" for number in range(300)]


def chat(number, question="How much is cup"):
    return [
        {"role": "user", "content": f"{question} {number}?"},
        {"role": "assistant", "content": f"{number} euros."},
    ]


def corpus_of(chats, *, replay=(), fraction=FRACTION, skipped=(), world=None):
    """Returns a Corpus of conversations, split by a hash of their texts."""
    texts = ["\n".join(message["content"] for message in one) for one in chats]
    return Corpus(
        documents=list(replay),
        replay=list(replay),
        chats=chats,
        is_validation=held_out(texts, fraction),
        skipped=list(skipped),
        world=world,
    )


@pytest.fixture(scope="module")
def tokenizer():
    return ByteTokenizer()


def rows(shard):
    """Returns (ids, loss mask) of each document of a shard, as lists."""
    return [
        (
            shard.token_ids[start:end].tolist(),
            shard.loss_mask[start:end].tolist(),
        )
        for start, end in zip(
            shard.offsets[:-1], shard.offsets[1:], strict=True
        )
    ]


def texts(shards, tokenizer):
    return {
        name: [tokenizer.decode(ids) for ids, _ in rows(shard)]
        for name, shard in shards.items()
    }


def test_splits_are_disjoint_and_lose_nothing(tokenizer, tmp_path):
    shards, _ = prepare_documents(
        TEXTS * 2, tokenizer, tmp_path / "a", validation_fraction=FRACTION
    )
    split = texts(shards, tokenizer)
    train, validation = set(split["train"]), set(split["validation"])
    assert not train & validation
    assert train | validation == set(TEXTS)
    # Equal texts stand together on one side.
    assert len(split["train"]) == 2 * len(train)
    assert len(split["validation"]) == 2 * len(validation)


def test_a_text_stays_on_its_side_when_data_is_added(tokenizer, tmp_path):
    split = {}
    for name, documents in {
        "small": TEXTS[:200],
        "large": TEXTS[::-1] + ["and one more"],
    }.items():
        shards, _ = prepare_documents(
            documents,
            tokenizer,
            tmp_path / name,
            validation_fraction=FRACTION,
        )
        split[name] = texts(shards, tokenizer)
    for side in ("train", "validation"):
        assert set(split["small"][side]) <= set(split["large"][side])


def chosen(texts, fraction):
    """Returns the texts of the validation split."""
    splits = held_out(texts, fraction)
    return [
        text for text, is_held in zip(texts, splits, strict=True) if is_held
    ]


def test_the_held_out_share_is_near_the_fraction():
    texts = [f"text {number}" for number in range(5000)]
    # Binomial: 0.1 with a standard deviation of 0.0042.
    assert abs(np.mean(held_out(texts, 0.1)) - 0.1) < 0.015


def test_a_larger_fraction_holds_out_the_same_texts_and_more():
    assert set(chosen(TEXTS, 0.1)) < set(chosen(TEXTS, 0.3))


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_however_few_texts_there_are_each_side_gets_one(count, fraction):
    assert 0 < len(chosen(TEXTS[:count], fraction)) < count
    equal = TEXTS[:1] * 5 + TEXTS[1:2] * 5
    assert len(chosen(equal, fraction)) == 5


def test_every_token_of_a_document_is_trained_but_the_first(
    tokenizer, tmp_path
):
    shards, manifest = prepare_documents(
        TEXTS, tokenizer, tmp_path / "a", validation_fraction=FRACTION
    )
    start = tokenizer.control_id("<|document|>")
    end = tokenizer.control_id("<|end_of_document|>")
    for ids, mask in rows(shards["train"]):
        assert ids == [start, *tokenizer.encode(tokenizer.decode(ids)), end]
        assert mask == [0] + [1] * (len(ids) - 1)
    assert manifest["tokenizer_fingerprint"] == tokenizer.fingerprint()
    counts = manifest["splits"]["train"]
    assert counts["documents"] == shards["train"].num_documents
    assert counts["tokens"] == shards["train"].num_tokens
    assert counts["trained_tokens"] == counts["tokens"] - counts["documents"]


def prepare(corpus, tokenizer, folder, **changes):
    options = {"replay_fraction": 0.25, "replay_length": 1000, "seed": 0}
    return prepare_chats(corpus, tokenizer, folder, **{**options, **changes})


def test_only_what_the_assistant_says_is_trained(tokenizer, tmp_path):
    talk = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "AB"},
        {"role": "tool", "content": "T"},
        {"role": "assistant", "content": "C"},
    ]
    chats = [talk, *(chat(number) for number in range(50))]
    shards, _ = prepare(corpus_of(chats), tokenizer, tmp_path / "a")
    names = ("document", "system", "user", "assistant", "tool", "end_of_turn")
    document, system, user, assistant, tool, end = (
        tokenizer.control_id(f"<|{name}|>") for name in names
    )
    s, u, a, b, t, c = tokenizer.encode("SUABTC")
    expected = [
        (document, 0),
        *[(system, 0), (s, 0), (end, 0)],
        *[(user, 0), (u, 0), (end, 0)],
        *[(assistant, 0), (a, 1), (b, 1), (end, 1)],
        *[(tool, 0), (t, 0), (end, 0)],
        *[(assistant, 0), (c, 1), (end, 1)],
    ]
    found = [row for shard in shards.values() for row in rows(shard)]
    assert tuple(map(list, zip(*expected, strict=True))) in found


def test_held_out_chats_are_those_of_the_validation_shard(tokenizer, tmp_path):
    chats = [chat(number) for number in range(100)]
    corpus = corpus_of(chats)
    shards, _ = prepare(corpus, tokenizer, tmp_path / "a")
    held = corpus.held_out_chats
    assert 0 < len(held) < len(chats)
    assert shards["train"].num_documents == len(chats) - len(held)
    # Decoding leaves out the control ids, so contents stand side by side.
    assert texts(shards, tokenizer)["validation"] == [
        "".join(message["content"] for message in one) for one in held
    ]


def test_skipped_rows_are_listed_in_the_manifest(tokenizer, tmp_path):
    corpus = corpus_of(
        [chat(number) for number in range(50)],
        skipped=[Skipped("a.jsonl, line 3", "unknown role 'x'")],
    )
    _, manifest = prepare(corpus, tokenizer, tmp_path / "a")
    assert manifest["skipped"] == [
        {"location": "a.jsonl, line 3", "reason": "unknown role 'x'"}
    ]


@pytest.mark.parametrize("documents", [TEXTS[:1], TEXTS[:1] * 4])
def test_texts_that_cannot_be_split_are_refused(tokenizer, tmp_path, documents):
    with pytest.raises(InputError, match="at least two different ones"):
        prepare_documents(
            documents, tokenizer, tmp_path / "a", validation_fraction=0.1
        )
    assert not any(tmp_path.iterdir())


def prepare_with_replay(
    tokenizer, folder, fraction, *, length=1000, seed=0, world="a world"
):
    corpus = corpus_of(
        [chat(number) for number in range(100)],
        replay=[text * 3 for text in TEXTS],
        world=world,
    )
    return prepare(
        corpus,
        tokenizer,
        folder,
        replay_fraction=fraction,
        replay_length=length,
        seed=seed,
    )


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_documents_are_replayed_in_training_only(tokenizer, tmp_path, fraction):
    plain, _ = prepare_with_replay(tokenizer, tmp_path / "a", 0.0)
    mixed, _ = prepare_with_replay(tokenizer, tmp_path / "b", fraction)
    assert rows(mixed["validation"]) == rows(plain["validation"])
    num_chats = plain["train"].num_documents
    assert rows(mixed["train"])[:num_chats] == rows(plain["train"])
    replayed = rows(mixed["train"])[num_chats:]
    assert [tokenizer.decode(ids) for ids, _ in replayed] == [
        text * 3 for text in TEXTS[: len(replayed)]
    ]
    for ids, mask in replayed:
        assert mask == [0] + [1] * (len(ids) - 1)
    # Their share of all tokens, up to one document.
    num_tokens = plain["train"].num_tokens + plain["validation"].num_tokens
    num_replayed = mixed["train"].num_tokens - plain["train"].num_tokens
    wanted = fraction / (1 - fraction) * num_tokens
    assert wanted <= num_replayed < wanted + 100


def test_replayed_documents_are_cut_to_the_length_and_lose_nothing(
    tokenizer, tmp_path
):
    plain, _ = prepare_with_replay(tokenizer, tmp_path / "c", 0.0)
    mixed, _ = prepare_with_replay(tokenizer, tmp_path / "a", 0.3, length=20)
    whole, _ = prepare_with_replay(tokenizer, tmp_path / "b", 0.3)
    num_chats = plain["train"].num_documents
    pieces, documents = (
        rows(shards["train"])[num_chats:] for shards in (mixed, whole)
    )
    # 20 positions and the target of the last one.
    assert max(len(ids) for ids, _ in pieces) == 21

    def targets(found):
        return [
            (token_id, is_trained)
            for ids, mask in found
            for token_id, is_trained in zip(ids[1:], mask[1:], strict=True)
        ]

    # Every token but a document's first is a target, exactly once.
    assert targets(pieces) == targets(documents)
    assert all(is_trained for _, is_trained in targets(pieces))


def test_documents_of_the_user_are_replayed_in_an_order_of_the_seed(
    tokenizer, tmp_path
):
    orders = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        shards, _ = prepare_with_replay(
            tokenizer, tmp_path / name, 0.5, seed=seed, world=None
        )
        told = texts(shards, tokenizer)["train"]
        orders.append([text for text in told if text.startswith("document")])
    first, again, other = orders
    assert first == again != other
    # Any of them, and none twice, though files may be sorted.
    assert len(set(first)) == len(first) < len(TEXTS)
    assert first != [text * 3 for text in TEXTS[: len(first)]]
    assert set(first) <= {text * 3 for text in TEXTS}


# Conversations that fit the context.


def fit(chats, tokenizer, context, allowed=1.0):
    return fit_chats(
        corpus_of(chats), tokenizer, context, max_skipped_fraction=allowed
    )


def test_a_long_conversation_loses_whole_turns_from_its_end(tokenizer):
    short = [chat(number) for number in range(40)]
    long = [*chat(77), *chat(78), *chat(79)]
    # A document id, and two control ids around each content; the last id of
    # the context's is predicted only.
    lengths = [len(message["content"]) + 2 for message in long]
    for kept in (2, 3, 4, 5, 6):
        context = sum(lengths[:kept])
        for change, expected in ((0, kept), (-1, kept - 1)):
            if expected < 2:
                continue
            corpus = fit([*short, long], tokenizer, context + change)
            assert corpus.chats[:-1] == short
            assert corpus.chats[-1] == long[:expected]
            assert corpus.skipped == []


def test_a_conversation_whose_first_answer_does_not_fit_is_skipped(tokenizer):
    short = [chat(number) for number in range(40)]
    long = chat(77, "x" * 60)
    before = corpus_of([*short[:20], long, *short[20:]])
    corpus = fit_chats(before, tokenizer, 64, max_skipped_fraction=0.05)
    assert corpus.chats == short
    # The others stay on their side of the split.
    kept = before.is_validation[:20] + before.is_validation[21:]
    assert corpus.is_validation == kept
    (skipped,) = corpus.skipped
    assert skipped.location == "conversation 21"
    assert "does not fit the context of 64" in skipped.reason
    assert "raise model.context_length" in skipped.reason
    assert before.skipped == []


def test_an_empty_answer_is_no_answer(tokenizer):
    long = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": ""},
        *chat(77, "x" * 60),
    ]
    chats = [chat(number) for number in range(40)]
    assert len(fit([*chats, long], tokenizer, 64).skipped) == 1
    assert fit([*chats, long], tokenizer, 128).chats[-1] == long


def test_too_many_skipped_conversations_are_an_error(tokenizer):
    chats = [chat(number) for number in range(38)]
    chats += [chat(number, "x" * 60) for number in (77, 78)]
    assert len(fit(chats, tokenizer, 64, 0.05).skipped) == 2
    with pytest.raises(InputError) as caught:
        fit(chats, tokenizer, 64, 0.04)
    told = str(caught.value)
    assert "conversations: 2 of 40 rows cannot be used" in told
    assert "data.max_skipped_fraction=0.04" in told
    assert "\n" not in told


@pytest.mark.parametrize("left", ["nothing", "train", "validation"])
def test_a_split_of_which_nothing_fits_is_an_error(tokenizer, left):
    corpus = corpus_of([chat(number) for number in range(40)])
    chats = [
        one
        if left == ("validation" if is_validation else "train")
        else [*one[:1], {"role": "assistant", "content": "x" * 99}]
        for one, is_validation in zip(
            corpus.chats, corpus.is_validation, strict=True
        )
    ]
    corpus = dataclasses.replace(corpus, chats=chats)
    with pytest.raises(InputError, match="too few conversations fit") as caught:
        fit_chats(corpus, tokenizer, 64, max_skipped_fraction=1.0)
    assert "model.context_length=64" in str(caught.value)


def test_a_corpus_without_conversations_fits(tokenizer):
    corpus = Corpus(TEXTS, TEXTS, [], [], [], None)
    assert fit_chats(corpus, tokenizer, 8, max_skipped_fraction=0.0) == corpus


# The corpus.


def write_chats(path, chats):
    lines = [json.dumps({"messages": one}) for one in chats]
    path.write_text("\n".join(lines))
    return str(path)


def test_pretraining_documents_hold_no_validation_conversation(tmp_path):
    chats = [chat(number) for number in range(200)]
    path = write_chats(tmp_path / "chats.jsonl", chats)
    corpus = load_corpus(DataConfig(path=path, validation_fraction=FRACTION))
    assert corpus.chats == chats
    assert corpus.world is None
    held = corpus.held_out_chats
    assert len(corpus.documents) == len(chats) - len(held)
    # They are no documents of their own that fine-tuning could replay.
    assert corpus.replay == []
    text = "\n".join(corpus.documents)
    assert held
    for one in held:
        assert one[0]["content"] not in text


def test_documents_of_their_own_replace_the_chats_texts(tmp_path):
    chats = [chat(1), chat(2)]
    path = write_chats(tmp_path / "chats.jsonl", chats)
    (tmp_path / "story.txt").write_text("Once upon a time.")
    corpus = load_corpus(
        DataConfig(path=path, documents_path=str(tmp_path / "story.txt"))
    )
    assert corpus.documents == corpus.replay == ["Once upon a time."]
    assert corpus.chats == chats
    assert sorted(corpus.is_validation) == [False, True]


def test_documents_that_equal_a_held_out_conversation_are_dropped(tmp_path):
    chats = [chat(number) for number in range(50)]
    path = write_chats(tmp_path / "chats.jsonl", chats)
    alone = load_corpus(DataConfig(path=path, validation_fraction=FRACTION))
    # The same file as chats and as documents, and a text more.
    more = tmp_path / "more.jsonl"
    more.write_text((tmp_path / "chats.jsonl").read_text())
    more.write_text(more.read_text() + '\n{"text": "Once upon a time."}')
    corpus = load_corpus(
        DataConfig(
            path=path, documents_path=str(more), validation_fraction=FRACTION
        )
    )
    assert corpus.held_out_chats == alone.held_out_chats != []
    assert corpus.documents == [*alone.documents, "Once upon a time."]
    assert corpus.replay == corpus.documents


def test_documents_without_chats_join_those_of_the_shop(tmp_path):
    (tmp_path / "story.txt").write_text("Once upon a time.")
    config = DataConfig(num_products=20, num_documents=5, num_chats=7)
    shop = load_corpus(config)
    config = dataclasses.replace(
        config, documents_path=str(tmp_path / "story.txt")
    )
    corpus = load_corpus(config)
    assert corpus.documents == [*shop.documents, "Once upon a time."]
    assert corpus.replay == corpus.documents
    assert (corpus.chats, corpus.world) == (shop.chats, shop.world)
    # A base model of yours learns nothing of the shop.
    alone = load_corpus(config, with_chats=False)
    assert alone.documents == ["Once upon a time."]
    assert (alone.chats, alone.is_validation, alone.world) == ([], [], None)


def test_skipped_rows_of_chats_and_documents_are_both_counted(tmp_path):
    path = tmp_path / "chats.jsonl"
    write_chats(path, [chat(number) for number in range(30)])
    path.write_text(path.read_text() + '\n{"text": "a"}')
    documents = tmp_path / "documents.jsonl"
    documents.write_text('{"text": "a"}\n' * 30 + '{"text": 3}')
    corpus = load_corpus(
        DataConfig(path=str(path), documents_path=str(documents))
    )
    assert [row.location for row in corpus.skipped] == [
        f"{path}, line 31",
        f"{documents}, line 31",
    ]


def test_the_shop_is_the_data_when_no_file_is_named():
    config = DataConfig(num_products=20, num_documents=5, num_chats=7)
    corpus = load_corpus(config)
    assert 0 < len(corpus.held_out_chats) < 7 == len(corpus.is_validation)
    assert (len(corpus.documents), len(corpus.chats)) == (5, 7)
    assert corpus.replay == corpus.documents
    assert corpus.skipped == []
    assert load_corpus(config) == corpus
    assert load_corpus(config, with_chats=False) == corpus


@pytest.mark.parametrize(
    "change",
    [
        {"validation_fraction": 1.0},
        {"validation_fraction": -0.1},
        {"replay_fraction": 1.0},
        {"max_skipped_fraction": 1.5},
        {"num_products": 19},
        {"num_products": 2001},
        {"num_documents": 1},
        {"num_chats": 1},
    ],
)
def test_values_out_of_range_are_refused_by_name(change):
    ((name, value),) = change.items()
    with pytest.raises(InputError, match=f"^{name}={value}: must be at "):
        DataConfig(**change)


# Data that kerasgpt data prepare made.


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """Returns a folder of prepared documents and chats, with all splits."""
    folder = tmp_path_factory.mktemp("prepared")
    raw = folder / "raw.jsonl"
    rows = [{"text": text} for text in TEXTS]
    rows += [{"messages": chat(number)} for number in range(100)]
    raw.write_text("\n".join(map(json.dumps, rows)))
    config = PreparationConfig().override(
        [
            "num_workers=1",
            "remove_near_duplicates=false",
            "split.validation_fraction=0.3",
            "split.test_fraction=0.2",
        ]
    )
    prepare_files([str(raw)], folder / "out", config, tell=lambda line: None)
    return folder / "out"


def split_texts(ready, split, kind):
    found = read_prepared(ready, splits=(split,), kinds=(kind,))
    return {row_text(row) for _, row in found}


def test_splits_of_prepared_documents_are_kept(ready, tokenizer, tmp_path):
    # A fraction that would give another split.
    config = DataConfig(path=str(ready), validation_fraction=0.01)
    corpus = load_corpus(config, with_chats=False)
    shards, _ = prepare_documents(
        corpus.documents,
        tokenizer,
        tmp_path / "a",
        validation_fraction=config.validation_fraction,
        is_validation=corpus.is_validation_document,
    )
    found = texts(shards, tokenizer)
    for name in ("train", "validation"):
        assert set(found[name]) == split_texts(ready, name, "documents")
    assert corpus.replay == [
        text for text in corpus.documents if text in set(found["train"])
    ]


def test_splits_of_prepared_chats_are_kept(ready):
    corpus = load_corpus(DataConfig(path=str(ready), validation_fraction=0.01))
    joined = [
        "\n".join(message["content"] for message in one) for one in corpus.chats
    ]
    for name in ("train", "validation"):
        assert {
            text
            for text, is_validation in zip(
                joined, corpus.is_validation, strict=True
            )
            if is_validation == (name == "validation")
        } == split_texts(ready, name, "chats")
    assert len(joined) + len(split_texts(ready, "test", "chats")) == 100


def test_prepared_documents_may_be_given_by_name(ready):
    config = DataConfig(documents_path=str(ready))
    corpus = load_corpus(config, with_chats=False)
    held = {
        text
        for text, is_validation in zip(
            corpus.documents, corpus.is_validation_document, strict=True
        )
        if is_validation
    }
    assert held == split_texts(ready, "validation", "documents") | (
        split_texts(ready, "validation", "chats")
    )
    # Beside the shop, whose documents are split by a hash.
    corpus = load_corpus(
        dataclasses.replace(config, num_documents=50, num_products=20)
    )
    assert len(corpus.documents) == len(corpus.is_validation_document)
    assert held <= {
        text
        for text, is_validation in zip(
            corpus.documents, corpus.is_validation_document, strict=True
        )
        if is_validation
    }


def test_prepared_data_without_validation_are_split_here(tmp_path):
    raw = tmp_path / "raw.jsonl"
    raw.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    config = PreparationConfig().override(
        [
            "num_workers=1",
            "remove_near_duplicates=false",
            "split.validation_fraction=0",
        ]
    )
    prepare_files([str(raw)], tmp_path / "out", config, tell=lambda line: None)
    corpus = load_corpus(
        DataConfig(path=str(tmp_path / "out")), with_chats=False
    )
    assert sorted(corpus.documents) == sorted(TEXTS)
    assert corpus.is_validation_document == []
