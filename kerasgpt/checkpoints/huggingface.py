"""Owns weights in folders of Hugging Face's transformers, in and out.

Not: what its families call things (huggingface_families.py and
huggingface_tensors.py), which folder is one (exchange.py).
"""

import contextlib
import dataclasses
import math
import pathlib
import struct
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from kerasgpt.checkpoints.huggingface_families import read_family, write_family
from kerasgpt.checkpoints.huggingface_tensors import VOCABULARY, widths
from kerasgpt.checkpoints.model_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    build_task,
    name_variables,
)
from kerasgpt.config import InputError
from kerasgpt.files import atomic_folder, read_json, write_json
from kerasgpt.models.encoder import MARKS, EncoderConfig
from kerasgpt.tokenizers.huggingface import (
    CONFIG_FILE as TOKENIZER_CONFIG_FILE,
)
from kerasgpt.tokenizers.huggingface import save_huggingface_tokenizer

INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
SUFFIX = pathlib.PurePath(WEIGHTS_FILE).suffix
# Formats whose reading can run code.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = ("F32", "F16", "BF16")
# That of the largest open model, of 405 billion parameters, is below 1 MB.
MAX_HEADER_BYTES = 25_000_000
MAX_SHARD_BYTES = 2_000_000_000
# [NEXT] and [OTHER] are answers of ours: BERT's have a head of their own.
TOKENIZER_MARKS = MARKS[:3]


class _Stored(NamedTuple):
    """A tensor in a file."""

    path: pathlib.Path
    name: str
    shape: tuple
    dtype: str


def is_huggingface(folder):
    """Returns whether a folder's config.json names a model_type."""
    path = pathlib.Path(folder) / CONFIG_FILE
    return path.is_file() and "model_type" in _read_object(path)


def read_config(folder):
    """Returns (Family, our configuration) of a folder of transformers.

    Raises:
        InputError: for an unknown model_type, or what its model cannot be.
    """
    path = pathlib.Path(folder) / CONFIG_FILE
    values = _read_object(path)
    try:
        return read_family(values)
    except (InputError, ValueError) as error:
        told = str(error).removeprefix(f"{CONFIG_FILE}: ")
        raise InputError(f"{path}: {told}") from error


def load_huggingface(folder, *, tokenizer=None):
    """Returns the model in a folder as transformers writes it.

    Only tensors are read, one after the other, once their names, shapes and
    dtypes were found to be those of the model. Weights become float32.

    Args:
        folder: str or Path: config.json and safetensors, in one file or
            several.
        tokenizer: Tokenizer of the folder. Rows of the table for which it has
            no token, which pad it, are left out. `None` = all rows stay.

    Returns:
        GPTCausalLM, or MaskedLM, whose marks are the tokenizer's.

    Raises:
        InputError: for an unknown model_type, or a file that is missing,
            damaged or another model's, or marks that no tokenizer tells.
    """
    folder = pathlib.Path(folder)
    family, config = read_config(folder)
    marks = {}
    if family.config_class is EncoderConfig:
        marks = {"mark_ids": _mark_ids(folder, tokenizer)}
    stored = _find_tensors(folder, family.table)
    rows = _match(folder, stored, family.table, config)
    with contextlib.ExitStack() as stack:
        files = {
            path: stack.enter_context(_open(path))
            for path in {there.path for there in stored.values()}
        }
        needed = {row.theirs for row in rows}
        for name, same in family.table.tied.items():
            if name in stored and name not in needed:
                _check_tied(files, stored[name], stored[same])

        if tokenizer is not None:
            size = min(tokenizer.vocabulary_size, config.vocabulary_size)
            config = dataclasses.replace(config, vocabulary_size=size)
            check_vocabulary(folder, config, tokenizer)
        config = dataclasses.replace(config, **marks)

        def fill(layer):
            variables = name_variables(layer.variables)
            for row in rows:
                if row.ours[0] in variables:
                    array = _read(files, stored[row.theirs])
                    if row.shape[0] == VOCABULARY:
                        array = array[: config.vocabulary_size]
                    _assign(row, array, [variables[one] for one in row.ours])

        return build_task(config, fill=fill)


