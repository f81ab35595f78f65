"""Owns documents and conversations -> shards. Not: reading or batching them."""

import dataclasses
import hashlib

import numpy as np

from kerasgpt.config import Config, InputError, setting
from kerasgpt.data import shop
from kerasgpt.data.shards import build_shard, load_shards, save_shards
from kerasgpt.data.sources import read_chats, read_documents
from kerasgpt.tokenizers.chat_template import ChatTemplate


@dataclasses.dataclass(frozen=True)
class DataConfig(Config):
    """What is learned from: your files, or the embedded shop without any."""

    path: str = setting(
        "",
        "conversations: .jsonl or .json (messages, Alpaca, ShareGPT), a "
        "folder, or tfds:NAME; empty = the embedded shop",
    )
    documents_path: str = setting(
        "",
        "texts for pretraining: .txt, .md, .jsonl with text, a folder, or "
        "tfds:NAME; empty = the shop's documents, or the texts of data.path",
    )
    world_seed: int = setting(0, "which shop; another seed, another world")
    num_products: int = setting(100, "products of the shop")
    num_documents: int = setting(40_000, "documents about the shop")
    num_chats: int = setting(24_000, "training chats about the shop")
    validation_fraction: float = setting(
        0.02, "share held out for validation, chosen by a hash of the text"
    )
    replay_fraction: float = setting(
        0.25,
        "share of documents among the tokens of fine-tuning, so that what they "
        "told is not forgotten; none if there are only conversations",
    )
    max_skipped_fraction: float = setting(
        0.05, "largest share of unusable rows that is only reported"
    )

    def __post_init__(self):
        for name in (
            "validation_fraction",
            "replay_fraction",
            "max_skipped_fraction",
        ):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"data.{name}={getattr(self, name)}: must be from 0 to 1."
                )
        for name in ("num_products", "num_documents", "num_chats"):
            if getattr(self, name) < 1:
                raise InputError(f"data.{name}: must be at least 1.")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Texts of a run before they become ids.

    Attributes:
        documents: list of str, for pretraining.
        replay: list of str, documents to show again in fine-tuning.
        chats: list of conversations, for fine-tuning.
        skipped: list of Skipped.
        world: World, or None if the texts are the user's.
    """

    documents: list
    replay: list
    chats: list
    skipped: list
    world: shop.World | None


def load_corpus(config):
    """Returns the Corpus of a DataConfig.

    Raises:
        InputError: if a file cannot be used; the text says which and why.
    """
    allowed = config.max_skipped_fraction
    documents, chats, skipped, world = [], [], [], None
    if not config.path:
        try:
            world = shop.build_world(config.world_seed, config.num_products)
        except ValueError as error:
            raise InputError(f"data.{error}") from error
        chats = list(shop.generate_chats(world, count=config.num_chats))
    else:
        chats, skipped = read_chats(config.path, max_skipped_fraction=allowed)
    if config.documents_path:
        documents, more = read_documents(
            config.documents_path, max_skipped_fraction=allowed
        )
        skipped = skipped + more
    elif world is not None:
        documents = list(
            shop.generate_documents(world, count=config.num_documents)
        )
    else:
        # Only what the training split says: pretraining on the held-out
        # conversations would spoil their loss.
        splits = held_out(
            [_chat_key(chat) for chat in chats], config.validation_fraction
        )
        documents = [
            "\n".join(message["content"] for message in chat)
            for chat, is_validation in zip(chats, splits, strict=True)
            if not is_validation
        ]
    only_chats = config.path and not config.documents_path
    replay = [] if only_chats else documents
    return Corpus(documents, replay, chats, skipped, world)


def held_out(texts, fraction):
    """Returns which texts belong to the validation split.

    A text's hash decides: equal texts are always on the same side, and a text
    stays on its side when the data grows. However few there are, each side
    gets at least one.

    Args:
        texts: list of str, at least two different ones.
        fraction: float, share to hold out.

    Returns:
        list of bool, true = validation.

    Raises:
        InputError: if there are not two different texts.

    Example:
        >>> held_out(["one", "two", "one"], 0.01)
        [False, True, False]
    """
    if len(set(texts)) < 2:
        raise InputError(
            f"{len(texts)} texts cannot be split into training and "
            f"validation; at least two different ones are needed."
        )
    hashes = [hashlib.sha256(text.encode()).digest() for text in texts]
    places = [int.from_bytes(digest[:8], "big") / 2**64 for digest in hashes]
    limit = max(fraction, min(places))
    if limit >= max(places):
        limit = sorted(set(places))[-2]
    return [place <= limit for place in places]


def prepare_documents(documents, tokenizer, folder, *, validation_fraction):
    """Writes shards of documents for pretraining; every token is trained.

    A document is `<|document|>`, its ids, `<|end_of_document|>`.

    Args:
        documents: list of str.
        tokenizer: Tokenizer.
        folder: str or Path.
        validation_fraction: float.

    Returns:
        dict of "train" and "validation" Shard, and the manifest.
    """
    rows = _document_rows(documents, tokenizer)
    splits = held_out(documents, validation_fraction)
    return _save_splits(rows, splits, tokenizer, folder)


def prepare_chats(
    chats,
    tokenizer,
    folder,
    *,
    validation_fraction,
    replay=(),
    replay_fraction=0.0,
    replay_length=None,
    skipped=(),
):
    """Writes shards of conversations; trained is what the assistant says.

    Args:
        chats: list of lists of messages.
        tokenizer: Tokenizer.
        folder: str or Path.
        validation_fraction: float.
        replay: list of str, documents of which some join the training split.
        replay_fraction: float. Their share of its tokens, as far as they go.
        replay_length: int, tokens. Longer ones are cut. `None` = never.
        skipped: list of Skipped, for the manifest.

    Returns:
        dict of "train" and "validation" Shard, and the manifest.
    """
    template = ChatTemplate(tokenizer)
    contents = iter(
        tokenizer.encode_batch([m["content"] for chat in chats for m in chat])
    )
    rows = [
        template.join(
            [message["role"] for message in chat],
            [next(contents).tolist() for _ in chat],
        )
        for chat in chats
    ]
    splits = held_out([_chat_key(chat) for chat in chats], validation_fraction)
    num_tokens = sum(len(token_ids) for token_ids, _ in rows)
    wanted = num_tokens * replay_fraction / (1 - replay_fraction)
    for token_ids, loss_mask in _document_rows(list(replay), tokenizer):
        length = replay_length or len(token_ids)
        for start in range(0, len(token_ids) if wanted > 0 else 0, length):
            piece = slice(start, start + length)
            rows.append((token_ids[piece], loss_mask[piece]))
            splits.append(False)
        wanted -= len(token_ids)
    return _save_splits(
        rows,
        splits,
        tokenizer,
        folder,
        skipped=[dataclasses.asdict(row) for row in skipped],
    )


def held_out_chats(chats, validation_fraction):
    """Returns the conversations of the validation split, in their order."""
    splits = held_out([_chat_key(chat) for chat in chats], validation_fraction)
    return [
        chat
        for chat, is_validation in zip(chats, splits, strict=True)
        if is_validation
    ]


def _chat_key(chat):
    return "\x1f".join(message["content"] for message in chat)


def _document_rows(documents, tokenizer):
    """Returns (token_ids, loss_mask) of each document."""
    start = tokenizer.control_id("<|document|>")
    end = tokenizer.control_id("<|end_of_document|>")
    return [
        (
            np.concatenate([[start], ids, [end]]),
            np.concatenate([[0], np.ones(len(ids) + 1)]),
        )
        for ids in tokenizer.encode_batch(documents)
    ]


def _save_splits(rows, splits, tokenizer, folder, **facts):
    shards = {}
    for name, wanted in (("train", False), ("validation", True)):
        chosen = [
            row
            for row, is_validation in zip(rows, splits, strict=True)
            if is_validation == wanted
        ]
        shards[name] = build_shard(
            [token_ids for token_ids, _ in chosen],
            [loss_mask for _, loss_mask in chosen],
            vocabulary_size=tokenizer.vocabulary_size,
        )
    save_shards(
        folder, shards, tokenizer_fingerprint=tokenizer.fingerprint(), **facts
    )
    return load_shards(folder, tokenizer_fingerprint=tokenizer.fingerprint())
