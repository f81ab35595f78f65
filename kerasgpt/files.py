"""Owns how files come to be: whole or not at all, with their hashes.

Not: what is in them.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile

from kerasgpt.config import InputError

MANIFEST = "manifest.json"


@contextlib.contextmanager
def atomic_folder(path, *, overwrite=False):
    """Gives a temporary folder that becomes `path` when the block succeeds.

    Files are flushed to disk before the rename, so after a crash there is the
    old folder or the new one, never half of one. If the block fails, nothing
    is left.

    Args:
        path: str or Path of the folder to make.
        overwrite: bool. Replace an existing folder.

    Yields:
        pathlib.Path of the temporary folder, beside `path`.

    Raises:
        InputError: if the folder exists and may not be replaced, or the place
            cannot be written.
    """
    path = pathlib.Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already and is not overwritten.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = pathlib.Path(
            tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)
        )
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}.") from (
            error
        )
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _flush(file)
        _flush(temporary)
        os.chmod(temporary, 0o755)
        if path.exists():
            # A folder cannot be renamed over a full one.
            old = pathlib.Path(
                tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent)
            )
            os.rename(path, old / path.name)
            os.rename(temporary, path)
            shutil.rmtree(old)
        else:
            os.rename(temporary, path)
        _flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(folder):
    """Makes a folder if there is none, and tries to write in it.

    For what is written at the end of a long run, and had better not fail
    there.

    Raises:
        InputError: if the folder cannot be written.
    """
    probe = pathlib.Path(folder) / f".probe.{os.getpid()}"
    write_text(probe, "")
    probe.unlink()


def write_text(path, text):
    """Writes a text file whole or not at all.

    Raises:
        InputError: if the place cannot be written.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        _flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InputError(f"{path}: cannot be written: {error.strerror}.") from (
            error
        )


def write_json(path, value):
    """Writes `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path):
    """Returns the JSON value in a file of ours.

    Raises:
        InputError: if the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}.") from error


def write_manifest(folder, **values):
    """Writes manifest.json: the values, and the SHA-256 of every other file."""
    folder = pathlib.Path(folder)
    hashes = {
        str(file.relative_to(folder)): file_hash(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    write_json(folder / MANIFEST, {**values, "files": hashes})


def read_manifest(folder):
    """Returns the manifest of a folder whose every file was checked.

    Raises:
        InputError: if the manifest or a file is missing or has changed.
    """
    folder = pathlib.Path(folder)
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise InputError(f"{folder / MANIFEST}: damaged: it lists no files.")
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file}: missing, though {MANIFEST} lists it.")
        if file_hash(file) != expected:
            raise InputError(
                f"{file}: damaged: its SHA-256 is not the one in {MANIFEST}."
            )
    return manifest


def file_hash(path):
    """Returns the SHA-256 of a file as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
