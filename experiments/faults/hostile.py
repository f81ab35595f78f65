"""Owns files as published attacks on Keras have them, for every loader."""

import functools
import hashlib
import io
import json
import shutil
import sys

import numpy as np
import tensorflow as tf

from experiments.faults.damage import loader
from experiments.faults.trial import Outcome
from kerasgpt.checkpoints import list_run_states, load_model, read_run_state
from kerasgpt.checkpoints.huggingface import load_huggingface, save_huggingface
from kerasgpt.checkpoints.huggingface_families import read_family
from kerasgpt.config import InputError
from kerasgpt.data.shards import build_shard, load_shards, save_shards
from kerasgpt.data.sources import read_chats, read_documents
from kerasgpt.files import read_json, write_json, write_manifest
from kerasgpt.models import GPTCausalLM
from kerasgpt.serving.scan import check_ops
from kerasgpt.tokenizers.sentence_piece import MODEL_FILE


def rewrite(path, content):
    path.write_text(
        content if isinstance(content, str) else json.dumps(content)
    )


def forge_name(run, name):
    """Makes the manifests list a file elsewhere, with a right hash."""
    for folder in (run / "model", newest_state(run)):
        path = folder / "manifest.json"
        files = {**read_json(path)["files"], name: "0" * 64}
        content = {"files": files}
        text = json.dumps(content, indent=2) + "\n"
        digest = hashlib.sha256(text.encode()).hexdigest()
        write_json(path, {**content, "sha256": digest})


def forge_config(run, changes):
    path = run / "model" / "config.json"
    rewrite(path, {**read_json(path), **changes})
    write_manifest(path.parent)


def forge_file(run, name, content):
    for folder in (run / "model", newest_state(run)):
        if (folder / name).is_file():
            (folder / name).write_bytes(content)
            write_manifest(folder)


def link_out(run, canary):
    for folder in (run / "model", newest_state(run)):
        path = folder / "model.safetensors"
        path.unlink()
        path.symlink_to(canary)
        write_manifest(folder)


def newest_state(run):
    return list_run_states(run / "checkpoints")[-1]


def forge_shards(run, changes):
    """Adds entries to the manifest of shards, or replaces files."""
    folder = run / "data"
    manifest = read_json(folder / "manifest.json")
    values = {
        name: value
        for name, value in manifest.items()
        if name not in ("files", "sha256")
    }
    for name, value in changes.items():
        if isinstance(value, bytes):
            (folder / name).write_bytes(value)
        else:
            values[name] = value
    write_manifest(folder, **values)


def forge_foreign(run, changes):
    """Replaces files of the folder that transformers might have written."""
    folder = run / "foreign"
    for name, content in changes.items():
        if name == "config.json":
            content = {**read_json(folder / name), **content}
        if content is None:
            (folder / name).unlink()
        elif isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            rewrite(folder / name, content)


def forge_data(run, name):
    """Leaves a pickle under the name of a file of texts."""
    (run / name).write_bytes(PICKLE)


class Reading(tf.Module):
    """Is a program that answers with what stands in a file."""

    def __init__(self, path):
        super().__init__()
        self.path = str(path)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def __call__(self, texts):
        return texts + tf.io.read_file(self.path)


def forge_export(run, canary):
    """Writes a SavedModel that reads a file outside."""
    tf.saved_model.save(Reading(canary), str(run / "export"))


def forge_tokenizer(run):
    """Makes the tokenizer a SentencePiece one whose model is a pickle."""
    folder = run / "model"
    (folder / MODEL_FILE).write_bytes(PICKLE)
    digest = hashlib.sha256(PICKLE).hexdigest()[:12]
    rewrite(
        folder / "tokenizer.json",
        {"kind": "sentence_piece", "fingerprint": digest},
    )
    write_manifest(folder)


