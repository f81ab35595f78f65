"""Owns models from anywhere, and their way to others.

Not: how a format is read (model_folder.py, huggingface.py, hub.py).
"""

import hashlib
import pathlib

from kerasgpt.checkpoints import hub
from kerasgpt.checkpoints.huggingface import (
    is_huggingface,
    load_huggingface,
    read_config,
    save_huggingface,
)
from kerasgpt.checkpoints.model_folder import (
    find_model_folder,
    load_config,
    load_model,
    load_tokenizer,
    save_model,
)
from kerasgpt.config import InputError
from kerasgpt.files import MANIFEST, file_hash

# Of transformers: none of them is read or written.
TOKENIZER_NAMES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
)


def load_pretrained(source, *, needs_tokenizer=True):
    """Returns (model, tokenizer) of any place that holds a model.

    Args:
        source: str or Path: a run or model folder of ours, a folder of
            transformers, or keras_hub: and a preset of GPT-2.
        needs_tokenizer: bool. Refuse a model without one of ours.

    Returns:
        GPTCausalLM, and its tokenizer or None.

    Raises:
        InputError: if it cannot be read, or lacks a tokenizer that is needed.
    """
    if _is_preset(source):
        model = hub.load_preset(str(source).removeprefix(hub.PREFIX))
    elif is_huggingface(source):
        model = load_huggingface(source)
    else:
        return load_model(source, needs_tokenizer=needs_tokenizer)
    if needs_tokenizer:
        raise InputError(
            f"{source}: brings no tokenizer that is read here; `kerasgpt "
            f"convert {source} TARGET --tokenizer FOLDER` gives it one of ours."
        )
    return model, None


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
        return read_config(source)[1]
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
    # Before a long conversion.
    if pathlib.Path(target).exists() and not overwrite:
        raise InputError(
            f"{target}: exists already and is not overwritten without "
            f"--overwrite."
        )
    is_ours = not (_is_preset(source) or is_huggingface(source))
    if is_ours and tokenizer_folder:
        raise InputError("--tokenizer is for a model that comes from others.")
    model, tokenizer = load_pretrained(source, needs_tokenizer=False)
    if is_ours:
        if tokenizer is not None:
            tell("the tokenizer is left out.")
        save_huggingface(target, model, overwrite=overwrite)
    else:
        if tokenizer_folder:
            tokenizer = load_tokenizer(find_model_folder(tokenizer_folder))
            check_vocabulary(source, model, tokenizer)
        elif any(
            (pathlib.Path(source) / name).is_file() for name in TOKENIZER_NAMES
        ):
            tell("its tokenizer files are left out.")
        save_model(target, model, tokenizer)
    tell(f"{target}: {model.config.num_parameters:,} parameters.")


def check_vocabulary(source, model, tokenizer):
    """Checks that a tokenizer's ids are those of a model.

    Raises:
        InputError: naming both sizes.
    """
    size = model.config.vocabulary_size
    if tokenizer.vocabulary_size != size:
        raise InputError(
            f"{source}: the model has {size:,} ids and the tokenizer "
            f"{tokenizer.vocabulary_size:,}: it is not the model's."
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


def _is_preset(source):
    return str(source).startswith(hub.PREFIX)
