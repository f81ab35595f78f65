"""Owns tokenizers of other families: small ones, made by `tokenizers`."""

import functools
import json
import pathlib

from kerasgpt.tokenizers import BytePairTokenizer
from kerasgpt.tokenizers.byte_pair import unspell

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "byte_pair.json"
FAMILIES = ("gpt2", "gpt2_digits", "llama3", "qwen2", "o200k")


@functools.cache
def golden():
    """Returns what `tests/goldens/make_byte_pair.py` wrote."""
    return json.loads(GOLDENS.read_text())


@functools.cache
def build_family(name):
    """Returns our tokenizer of a family's vocabulary and merges."""
    table = golden()["tokenizers"][name]["tokenizer.json"]
    controls = {one["content"]: one["id"] for one in table["added_tokens"]}
    return BytePairTokenizer(
        {
            unspell(token): token_id
            for token, token_id in table["model"]["vocab"].items()
            if token not in controls
        },
        [tuple(map(unspell, pair)) for pair in table["model"]["merges"]],
        control_tokens=controls,
        split=name,
        normalization="NFC" if name == "qwen2" else None,
        whole_words=name == "llama3",
    )


def put_family(folder, name, **config):
    """Writes a family's tokenizer.json, with changes, and a config.

    Returns:
        the folder.
    """
    changes = config.pop("changes", {})
    table = golden()["tokenizers"][name]["tokenizer.json"]
    (folder / "tokenizer.json").write_text(json.dumps({**table, **changes}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