def packed(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


LAMBDA = {
    "class_name": "Lambda",
    "module": "keras.layers",
    "config": {"function": "__import__('os').system('touch CANARY')"},
}
TFSM = {"class_name": "TFSMLayer", "config": {"filepath": "/etc"}}
HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(2048)
PICKLE = b"\x80\x04cos\nsystem\n(S'touch CANARY'\ntR."
HUGE_HEADER = (1 << 60).to_bytes(8, "little") + b"{}"
BOMB = json.dumps(
    {"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
).encode()
WEIGHTS = "model.safetensors"
# As transformers describes a model.
FOREIGN = {
    "model_type": "gpt2",
    "n_embd": 8,
    "n_head": 2,
    "n_layer": 1,
    "n_positions": 16,
    "vocab_size": 9,
}
HOSTILE = {
    "path traversal in a manifest": lambda run, canary: forge_name(
        run, "../../../canary"
    ),
    "absolute path in a manifest": lambda run, canary: forge_name(
        run, str(canary)
    ),
    "link out of the folder": link_out,
    "Lambda as configuration": lambda run, canary: forge_config(run, LAMBDA),
    "TFSMLayer as configuration": lambda run, canary: forge_config(run, TFSM),
    "class path as configuration": lambda run, canary: forge_config(
        run, {"activation": "os.system"}
    ),
    "configuration of a trillion parameters": lambda run, canary: forge_config(
        run, {"vocabulary_size": 10**12}
    ),
    "configuration nested too deep": lambda run, canary: forge_file(
        run, "config.json", b"[" * 200_000
    ),
    "HDF5 as weights": lambda run, canary: forge_file(run, WEIGHTS, HDF5),
    "pickle as weights": lambda run, canary: forge_file(run, WEIGHTS, PICKLE),
    "pickle as optimizer": lambda run, canary: forge_file(
        run, "optimizer.safetensors", PICKLE
    ),
    "weights with a header of an exabyte": lambda run, canary: forge_file(
        run, WEIGHTS, HUGE_HEADER
    ),
    "weights of a shape that is not there": lambda run, canary: forge_file(
        run, WEIGHTS, len(BOMB).to_bytes(8, "little") + BOMB
    ),
    "tokenizer of a class path": lambda run, canary: forge_file(
        run, "tokenizer.json", b'{"kind": "os.system"}'
    ),
    "pickle as SentencePiece model": lambda run, canary: forge_tokenizer(run),
    "shards: path traversal": lambda run, canary: forge_shards(
        run, {"splits": {"../../canary": {}}}
    ),
    "shards: pickle as an array": lambda run, canary: forge_shards(
        run, {"train.token_ids.npy": PICKLE}
    ),
    "shards: Python objects in an array": lambda run, canary: forge_shards(
        run, {"train.token_ids.npy": packed(np.array([None] * 3))}
    ),
    "shards: an array of a shape that is not there": lambda run, canary: (
        forge_shards(
            run,
            {
                "train.token_ids.npy": packed(np.zeros(3, "uint16")).replace(
                    b"(3,), }          ", b"(3000000000,), } "
                )
            },
        )
    ),
    "foreign: path traversal in the index": lambda run, canary: forge_foreign(
        run,
        {
            WEIGHTS: None,
            f"{WEIGHTS}.index.json": {"weight_map": {"w": "../../canary"}},
        },
    ),
    "foreign: weights as a pickle": lambda run, canary: forge_foreign(
        run, {WEIGHTS: None, "pytorch_model.bin": PICKLE}
    ),
    "foreign: pickle that is named safetensors": lambda run, canary: (
        forge_foreign(run, {WEIGHTS: PICKLE})
    ),
    "foreign: a header of an exabyte": lambda run, canary: forge_foreign(
        run, {WEIGHTS: HUGE_HEADER}
    ),
    "foreign: a shape that is not there": lambda run, canary: forge_foreign(
        run, {WEIGHTS: len(BOMB).to_bytes(8, "little") + BOMB}
    ),
    "foreign: a billion blocks": lambda run, canary: forge_foreign(
        run, {"config.json": {"n_layer": 10**9}}
    ),
    "foreign: a class path as model_type": lambda run, canary: forge_foreign(
        run, {"config.json": {"model_type": "os.system"}}
    ),
    "texts: pickle as JSON lines": lambda run, canary: forge_data(
        run, "texts.jsonl"
    ),
    "texts: pickle as Parquet": lambda run, canary: forge_data(
        run, "texts.parquet"
    ),
    "texts: pickle as gzip": lambda run, canary: forge_data(
        run, "texts.txt.gz"
    ),
    "SavedModel that reads a file": lambda run, canary: forge_export(
        run, canary
    ),
    "progress of another shape": lambda run, canary: forge_file(
        run, "progress.json", b'["os.system"]'
    ),
}
# What Python does on behalf of a program in a file, as its audit hooks say.
FORBIDDEN = ("os.system", "subprocess.Popen", "os.exec", "pickle.find_class")


@functools.cache
def audited():
    """Returns a list that gets every audit event of this process."""
    events = []
    sys.addaudithook(
        lambda name, arguments: (
            events.append((name, str(arguments[:1])))
            if name == "open" or name in FORBIDDEN
            else None
        )
    )
    return events


def prepare(run):
    """Adds what the other loaders load, all of it whole."""
    shard = build_shard([[1, 2, 3]], [[1, 1, 1]], vocabulary_size=265)
    save_shards(run / "data", {"train": shard}, tokenizer_fingerprint="abc")
    save_huggingface(run / "foreign", foreign_model())


@functools.cache
def foreign_model():
    _, config = read_family(FOREIGN)
    model = GPTCausalLM(config)
    model.build()
    return model


def loaders_of(run, tell):
    """Returns functions that load what is there.

    Args:
        tell: function of one str, told of a checkpoint that is passed over.
    """
    found = [
        lambda: load_model(run),
        lambda: read_run_state(newest_state(run)),
        lambda: loader()(run / "checkpoints", tell=tell),
        lambda: load_shards(run / "data", tokenizer_fingerprint="abc"),
        lambda: load_huggingface(run / "foreign"),
    ]
    if (run / "export").is_dir():
        found.append(lambda: check_ops(run / "export"))
    for path in run.glob("texts.*"):
        found.append(lambda path=path: read_documents(path))
        found.append(lambda path=path: read_chats(path))
    return found


def load_a_hostile_file(seed, folder, truth):
    name, forge = [*HOSTILE.items()][seed % len(HOSTILE)]
    run, canary = folder / "run", folder / "canary"
    shutil.copytree(truth.folder, run)
    canary.write_text("nobody reads this")
    prepare(run)
    forge(run, canary)
    loader()
    events = audited()
    events.clear()
    refusals = []
    for load in loaders_of(run, refusals.append):
        try:
            load()
        except InputError as error:
            refusals.append(str(error))
    seen = [
        event
        for event in events
        if event[0] in FORBIDDEN or "canary" in event[1]
    ]
    lost = f"it led to {seen[0]}" if seen else ""
    lost = lost or ("" if refusals else "it was loaded")
    if any("\n" in refusal for refusal in refusals):
        lost = lost or "the refusal has many lines"
    return Outcome(seed, name, lost)