def check_vocabulary(source, config, tokenizer):
    """Checks that a tokenizer's ids are those of a model.

    Raises:
        InputError: naming both sizes.
    """
    size = config.vocabulary_size
    if tokenizer.vocabulary_size != size:
        raise InputError(
            f"{source}: the model has {size:,} ids and the tokenizer "
            f"{tokenizer.vocabulary_size:,}: it is not the model's."
        )


def _mark_ids(folder, tokenizer):
    """Returns the ids that a BERT's tokenizer has for our first marks."""
    if tokenizer is None:
        raise InputError(
            f"{folder}: brings no vocabulary (tokenizer.json or vocab.txt), "
            f"which tells the ids of [MASK], [CLS] and [SEP]."
        )
    missing = [n for n in TOKENIZER_MARKS if n not in tokenizer.control_tokens]
    if missing:
        raise InputError(
            f"{folder}: the tokenizer has no {missing[0]}; BERT's have one."
        )
    return [tokenizer.control_id(name) for name in TOKENIZER_MARKS]


def save_huggingface(
    folder,
    model,
    tokenizer=None,
    *,
    overwrite=False,
    max_shard_bytes=MAX_SHARD_BYTES,
):
    """Writes a folder for `from_pretrained` of transformers.

    Whole or not at all; float32, in files of at most `max_shard_bytes` unless
    a single tensor is larger.

    Args:
        folder: str or Path.
        model: GPTCausalLM or MaskedLM.
        tokenizer: Tokenizer, or None to write none.
        overwrite: bool. Replace an existing folder.
        max_shard_bytes: int.

    Raises:
        InputError: if transformers has no such model, or the folder cannot be
            written.
    """
    family, values = write_family(model.config)
    if family.config_class is EncoderConfig:
        _check_marks(folder, model.config, tokenizer)
    rows = list(family.table.rows_of(model.config))
    if not family.has_head:
        prefix = family.table.prefix
        rows = [
            dataclasses.replace(row, theirs=row.theirs.removeprefix(prefix))
            for row in rows
        ]
    variables = name_variables(model.variables)
    shards = _shards(rows, model.config, max_shard_bytes)
    with atomic_folder(folder, overwrite=overwrite) as temporary:
        if tokenizer is not None:
            save_huggingface_tokenizer(
                temporary, tokenizer, max_length=model.config.context_length
            )
            values |= _control_ids(temporary, tokenizer)
        write_json(temporary / CONFIG_FILE, values)
        weight_map, total_bytes = {}, 0
        for number, shard in enumerate(shards, 1):
            name = WEIGHTS_FILE
            if len(shards) > 1:
                name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            arrays = {
                row.theirs: _array(row, [variables[one] for one in row.ours])
                for row in shard
            }
            weight_map |= dict.fromkeys(arrays, name)
            total_bytes += sum(array.nbytes for array in arrays.values())
            _save(temporary / name, arrays)
        if len(shards) > 1:
            write_json(
                temporary / INDEX_FILE,
                {
                    "metadata": {"total_size": total_bytes},
                    "weight_map": weight_map,
                },
            )


def _check_marks(folder, config, tokenizer):
    """Refuses a tokenizer whose marks are not those of the model."""
    if tokenizer is not None:
        theirs = _mark_ids(folder, tokenizer)
        if theirs != list(config.mark_ids[: len(theirs)]):
            raise InputError(
                f"{folder}: the tokenizer's ids of {', '.join(TOKENIZER_MARKS)}"
                f" are {theirs} and the model's {list(config.mark_ids)}."
            )


def _control_ids(folder, tokenizer):
    """Returns the ids that config.json repeats of a tokenizer's files."""
    written = read_json(folder / TOKENIZER_CONFIG_FILE)
    return {
        f"{key}_id": tokenizer.control_id(written[key])
        for key in ("bos_token", "eos_token", "pad_token")
        if key in written
    }


def _read_object(path):
    if path.is_file() and path.stat().st_size > MAX_HEADER_BYTES:
        raise InputError(f"{path}: is too large for a file of settings.")
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: must hold a JSON object.")
    return values


