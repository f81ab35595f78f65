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
    found = manifest.get("tokenizer_fingerprint")
    if found != tokenizer_fingerprint:
        raise InputError(
            f"{folder}: made with another tokenizer ({found}, not "
            f"{tokenizer_fingerprint}); prepare the data again."
        )
    splits = manifest.get("splits")
    if not isinstance(splits, dict):
        raise InputError(f"{folder}: its manifest lists no splits.")
    shards = {name: _load_shard(folder, name, manifest) for name in splits}
    return shards, manifest


def _load_shard(folder, name, manifest):
    fields = {}
    for field in dataclasses.fields(Shard):
        file = f"{name}.{field.name}.npy"
        # Only what was checked: names may lead elsewhere.
        if file not in manifest["files"]:
            raise InputError(f"{folder}: its manifest does not list {file}.")
        try:
            # Not `np.load`, which opens archives, too.
            fields[field.name] = np.lib.format.open_memmap(
                folder / file, mode="r"
            )
        except (OSError, ValueError) as error:
            line = str(error).splitlines()[0]
            raise InputError(f"{folder / file}: is no array: {line}") from error
    shard = Shard(**fields)
    if not _fits(shard):
        raise InputError(f"{folder}: the arrays of {name} do not fit together.")
    return shard


def _fits(shard):
    ids, mask, offsets = shard.token_ids, shard.loss_mask, shard.offsets
    return (
        (ids.dtype.kind, mask.dtype.kind, offsets.dtype.kind) == ("u", "u", "i")
        and ids.shape == mask.shape == (len(ids),)
        and offsets.ndim == 1
        and len(offsets) > 0
        and offsets[0] == 0
        and offsets[-1] == len(ids)
        and bool((np.diff(offsets) >= 0).all())
    )
