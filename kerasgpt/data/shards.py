"""Owns tokenised data on disk. Not: tokenising, nor packing into rows."""

import dataclasses
import pathlib

import numpy as np

from kerasgpt.config import InputError
from kerasgpt.files import atomic_folder, read_manifest, write_manifest

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Shard:
    """Token stream of one split.

    Attributes:
        token_ids: uint16 or uint32 (tokens,), documents one after the other.
        loss_mask: uint8 (tokens,). 1 = trained to predict this token.
        offsets: int64 (documents + 1,).
    """

    token_ids: np.ndarray
    loss_mask: np.ndarray
    offsets: np.ndarray

    @property
    def num_documents(self):
        return len(self.offsets) - 1

    @property
    def num_tokens(self):
        return len(self.token_ids)


def build_shard(token_ids, loss_masks, *, vocabulary_size):
    """Returns the Shard of lists of ids and of masks, one a document."""
    dtype = np.uint16 if vocabulary_size <= 1 << 16 else np.uint32
    lengths = [len(row) for row in token_ids]
    return Shard(
        token_ids=_concatenate(token_ids, dtype),
        loss_mask=_concatenate(loss_masks, np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def _concatenate(rows, dtype):
    if not rows:
        return np.zeros(0, dtype)
    return np.concatenate([np.asarray(row, dtype) for row in rows])


def save_shards(folder, shards, *, tokenizer_fingerprint, **facts):
    """Writes splits and their manifest to a new folder, whole or not at all.

    Args:
        folder: str or Path, replaced if it exists.
        shards: dict of split name to Shard.
        tokenizer_fingerprint: str, of the tokenizer that made the ids.
        **facts: further JSON values for the manifest, such as row counts.
    """
    with atomic_folder(folder, overwrite=True) as temporary:
        for name, shard in shards.items():
            for field in dataclasses.fields(Shard):
                np.save(
                    temporary / f"{name}.{field.name}.npy",
                    getattr(shard, field.name),
                    allow_pickle=False,
                )
        write_manifest(
            temporary,
            format_version=FORMAT_VERSION,
            tokenizer_fingerprint=tokenizer_fingerprint,
            splits={
                name: {
                    "documents": shard.num_documents,
                    "tokens": shard.num_tokens,
                    "trained_tokens": int(shard.loss_mask.sum()),
                }
                for name, shard in shards.items()
            },
            **facts,
        )


def load_shards(folder, *, tokenizer_fingerprint):
    """Returns (dict of split name to memory-mapped Shard, manifest).

    Raises:
        InputError: if a file is missing or damaged, or another tokenizer made
            the ids.
    """
    folder = pathlib.Path(folder)
    manifest = read_manifest(folder)
    if manifest["tokenizer_fingerprint"] != tokenizer_fingerprint:
        raise InputError(
            f"{folder}: made with another tokenizer "
            f"({manifest['tokenizer_fingerprint']}, not "
            f"{tokenizer_fingerprint}); prepare the data again."
        )
    shards = {
        name: Shard(
            **{
                field.name: np.load(
                    folder / f"{name}.{field.name}.npy",
                    mmap_mode="r",
                    allow_pickle=False,
                )
                for field in dataclasses.fields(Shard)
            }
        )
        for name in manifest["splits"]
    }
    return shards, manifest