def _find_tensors(folder, table):
    """Returns {name in the table: _Stored} of a folder's tensors."""
    found = {}
    for path in _weight_files(folder):
        with _open(path) as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                if table.is_buffer(name):
                    continue
                view = file.get_slice(name)
                stored = _Stored(
                    path, name, tuple(view.get_shape()), view.get_dtype()
                )
                name = table.full_name(name)
                if name in found:
                    raise InputError(f"{path}: tensor {name} is there twice.")
                found[name] = stored
    return found


def _weight_files(folder):
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    index = folder / INDEX_FILE
    if not index.is_file():
        for path in sorted(folder.iterdir()):
            if path.suffix in PICKLES:
                raise InputError(
                    f"{path}: is a pickle, which can run code when it is read; "
                    f"only safetensors are: save_pretrained of transformers "
                    f"writes them."
                )
        raise InputError(f"{folder}: holds no {WEIGHTS_FILE}.")
    weight_map = _read_object(index).get("weight_map")
    names = weight_map.values() if isinstance(weight_map, dict) else [None]
    for name in names:
        if (
            not isinstance(name, str)
            or name != pathlib.PurePath(name).name
            or not name.endswith(SUFFIX)
        ):
            raise InputError(
                f"{index}: {name!r} is no name of a {SUFFIX} file here."
            )
    return [folder / name for name in sorted(set(names))]


def _open(path):
    """Returns an open safetensors file, after a look at its size.

    By reads and not through a map of the file, whose pages would count as
    memory of this process.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(8)
        if len(start) == 8 and struct.unpack("<Q", start)[0] > MAX_HEADER_BYTES:
            raise InputError(
                f"{path}: cannot be read: its header is too large; it is "
                f"damaged, or of another format."
            )
        return safetensors.safe_open(path, framework="numpy", backend="pread")
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: {error}.") from error


def _match(folder, stored, table, config):
    """Returns the rows of a model, all of which are stored as they must be."""
    # Before a configuration can ask for a table without end.
    if config.num_layers > len(stored):
        raise InputError(
            f"{folder}: {CONFIG_FILE} asks for {config.num_layers:,} blocks; "
            f"there are {len(stored):,} tensors."
        )
    rows = list(table.rows_of(config))
    needed = {row.theirs for row in rows}
    extra = set(stored) - needed
    # Some write the tied table twice.
    extra -= {name for name, same in table.tied.items() if same in needed}
    for names, state in ((needed - set(stored), "missing"), (extra, "unknown")):
        if names:
            more = f", as are {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"{folder}: tensor {min(names)} is {state}{more}.")
    lengths = widths(config)
    for row in rows:
        there = stored[row.theirs]
        shape = tuple(lengths[width] for width in row.shape)
        if there.shape != shape:
            raise InputError(
                f"{there.path}: tensor {there.name} has shape {there.shape}; "
                f"{CONFIG_FILE} asks for {shape}."
            )
        if there.dtype not in DTYPES:
            raise InputError(
                f"{there.path}: tensor {there.name} is {there.dtype}; it must "
                f"be one of {', '.join(DTYPES)}."
            )
    return rows


def _check_tied(files, head, table):
    if not np.array_equal(_read(files, head), _read(files, table)):
        raise InputError(
            f"{head.path}: tensor {head.name} is not {table.name}, though "
            f"{CONFIG_FILE} ties them."
        )


def _read(files, there):
    try:
        return files[there.path].get_tensor(there.name)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{there.path}: cannot be read: {error}.") from error


def _assign(row, array, variables):
    if row.transposed:
        array = array.T
    ends = np.cumsum([variable.shape[-1] for variable in variables])
    for variable, part in zip(
        variables, np.split(array, ends[:-1], axis=-1), strict=True
    ):
        variable.assign(part.astype("float32", copy=False))


def _array(row, variables):
    parts = [np.asarray(variable.numpy(), "float32") for variable in variables]
    array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    return np.ascontiguousarray(array.T if row.transposed else array)


def _shards(rows, config, max_shard_bytes):
    """Returns lists of rows, in order, as many a file as it may hold."""
    lengths, shards, room = widths(config), [], 0
    for row in rows:
        size = 4 * math.prod(lengths[width] for width in row.shape)
        if size > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(row)
        room -= size
    return shards


def _save(path, arrays):
    try:
        safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: cannot be written: {error}.") from error
