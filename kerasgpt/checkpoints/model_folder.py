"""Owns a finished model as a folder. Not: the state of a run (run_state.py)."""

import pathlib

import numpy as np
import safetensors
import safetensors.numpy

from kerasgpt.checkpoints.quantized import (
    INTEGER_TYPES,
    SCALE_SUFFIX,
    dequantize,
    stored_shapes,
)
from kerasgpt.config import InputError
from kerasgpt.files import (
    atomic_folder,
    read_json,
    read_manifest,
    write_json,
    write_manifest,
)
from kerasgpt.models.encoder import EncoderConfig, MaskedLM
from kerasgpt.models.encoder_decoder import EncoderDecoderConfig, Seq2SeqLM
from kerasgpt.models.gpt import GPTCausalLM, GPTConfig
from kerasgpt.models.heads import ClassifierConfig, TextClassifier
from kerasgpt.models.recurrent import RecurrentCausalLM, RecurrentConfig
from kerasgpt.tokenizers.chat_format import load_chat_format, save_chat_format
from kerasgpt.tokenizers.kinds import CLASSES

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
# kind -> (configuration, task model). config.json names the kind, where it is
# not the first.
MODELS = {
    "gpt": (GPTConfig, GPTCausalLM),
    "classifier": (ClassifierConfig, TextClassifier),
    "recurrent": (RecurrentConfig, RecurrentCausalLM),
    "encoder": (EncoderConfig, MaskedLM),
    "encoder_decoder": (EncoderDecoderConfig, Seq2SeqLM),
}
KIND_KEY = "kind_of_model"
# Those that continue a text.
CAUSAL_KINDS = ("gpt", "recurrent")
# What Keras calls the state of every seed generator, dropout's for example.
SEED_NAME = "seed_generator_state"


def save_model(folder, model, tokenizer, *, weights=None, **facts):
    """Writes a model and its tokenizer to a folder, whole or not at all.

    The folder holds config.json, model.safetensors (one tensor a variable,
    named by its path), tokenizer files and manifest.json with all hashes.

    Args:
        folder: str or Path, replaced if it exists.
        model: task model, one of `MODELS`.
        tokenizer: Tokenizer, or None to write none.
        weights: dict of arrays, as `copy_to_host` gives. `None` = those that
            the model holds now.
        **facts: further JSON values for the manifest.
    """
    if weights is None:
        weights = copy_to_host(model.variables)
    with atomic_folder(folder, overwrite=True) as temporary:
        save_weights(temporary / WEIGHTS_FILE, weights)
        kind = kind_of(model.config)
        named = {} if kind == "gpt" else {KIND_KEY: kind}
        write_json(temporary / CONFIG_FILE, {**named, **model.config.to_dict()})
        if tokenizer is not None:
            save_tokenizer(temporary, tokenizer)
        write_manifest(temporary, **facts)


def kind_of(config):
    """Returns the key in `MODELS` of a model's configuration."""
    return next(
        kind for kind, (cls, _) in MODELS.items() if type(config) is cls
    )


def build_task(config, **settings):
    """Returns the task model of a configuration, built.

    Args:
        config: configuration, one of `MODELS`.
        **settings: further arguments of the model.
    """
    kind = kind_of(config)
    model = MODELS[kind][1](config, name=kind, **settings)
    model.build()
    return model


def load_model(folder, *, kinds=CAUSAL_KINDS, needs_tokenizer=True):
    """Returns (model, tokenizer) of a folder, after checking every hash.

    Nothing in the folder is executed: the model is rebuilt from its JSON
    configuration, and only raw tensors are read.

    Args:
        folder: str or Path: a model folder, or a run folder that holds one
            named "model".
        kinds: tuple of str. Keys of `MODELS` that can be used.
        needs_tokenizer: bool. Refuse a model without one; its tokenizer is
            None otherwise.

    Raises:
        InputError: if a file is missing, damaged or of another shape, or the
            model is of another kind.
    """
    folder = find_model_folder(folder)
    required = (WEIGHTS_FILE, CONFIG_FILE)
    if (folder / TOKENIZER_FILE).exists():
        required += (TOKENIZER_FILE,)
    files = read_manifest(folder, required=required)["files"]
    if needs_tokenizer and TOKENIZER_FILE not in files:
        raise InputError(
            f"{folder}: holds no tokenizer: only its weights are of use."
        )
    config = load_config(folder, kinds=kinds)
    path = folder / WEIGHTS_FILE
    # Before a configuration can ask for more memory than there is: a parameter
    # takes half a byte or more.
    if path.stat().st_size < config.num_parameters // 2:
        raise InputError(
            f"{path}: is too small for the {config.num_parameters:,} "
            f"parameters of {CONFIG_FILE}."
        )
    model = build_task(config)
    load_weights(path, model.variables)
    return model, load_tokenizer(folder) if TOKENIZER_FILE in files else None


def find_model_folder(folder):
    """Returns the model folder that `folder` is, or holds as "model".

    Raises:
        InputError: if there is none.
    """
    folder = pathlib.Path(folder)
    for place in (folder / "model", folder):
        if (place / WEIGHTS_FILE).is_file():
            return place
    raise InputError(
        f"{folder}: holds no trained model (no model/{WEIGHTS_FILE}); name a "
        f"run folder such as experiments/runs/shop_chat."
    )


