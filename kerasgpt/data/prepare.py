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
    max_skipped_fraction: float = setting(
        0.05, "largest share of unusable rows that is only reported"
    )

    def __post_init__(self):
        for name in ("validation_fraction", "max_skipped_fraction"):
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
        chats: list of conversations, for fine-tuning.
        skipped: list of Skipped.
        world: World, or None if the texts are the user's.
    """

    documents: list
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
        documents = [
            "\n".join(message["content"] for message in chat)
            for chat in chats
            if not is_held_out(_chat_key(chat), config.validation_fraction)
        ]
    return Corpus(documents, chats, skipped, world)


def is_held_out(text, fraction):
    """Returns whether a text belongs to the validation split.

    Its hash decides: equal texts are always on the same side, and a text
    stays on its side when the data grows.

    Example:
        >>> is_held_out("a text", 0.0), is_held_out("a text", 1.0)
        (False, True)
    """
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "big") < fraction * 2**32


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
    start = tokenizer.control_id("<|document|>")
    end = tokenizer.control_id("<|end_of_document|>")
    rows = [
        np.concatenate([[start], ids, [end]])
        for ids in tokenizer.encode_batch(documents)
    ]
    masks = [np.concatenate([[0], np.ones(len(row) - 1)]) for row in rows]
    return _save_splits(
        documents, rows, masks, tokenizer, folder, validation_fraction
    )


def prepare_chats(chats, tokenizer, folder, *, validation_fraction, skipped=()):
    """Writes shards of conversations; trained is what the assistant says.

    Args:
        chats: list of lists of messages.
        tokenizer: Tokenizer.
        folder: str or Path.
        validation_fraction: float.
        skipped: list of Skipped, for the manifest.

    Returns:
        dict of "train" and "validation" Shard, and the manifest.
    """
    template = ChatTemplate(tokenizer)
    contents = iter(
        tokenizer.encode_batch([m["content"] for chat in chats for m in chat])
    )
    rows, masks = [], []
    for chat in chats:
        row, mask = template.join(
            [message["role"] for message in chat],
            [next(contents).tolist() for _ in chat],
        )
        rows.append(row)
        masks.append(mask)
    keys = [_chat_key(chat) for chat in chats]
    return _save_splits(
        keys,
        rows,
        masks,
        tokenizer,
        folder,
        validation_fraction,
        skipped=[dataclasses.asdict(row) for row in skipped],
    )


def held_out_chats(chats, validation_fraction):
    """Returns the conversations of the validation split, in their order."""
    return [
        chat
        for chat in chats
        if is_held_out(_chat_key(chat), validation_fraction)
    ]


def _chat_key(chat):
    return "\x1f".join(message["content"] for message in chat)


def _save_splits(
    keys, rows, masks, tokenizer, folder, validation_fraction, **facts
):
    shards = {}
    for name, wanted in (("train", False), ("validation", True)):
        chosen = [
            index
            for index, key in enumerate(keys)
            if is_held_out(key, validation_fraction) == wanted
        ]
        if not chosen:
            raise InputError(
                f"{len(keys)} texts leave none for {name}; add data or change "
                f"data.validation_fraction={validation_fraction:g}."
            )
        shards[name] = build_shard(
            [rows[index] for index in chosen],
            [masks[index] for index in chosen],
            vocabulary_size=tokenizer.vocabulary_size,
        )
    save_shards(
        folder,
        shards,
        tokenizer_fingerprint=tokenizer.fingerprint(),
        validation_fraction=validation_fraction,
        **facts,
    )
    return load_shards(folder, tokenizer_fingerprint=tokenizer.fingerprint())
