"""Owns models from anywhere, and their way to others.

Not: how a format is read (model_folder.py, huggingface.py, hub.py).
"""

import hashlib
import pathlib

from kerasgpt.checkpoints import hub
from kerasgpt.checkpoints.gptq import quantize_kernels
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
    name_variables,
    save_model,
)
from kerasgpt.checkpoints.quantized import SCALE_SUFFIX, quantize_weights
from kerasgpt.config import InputError
from kerasgpt.data.packing import pack
from kerasgpt.data.shards import load_shards
from kerasgpt.files import MANIFEST, file_hash
from kerasgpt.models.gpt import GPTCausalLM
from kerasgpt.tokenizers.huggingface import load_huggingface_tokenizer

# Kinds of models that transformers has, too.
CONVERTED_KINDS = ("gpt", "encoder")
# Texts that rounding is fitted to: several times as many tokens as the widest
# input of a kernel has features. The paper takes 128 rows of 2,048.
FITTED_TOKENS = 32_768


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


def quantize(
    source, target, *, bits=8, fit_to=None, overwrite=False, tell=print
):
    """Writes a model with its matrices as integers of 8 or 4 bits.

    Args:
        source: as of `load_pretrained`.
        target: str or Path, becomes a model folder.
        bits: int, 8 or 4.
        fit_to: str or Path: a run folder on whose training rows the kernels
            of a GPT are fitted while they are rounded to 4 bits, see gptq.py.
            `None` = each weight is rounded to what is nearest.
        overwrite: bool. Replace an existing target.
        tell: function of one str, prints a line.

    Raises:
        InputError: if the source or the rows cannot be read, the target not
            be written, or this model not be fitted.
    """
    _check_target(target, overwrite)
    if fit_to is not None and bits != 4:
        raise InputError("--fit-to is for --bits 4: 8 lose next to nothing.")
    model, tokenizer = load_pretrained(
        source, needs_tokenizer=fit_to is not None
    )
    weights = copy_to_host(model.variables)
    before = sum(array.nbytes for array in weights.values())
    weights = quantize_weights(weights, bits=bits)
    if fit_to is not None:
        weights.update(_fit(source, model, tokenizer, fit_to))
    after = sum(array.nbytes for array in weights.values())
    save_model(target, model, tokenizer, weights=weights)
    tell(
        f"{target}: {after / 1e6:,.1f} MB of weights, {after / before:.1%} of "
        f"{before / 1e6:,.1f} MB."
    )


def _fit(source, model, tokenizer, run):
    """Returns the kernels of a model, fitted to the rows of a run."""
    if not isinstance(model, GPTCausalLM):
        raise InputError(f"{source}: --fit-to is for GPTs.")
    shards, _ = load_shards(
        pathlib.Path(run) / "data",
        tokenizer_fingerprint=tokenizer.fingerprint(),
    )
    shard, length = shards["train"], model.config.context_length
    rows = pack(
        shard.token_ids, shard.loss_mask, shard.offsets, row_length=length
    )
    # Far apart: rows lie in the order of their longest texts.
    num_rows = min(len(rows), max(1, FITTED_TOKENS // length))
    chosen = [index * len(rows) // num_rows for index in range(num_rows)]
    inputs = dict(zip(rows.input_names, rows.assemble(chosen), strict=False))
    found = quantize_kernels(model, inputs)
    fitted = {}
    for name, variable in name_variables(model.variables).items():
        if variable.path in found:
            integers, scale = found[variable.path]
            fitted[name], fitted[name + SCALE_SUFFIX] = integers, scale
    return fitted


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
