import json

import numpy as np
import pytest

from kerasgpt.config import InputError
from kerasgpt.data.prepare import (
    DataConfig,
    held_out,
    held_out_chats,
    load_corpus,
    prepare_chats,
    prepare_documents,
)
from kerasgpt.data.sources import Skipped
from kerasgpt.tokenizers import ByteTokenizer

FRACTION = 0.2
TEXTS = [f"document number {number}" for number in range(300)]


def chat(number, question="How much is cup"):
    return [
        {"role": "user", "content": f"{question} {number}?"},
        {"role": "assistant", "content": f"{number} euros."},
    ]


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


def test_only_what_the_assistant_says_is_trained(tokenizer, tmp_path):
    talk = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "AB"},
        {"role": "tool", "content": "T"},
        {"role": "assistant", "content": "C"},
    ]
    chats = [talk, *(chat(number) for number in range(50))]
    shards, _ = prepare_chats(
        chats, tokenizer, tmp_path / "a", validation_fraction=FRACTION
    )
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
    shards, _ = prepare_chats(
        chats, tokenizer, tmp_path / "a", validation_fraction=FRACTION
    )
    held = held_out_chats(chats, FRACTION)
    assert 0 < len(held) < len(chats)
    # Decoding leaves out the control ids, so contents stand side by side.
    assert texts(shards, tokenizer)["validation"] == [
        "".join(message["content"] for message in one) for one in held
    ]


def test_skipped_rows_are_listed_in_the_manifest(tokenizer, tmp_path):
    _, manifest = prepare_chats(
        [chat(number) for number in range(50)],
        tokenizer,
        tmp_path / "a",
        validation_fraction=FRACTION,
        skipped=[Skipped("a.jsonl, line 3", "unknown role 'x'")],
    )
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


def prepare_with_replay(tokenizer, folder, fraction, length=None):
    return prepare_chats(
        [chat(number) for number in range(100)],
        tokenizer,
        folder,
        validation_fraction=FRACTION,
        replay=[text * 3 for text in TEXTS],
        replay_fraction=fraction,
        replay_length=length,
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
    mixed, _ = prepare_with_replay(tokenizer, tmp_path / "a", 0.3, length=20)
    whole, _ = prepare_with_replay(tokenizer, tmp_path / "b", 0.3)
    np.testing.assert_array_equal(
        mixed["train"].token_ids, whole["train"].token_ids
    )
    np.testing.assert_array_equal(
        mixed["train"].loss_mask, whole["train"].loss_mask
    )
    num_chats = 100 - len(held_out_chats([chat(n) for n in range(100)], 0.2))
    lengths = np.diff(mixed["train"].offsets)[num_chats:]
    assert lengths.max() == 20


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
    held = held_out_chats(corpus.chats, FRACTION)
    assert len(corpus.documents) == len(chats) - len(held)
    # They are no documents of their own that fine-tuning could replay.
    assert corpus.replay == []
    text = "\n".join(corpus.documents)
    assert held
    for one in held:
        assert one[0]["content"] not in text


def test_documents_of_their_own_replace_the_chats_texts(tmp_path):
    path = write_chats(tmp_path / "chats.jsonl", [chat(1)])
    (tmp_path / "story.txt").write_text("Once upon a time.")
    corpus = load_corpus(
        DataConfig(path=path, documents_path=str(tmp_path / "story.txt"))
    )
    assert corpus.documents == corpus.replay == ["Once upon a time."]
    assert corpus.chats == [chat(1)]


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
    config = DataConfig(num_products=10, num_documents=5, num_chats=7)
    corpus = load_corpus(config)
    assert (len(corpus.documents), len(corpus.chats)) == (5, 7)
    assert corpus.replay == corpus.documents
    assert corpus.skipped == []
    assert load_corpus(config) == corpus


@pytest.mark.parametrize(
    "change",
    [
        {"validation_fraction": 1.0},
        {"validation_fraction": -0.1},
        {"replay_fraction": 1.0},
        {"max_skipped_fraction": 1.5},
        {"num_products": 0},
        {"num_documents": 0},
        {"num_chats": -1},
    ],
)
def test_values_out_of_range_are_refused_by_name(change):
    (name,) = change
    with pytest.raises(InputError, match=f"data.{name}"):
        DataConfig(**change)
