"""Owns the peers' environment, made once from peers.txt. Not: their work."""

import hashlib
import pathlib
import subprocess
import sys

from kerasgpt.config import InputError
from kerasgpt.files import read_json, write_json

FOLDER = pathlib.Path(__file__).resolve().parent
PEERS = FOLDER / "peers.txt"
# Beside the runs: git and the structure test look into neither.
PEERS_FOLDER = FOLDER.parent / "runs" / ".peers"


class PeersMissing(Exception):
    """The peers' Python cannot be had; says why in one line."""


def peers_python(config):
    """Returns the Python that has the peers; makes its environment once.

    Args:
        config: ContestConfig.

    Raises:
        PeersMissing: if it cannot be made, now or earlier with the same
            peers.txt; delete experiments/runs/.peers to try again.
        InputError: if `config.peers_python` does not exist.
    """
    if config.peers_python:
        if not pathlib.Path(config.peers_python).is_file():
            raise InputError(
                f"peers_python={config.peers_python}: no such file."
            )
        return config.peers_python
    python = PEERS_FOLDER / "bin" / "python"
    stamp = PEERS_FOLDER / "peers.json"
    wanted = hashlib.sha256(PEERS.read_bytes()).hexdigest()
    if not stamp.is_file() or read_json(stamp)["peers"] != wanted:
        print(f"peers: installing {PEERS.name} into {PEERS_FOLDER} …")
        failures = _install_peers(python)
        write_json(stamp, {"peers": wanted, "failures": failures})
    failures = read_json(stamp)["failures"]
    if "python" in failures:
        raise PeersMissing(failures["python"])
    return python


def _install_peers(python):
    """Returns what could not be installed: dict of name to reason."""

    def failure(*command):
        result = subprocess.run(command, capture_output=True, text=True)
        lines = (result.stderr or result.stdout).strip().splitlines()
        return (lines[-1] if lines else "failed") if result.returncode else ""

    reason = failure(sys.executable, "-m", "venv", "--clear", str(PEERS_FOLDER))
    if reason:
        return {"python": f"python -m venv: {reason}"}
    install = [str(python), "-m", "pip", "install", "--quiet"]
    if not failure(*install, "-r", str(PEERS)):
        return {}
    # One that cannot be built must not take the others with it.
    lines = [line.split("#")[0].strip() for line in PEERS.open()]
    options = [
        part for line in lines if line[:1] == "-" for part in line.split()
    ]
    failures = {}
    for name in (line for line in lines if line and line[:1] != "-"):
        reason = failure(*install, *options, name)
        if reason:
            failures[name] = reason
            print(f"  {name} cannot be installed: {reason}")
    return failures
