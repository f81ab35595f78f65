"""Owns files as published attacks on Keras have them, for every loader."""

import functools
import hashlib
import json
import shutil
import sys

from experiments.faults.damage import loader
from experiments.faults.trial import Outcome
from kerasgpt.checkpoints import list_run_states, load_model, read_run_state
from kerasgpt.config import InputError
from kerasgpt.files import read_json, write_json, write_manifest


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


def load_a_hostile_file(seed, folder, truth):
    name, forge = [*HOSTILE.items()][seed % len(HOSTILE)]
    run, canary = folder / "run", folder / "canary"
    shutil.copytree(truth.folder, run)
    canary.write_text("nobody reads this")
    forge(run, canary)
    loader()
    events = audited()
    events.clear()
    refusals, lost = 0, ""
    for load in (
        lambda: load_model(run),
        lambda: read_run_state(newest_state(run)),
        lambda: loader()(run / "checkpoints"),
    ):
        try:
            load()
        except InputError as error:
            refusals += 1
            lost = lost or ("many lines" if "\n" in str(error) else "")
    seen = [
        event
        for event in events
        if event[0] in FORBIDDEN or "canary" in event[1]
    ]
    lost = lost or (f"it led to {seen[0]}" if seen else "")
    lost = lost or ("" if refusals else "it was loaded")
    return Outcome(seed, name, lost)
