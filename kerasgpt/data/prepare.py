"""Owns documents and conversations -> shards. Not: reading or batching them."""

import dataclasses
import hashlib
import random

import numpy as np

from kerasgpt.config import Config, InputError, setting
from kerasgpt.data import shop
from kerasgpt.data.prepared import is_prepared, read_prepared, row_text
from kerasgpt.data.shards import build_shard, load_shards, save_shards
from kerasgpt.data.sources import (
    Skipped,
    check_skipped,
    read_chats,
    read_documents,
)
from kerasgpt.tokenizers.chat_template import ChatTemplate

# Documents encoded at once: what is replayed is a small part of many.
REPLAY_BATCH = 2048
# Of prepared data; the test split is for nobody's run.
TRAINED_SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class DataConfig(Config):
    """What is learned from: your files, or the embedded shop without any."""

    path: str = setting(
        "",
        "conversations: .jsonl or .json (messages, Alpaca, ShareGPT), a "
        "folder, or tfds:NAME; or a folder of kerasgpt data prepare, with its "
        "documents; empty = the embedded shop",
    )
    documents_path: str = setting(
        "",
        "texts for pretraining: .txt, .md, .jsonl with text, a folder, or "
        "tfds:NAME; or a folder of kerasgpt data prepare; empty = the shop's "
        "documents, or the texts of data.path",
    )
    world_seed: int = setting(0, "which shop; another seed, another world")
    num_products: int = setting(
        100, "products of the shop", minimum=20, maximum=2000
    )
    num_documents: int = setting(40_000, "documents about the shop", minimum=2)
    num_chats: int = setting(24_000, "training chats about the shop", minimum=2)
    validation_fraction: float = setting(
        0.02,
        "share held out for validation, chosen by a hash of the text",
        minimum=0.0,
        maximum=0.9,
    )
    replay_fraction: float = setting(
        0.25,
        "share of documents among the tokens of fine-tuning, so that what they "
        "told is not forgotten; none if there are only conversations",
        minimum=0.0,
        maximum=0.9,
    )
    max_skipped_fraction: float = setting(
        0.05,
        "largest share of unusable rows that is only reported",
        minimum=0.0,
        maximum=1.0,
    )


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Texts of a run before they become ids.

    Attributes:
        documents: list of str, for pretraining.
        replay: list of str, documents to show again in fine-tuning.
        chats: list of conversations, for fine-tuning.
        is_validation: list of bool, one a chat: held out from training.
        skipped: list of Skipped.
        world: World, or None if the chats are the user's.
        is_validation_document: list of bool, one a document; empty = not
            decided yet.
    """

    documents: list
    replay: list
    chats: list
    is_validation: list
    skipped: list
    world: shop.World | None
    is_validation_document: list = dataclasses.field(default_factory=list)

    @property
    def held_out_chats(self):
        """Conversations that training does not see, a list."""
        return [
            chat
            for chat, is_validation in zip(
                self.chats, self.is_validation, strict=True
            )
            if is_validation
        ]


def load_corpus(config, *, with_chats=True):
    """Returns the Corpus of a DataConfig.

    Without files it is the embedded shop; your documents join the shop's if
    the chats are the shop's, so that its facts still stand somewhere.

    Args:
        config: DataConfig.
        with_chats: bool. Without, documents of yours stand alone.

    Raises:
        InputError: if a file cannot be used; the text says which and why.
    """
    allowed = config.max_skipped_fraction
    documents, chats, skipped, world = [], [], [], None
    # Of documents and chats that were prepared; of others a hash decides.
    places, splits = [], []
    if config.path and is_prepared(config.path):
        chats, splits, documents, places = _read_prepared(config)
    elif config.path:
        chats, skipped = read_chats(config.path, max_skipped_fraction=allowed)
    elif with_chats or not config.documents_path:
        world = shop.build_world(config.world_seed, config.num_products)
        chats = list(shop.generate_chats(world, count=config.num_chats))
        documents = list(
            shop.generate_documents(world, count=config.num_documents)
        )
    if chats and not (any(splits) and not all(splits)):
        splits = held_out(
            ["\x1f".join(_contents(chat)) for chat in chats],
            config.validation_fraction,
        )
    texts = ["\n".join(_contents(chat)) for chat in chats]
    if config.documents_path:
        yours, their_places, more = _read_documents(config)
        # The same file may be given twice, as chats and as documents.
        spoilers = {
            text
            for text, is_validation in zip(texts, splits, strict=True)
            if is_validation
        }
        if their_places and documents and not places:
            places = held_out(documents, config.validation_fraction)
        elif places and not their_places:
            their_places = held_out(yours, config.validation_fraction)
        kept = [n for n, text in enumerate(yours) if text not in spoilers]
        documents = documents + [yours[number] for number in kept]
        if their_places:
            places = places + [their_places[number] for number in kept]
        skipped = skipped + more
    if not any(places) or all(places):
        places = []
    replay = documents
    if places:
        # What is held out from pretraining is no training text later either.
        replay = _chosen(documents, places, wanted=False)
    if not documents:
        # Only what the training split says: pretraining on the held-out
        # conversations would spoil their loss.
        documents = _chosen(texts, splits, wanted=False)
    return Corpus(documents, replay, chats, splits, skipped, world, places)


def _read_prepared(config):
    """Returns (chats, splits, documents, places) of data.path=DIR."""
    chats, splits, documents, places = [], [], [], []
    for split, row in read_prepared(config.path, splits=TRAINED_SPLITS):
        is_validation = split == "validation"
        if "messages" in row:
            chats.append(row["messages"])
            splits.append(is_validation)
        else:
            documents.append(row["text"])
            places.append(is_validation)
    return chats, splits, documents, places


def _read_documents(config):
    """Returns (texts, places or [], skipped) of data.documents_path."""
    path = config.documents_path
    if not is_prepared(path):
        texts, skipped = read_documents(
            path, max_skipped_fraction=config.max_skipped_fraction
        )
        return texts, [], skipped
    found = [
        (row_text(row), split == "validation")
        for split, row in read_prepared(path, splits=TRAINED_SPLITS)
    ]
    if not found:
        raise InputError(f"{path}: holds no document to train on.")
    texts, places = map(list, zip(*found, strict=True))
    return texts, places, []


def _chosen(rows, splits, *, wanted):
    return [
        row
        for row, is_validation in zip(rows, splits, strict=True)
        if is_validation == wanted
    ]


def fit_chats(corpus, tokenizer, context_length, *, max_skipped_fraction):
    """Returns the Corpus with conversations that fit the context.

    A longer one loses whole turns from its end, as many as it takes, so that
    every answer that stays is whole, ends with its end token, and follows all
    that was said before it. One whose first answer does not fit is skipped,
    and so is one that the chat template refuses. No turn is ever cut.

    Args:
        corpus: Corpus.
        tokenizer: Tokenizer.
        context_length: int, tokens.
        max_skipped_fraction: float. More skipped ones than this are an error.

    Raises:
        InputError: if too many had to be skipped, or none is left.
    """
    template = ChatTemplate(tokenizer)
    chats, splits, skipped = [], [], []
    encoded = _encode_chats(corpus.chats, template)
    for number, (chat, contents, is_validation) in enumerate(
        zip(corpus.chats, encoded, corpus.is_validation, strict=True), start=1
    ):
        if isinstance(contents, InputError):
            skipped.append(Skipped(f"conversation {number}", str(contents)))
            continue
        ends = template.turn_ends(
            [message["role"] for message in chat], map(len, contents)
        )
        # The last id is predicted only.
        kept = chat[: int((ends <= context_length + 1).sum())]
        if any(m["role"] == "assistant" and m["content"] for m in kept):
            chats.append(kept)
            splits.append(is_validation)
        else:
            skipped.append(
                Skipped(
                    f"conversation {number}",
                    f"{ends[-1]} tokens, of which the first answer "
                    f"does not fit the context of {context_length}; raise "
                    f"model.context_length",
                )
            )
    check_skipped(
        "conversations", skipped, len(corpus.chats), max_skipped_fraction
    )
    if corpus.chats and (all(splits) or not any(splits)):
        raise InputError(
            f"too few conversations fit model.context_length="
            f"{context_length}; raise it."
        )
    return dataclasses.replace(
        corpus,
        chats=chats,
        is_validation=splits,
        skipped=[*corpus.skipped, *skipped],
    )


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


def split_rows(rows, texts, fraction):
    """Returns dict of "train" and "validation" to lists of rows.

    Args:
        rows: list, one a text.
        texts, fraction: see `held_out`.

    Example:
        >>> split_rows([1, 2, 3], ["one", "two", "one"], 0.01)
        {'train': [1, 3], 'validation': [2]}
    """
    pairs = list(zip(rows, held_out(texts, fraction), strict=True))
    return {
        name: [row for row, is_out in pairs if is_out == (name == "validation")]
        for name in ("train", "validation")
    }


def prepare_documents(
    documents, tokenizer, folder, *, validation_fraction, is_validation=()
):
    """Writes shards of documents for pretraining; every token is trained.

    A document is `<|document|>`, its ids, `<|end_of_document|>`, or what
    stands for these in the tokenizer's chat template.

    Args:
        documents: list of str.
        tokenizer: Tokenizer.
        folder: str or Path.
        validation_fraction: float.
        is_validation: list of bool, one a document; empty = a hash decides.

    Returns:
        dict of "train" and "validation" Shard, and the manifest.
    """
    rows = _document_rows(documents, tokenizer)
    splits = is_validation or held_out(documents, validation_fraction)
    return _save_splits(rows, splits, tokenizer, folder)


def prepare_chats(
    corpus, tokenizer, folder, *, replay_fraction, replay_length, seed
):
    """Writes shards of conversations; trained is what the assistant says.

    Args:
        corpus: Corpus, of which `replay` joins the training split.
        tokenizer: Tokenizer.
        folder: str or Path.
        replay_fraction: float. Share of documents among the tokens of the
            training split, as far as they go.
        replay_length: int, positions. Longer documents are cut.
        seed: int. Which of the user's documents are replayed.

    Returns:
        dict of "train" and "validation" Shard, and the manifest.

    Raises:
        InputError: if a conversation trains nothing, or the chat template
            refuses it.
    """
    template = ChatTemplate(tokenizer)
    rows = []
    encoded = _encode_chats(corpus.chats, template)
    for number, (chat, contents) in enumerate(
        zip(corpus.chats, encoded, strict=True), start=1
    ):
        if isinstance(contents, InputError):
            raise InputError(f"conversation {number}: {contents}")
        row = template.join(
            [message["role"] for message in chat],
            [content.tolist() for content in contents],
        )
        if not any(row[1]):
            raise InputError(
                f"conversation {number}: trains no token, as it holds no turn "
                f"of the assistant's."
            )
        rows.append(row)
    splits = list(corpus.is_validation)
    num_tokens = sum(len(token_ids) for token_ids, _ in rows)
    wanted = num_tokens * replay_fraction / (1 - replay_fraction)
    replay = corpus.replay
    if corpus.world is None:
        # The shop's documents are in random order; files need not be.
        replay = random.Random(seed).sample(replay, len(replay))
    for first in range(0, len(replay), REPLAY_BATCH):
        batch = replay[first : first + REPLAY_BATCH]
        for token_ids, loss_mask in _document_rows(batch, tokenizer):
            if wanted <= 0:
                break
            # A piece's last id is the first of the next: none goes untrained.
            for start in range(0, len(token_ids) - 1, replay_length):
                piece = slice(start, start + replay_length + 1)
                rows.append((token_ids[piece], loss_mask[piece]))
                splits.append(False)
            wanted -= len(token_ids)
        if wanted <= 0:
            break
    return _save_splits(
        rows,
        splits,
        tokenizer,
        folder,
        chat_template=template.format.fingerprint(),
        skipped=[dataclasses.asdict(row) for row in corpus.skipped],
    )


def _contents(chat):
    return [message["content"] for message in chat]


def _encode_chats(chats, template):
    """Returns a list of int32 arrays for each chat: the ids of its contents.

    In the place of a chat that the template refuses stands its InputError.
    """
    texts = []
    for chat in chats:
        try:
            texts.append([template.content(message) for message in chat])
        except InputError as error:
            texts.append(error)
    contents = iter(
        template.tokenizer.encode_batch(
            [text for one in texts if isinstance(one, list) for text in one]
        )
    )
    return [
        [next(contents) for _ in one] if isinstance(one, list) else one
        for one in texts
    ]


def _document_rows(documents, tokenizer):
    """Returns (token_ids, loss_mask) of each document."""
    template = ChatTemplate(tokenizer)
    start, end = template.document_id, template.document_end_id
    return [
        (
            np.concatenate([[start], ids, [end]]).astype(np.int32),
            np.concatenate([[0], np.ones(len(ids) + 1)]).astype(np.uint8),
        )
        for ids in tokenizer.encode_batch(documents)
    ]


def _save_splits(rows, splits, tokenizer, folder, **facts):
    shards = {}
    for name, wanted in (("train", False), ("validation", True)):
        chosen = _chosen(rows, splits, wanted=wanted)
        shards[name] = build_shard(
            [token_ids for token_ids, _ in chosen],
            [loss_mask for _, loss_mask in chosen],
            vocabulary_size=tokenizer.vocabulary_size,
        )
    save_shards(
        folder, shards, tokenizer_fingerprint=tokenizer.fingerprint(), **facts
    )
    return load_shards(folder, tokenizer_fingerprint=tokenizer.fingerprint())
