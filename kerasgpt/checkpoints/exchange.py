"""Owns models from anywhere, and their way to others.

Not: how a format is read (model_folder.py, huggingface.py, hub.py).
"""

import hashlib
import pathlib

from kerasgpt.checkpoints import hub
from kerasgpt.checkpoints.huggingface import (
    check_vocabulary,
    is_huggingface,
    load_huggingface,
    read_config,
    save_huggingface,
)
from kerasgpt.checkpoints.model_folder import (
    CAUSAL_KINDS,
    check_kind,
    copy_to_host,
    find_model_folder,
    kind_of,
    load_config,
    load_model,
    load_tokenizer,
    save_model,
)
from kerasgpt.checkpoints.quantized import quantize_weights
from kerasgpt.config import InputError
from kerasgpt.files import MANIFEST, file_hash
from kerasgpt.tokenizers.huggingface import load_huggingface_tokenizer

# Kinds of models that transformers has, too.
CONVERTED_KINDS = ("gpt", "encoder")


def load_pretrained(source, *, kinds=CAUSAL_KINDS, needs_tokenizer=True):
    """Returns (model, tokenizer) of any place that holds a model.

    Args:
        source: str or Path: a run or model folder of ours, a folder of
            transformers, or keras_hub: and a preset of GPT-2.
        kinds: see `load_model`.
        needs_tokenizer: bool. Refuse a model without one.

    Returns:
        Task model, and its tokenizer or None. Rows of a table for which
        a tokenizer of transformers has no token are left out.

    Raises:
        InputError: if it cannot be read, is of another kind, or lacks a
            tokenizer that is needed.
    """
    tokenizer = None
    if _is_preset(source):
        model = hub.load_preset(str(source).removeprefix(hub.PREFIX))
    elif is_huggingface(source):
        check_kind(source, kind_of(read_config(source)[1]), kinds)
        tokenizer = load_huggingface_tokenizer(source)
        model = load_huggingface(source, tokenizer=tokenizer)
    else:
        return load_model(source, kinds=kinds, needs_tokenizer=needs_tokenizer)
    if needs_tokenizer and tokenizer is None:
        raise InputError(
            f"{source}: brings no tokenizer; `kerasgpt convert {source} TARGET "
            f"--tokenizer FOLDER` gives it one."
        )
    return model, tokenizer


def load_pretrained_config(source):
    """Returns the GPTConfig of a model, whose weights are not read if possible.

    Args:
        source: as of `load_pretrained`.

    Raises:
        InputError: if it cannot be read.
    """
    if _is_preset(source):
        return load_pretrained(source, needs_tokenizer=False)[0].config
    if is_huggingface(source):
        config = read_config(source)[1]
        check_kind(source, kind_of(config), ("gpt",))
        return config
    return load_config(find_model_folder(source))


def convert(
    source, target, *, tokenizer_folder=None, overwrite=False, tell=print
):
    """Writes a foreign model as ours, or ours for transformers.

    Args:
        source: as of `load_pretrained`. If it is ours, `target` becomes a
            folder of transformers, otherwise a model folder of ours.
        target: str or Path, a folder.
        tokenizer_folder: str or Path: a run or model folder whose tokenizer
            a foreign model gets. Their vocabularies must be equal.
        overwrite: bool. Replace an existing target.
        tell: function of one str, prints a line.

    Raises:
        InputError: if the source cannot be read, transformers has no such
            model, or the target cannot be written.
    """
    _check_target(target, overwrite)
    is_ours = not (_is_preset(source) or is_huggingface(source))
    if is_ours and tokenizer_folder:
        raise InputError("--tokenizer is for a model that comes from others.")
    model, tokenizer = load_pretrained(
        source, kinds=CONVERTED_KINDS, needs_tokenizer=False
    )
    if is_ours:
        save_huggingface(target, model, tokenizer, overwrite=overwrite)
    else:
        if tokenizer_folder:
            tokenizer = load_tokenizer(find_model_folder(tokenizer_folder))
            check_vocabulary(source, model.config, tokenizer)
        save_model(target, model, tokenizer)
    told = "with its tokenizer" if tokenizer else "without a tokenizer"
    tell(f"{target}: {model.config.num_parameters:,} parameters, {told}.")


def quantize(source, target, *, overwrite=False, tell=print):
    """Writes a model with its matrices as 8-bit integers.

    Args:
        source: as of `load_pretrained`.
        target: str or Path, becomes a model folder.
        overwrite: bool. Replace an existing target.
        tell: function of one str, prints a line.

    Raises:
        InputError: if the source cannot be read or the target written.
    """
    _check_target(target, overwrite)
    model, tokenizer = load_pretrained(source, needs_tokenizer=False)
    weights = copy_to_host(model.variables)
    before = sum(array.nbytes for array in weights.values())
    weights = quantize_weights(weights)
    after = sum(array.nbytes for array in weights.values())
    save_model(target, model, tokenizer, weights=weights)
    tell(
        f"{target}: {after / 1e6:,.1f} MB of weights, {after / before:.1%} of "
        f"{before / 1e6:,.1f} MB."
    )


def pretrained_hash(source):
    """Returns what changes when a model that training starts from does.

    Args:
        source: as of `load_pretrained`.

    Returns:
        str: the SHA-256 of a folder, or the name of a preset.
    """
    if _is_preset(source):
        return str(source)
    if not is_huggingface(source):
        return file_hash(find_model_folder(source) / MANIFEST)
    files = sorted(path for path in pathlib.Path(source).iterdir())
    text = "\n".join(
        f"{file.name} {file_hash(file)}" for file in files if file.is_file()
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _check_target(target, overwrite):
    """Refuses an existing target, before a long computation."""
    if pathlib.Path(target).exists() and not overwrite:
        raise InputError(
            f"{target}: exists already and is not overwritten without "
            f"--overwrite."
        )


def _is_preset(source):
    return str(source).startswith(hub.PREFIX)