def load_config(folder, *, kinds=("gpt",)):
    """Returns the configuration of a model folder.

    Args:
        folder: str or Path.
        kinds: tuple of str. Keys of `MODELS` that can be used.

    Raises:
        InputError: if it is missing or of another kind, or its values do not
            fit together.
    """
    path = pathlib.Path(folder) / CONFIG_FILE
    values = read_json(path)
    kind = "gpt"
    if isinstance(values, dict):
        kind = values.pop(KIND_KEY, kind)
    check_kind(path, kind, kinds)
    try:
        return MODELS[kind][0].from_dict(values)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def check_kind(path, kind, kinds):
    """Refuses a model of a kind that is of no use.

    Raises:
        InputError: naming its place, and the kinds that are.
    """
    if kind not in kinds:
        raise InputError(
            f"{path}: describes a model of kind {kind!r}; this needs one of "
            f"{', '.join(kinds)}."
        )


def save_tokenizer(folder, tokenizer):
    """Writes a tokenizer's kind, files and chat format into a folder."""
    write_json(
        folder / TOKENIZER_FILE,
        {"kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint()},
    )
    tokenizer.save_files(folder)
    if tokenizer.chat_format is not None:
        save_chat_format(folder, tokenizer.chat_format)


def load_tokenizer(folder):
    """Returns the tokenizer that `save_tokenizer` wrote.

    Raises:
        InputError: if its kind is unknown, or a file is missing or another's.
    """
    path = pathlib.Path(folder) / TOKENIZER_FILE
    saved = read_json(path)
    kind = saved.get("kind") if isinstance(saved, dict) else None
    if not isinstance(kind, str) or kind not in CLASSES:
        raise InputError(f"{path}: unknown tokenizer kind {kind!r}.")
    tokenizer = CLASSES[kind].load_files(folder)
    if saved.get("fingerprint") != tokenizer.fingerprint():
        raise InputError(f"{path}: its files are those of another tokenizer.")
    tokenizer.chat_format = load_chat_format(folder)
    return tokenizer


def changing_variables(model):
    """Returns the variables that training changes: weights, random states.

    All of a model, unless it is frozen but for adapters.
    """
    return [
        variable
        for variable in model.variables
        if variable.trainable or SEED_NAME in variable.path
    ]


def copy_to_host(variables):
    """Returns {name: array}: copies that training goes on without."""
    return {
        name: np.asarray(variable.numpy())
        for name, variable in name_variables(variables).items()
    }


def save_weights(path, weights):
    """Writes arrays to a safetensors file, as `copy_to_host` gives them.

    Raises:
        InputError: if the disk is full or broken.
    """
    # safetensors writes memory as it lies, columns first if they are.
    rows_first = {
        name: np.asarray(array, order="C") for name, array in weights.items()
    }
    try:
        safetensors.numpy.save_file(rows_first, path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: cannot be written: {error}.") from error


def load_weights(path, variables):
    """Fills variables from a safetensors file; names and shapes must agree.

    Matrices may be integers with factors beside them, see `quantize_weights`.

    Raises:
        InputError: naming the tensor that is missing, extra or misshapen.
    """
    by_name = name_variables(variables)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            scaled = {name for name in by_name if name + SCALE_SUFFIX in names}
            needed = set(by_name) | {name + SCALE_SUFFIX for name in scaled}
            if names != needed:
                odd = sorted(names ^ needed)[0]
                state = "missing" if odd in needed else "not expected"
                raise InputError(f"{path}: tensor {odd} is {state}.")
            for name, variable in by_name.items():
                shape = tuple(variable.shape)
                _check_stored(path, file, name, shape, name in scaled)
                array = file.get_tensor(name)
                if name in scaled:
                    scale = file.get_tensor(name + SCALE_SUFFIX)
                    array = dequantize(name, array, scale, shape)
                variable.assign(array)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: {error}.") from error


def _check_stored(path, file, name, shape, is_scaled):
    """Refuses tensors that do not stand for a variable of this shape."""
    kind = file.get_slice(name).get_dtype()
    is_integer = kind in INTEGER_TYPES
    if is_integer != is_scaled or (is_scaled and len(shape) != 2):
        raise InputError(
            f"{path}: tensor {name} is {kind}, which does not go with the "
            f"factors beside it."
        )
    needed = stored_shapes(name, shape, kind) if is_scaled else {name: shape}
    for part, needed_shape in needed.items():
        found = tuple(file.get_slice(part).get_shape())
        if found != needed_shape:
            raise InputError(
                f"{path}: tensor {part} has shape {found}; this model needs "
                f"{needed_shape}."
            )


def name_variables(variables):
    """Returns {name: variable}: the path without the name of its root.

    Random states are numbered in their order: Keras knows them by no layer,
    and counts their paths up over all models of a process.

    Raises:
        ValueError: if two variables share a path.
    """
    names, num_seeds = {}, 0
    for variable in variables:
        name = variable.path.partition("/")[2] or variable.path
        if name == SEED_NAME:
            name, num_seeds = f"{SEED_NAME}_{num_seeds}", num_seeds + 1
        if name in names:
            raise ValueError(f"two variables are named {name}; name layers.")
        names[name] = variable
    return names
