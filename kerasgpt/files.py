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
import threading

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
            flush_file(file)
        flush_file(temporary)
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
        flush_file(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def clear_leftovers(folder, pattern):
    """Ends what a process that was killed within `atomic_folder` began.

    A folder that had been moved aside for its successor is put back;
    temporary ones are deleted. No other process may be writing there.

    Args:
        folder: str or Path, in which folders are written.
        pattern: str. Names of those folders, such as "step_*".
    """
    folder = pathlib.Path(folder)
    for aside in folder.glob(f".{pattern}.old.*"):
        for old in aside.iterdir():
            if not (folder / old.name).exists():
                os.rename(old, folder / old.name)
    for leftover in folder.glob(f".{pattern}.*"):
        shutil.rmtree(leftover, ignore_errors=True)


class BackgroundWriter:
    """Runs one function after the other in a thread: at most one at a time.

    A context: its end waits for the function that is running.

    Example:
        >>> done = []
        >>> with BackgroundWriter() as writer:
        ...     writer.start(lambda: done.append("written"))
        >>> done
        ['written']
    """

    def __init__(self):
        self._thread = None
        self._error = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if self._thread:
            self._thread.join()
        if error is None:
            self.check()

    def start(self, function):
        """Begins to run a function of no arguments, after the one before.

        Raises:
            Exception: what the one before raised.
        """
        self.wait()

        def run():
            try:
                function()
            except Exception as error:  # raised again where it is asked for
                self._error = error

        self._thread = threading.Thread(target=run, name="writer")
        self._thread.start()

    def wait(self):
        """Returns when nothing is running; raises what was raised."""
        if self._thread:
            self._thread.join()
        self.check()

    def check(self):
        """Raises what a function raised, if any did; does not wait."""
        error, self._error = self._error, None
        if error:
            raise error


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
        flush_file(temporary)
        os.replace(temporary, path)
        flush_file(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InputError(f"{path}: cannot be written: {error.strerror}.") from (
            error
        )


def write_json(path, value):
    """Writes `value` as indented JSON, whole or not at all."""
    write_text(path, _json_bytes(value).decode())


def read_json(path):
    """Returns the JSON value in a file of ours.

    Raises:
        InputError: if the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error}.") from error


def write_manifest(folder, **values):
    """Writes manifest.json: the values, and the SHA-256 of every other file.

    Its last entry is the SHA-256 of all the others.
    """
    folder = pathlib.Path(folder)
    hashes = {
        str(file.relative_to(folder)): file_hash(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    write_json(folder / MANIFEST, signed({**values, "files": hashes}))


def read_manifest(folder, *, required=()):
    """Returns the manifest of a folder whose every file was checked.

    Every bit counts, those of the manifest too. Against damage, not against
    forgery: whoever can write the files can write their hashes.

    Args:
        folder: str or Path.
        required: names of files that must be among those checked.

    Raises:
        InputError: if the manifest or a file is missing or has changed, or
            lies outside the folder.
    """
    folder = pathlib.Path(folder)
    path = folder / MANIFEST
    manifest = read_json(path)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise InputError(f"{path}: damaged: it lists no files.")
    content = {
        name: value for name, value in manifest.items() if name != "sha256"
    }
    if path.read_bytes() != _json_bytes(signed(content)):
        raise InputError(f"{path}: damaged: its own SHA-256 is not right.")
    for name in required:
        if name not in files:
            raise InputError(f"{path}: does not list {name}.")
    for name, expected in files.items():
        file = folder / name
        place = pathlib.PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            raise InputError(f"{path}: {name!r} is outside the folder.")
        if not file.is_file():
            raise InputError(f"{file}: missing, though {MANIFEST} lists it.")
        if file.resolve() != folder.resolve() / name:
            raise InputError(f"{file}: is a link, and not followed.")
        if file_hash(file) != expected:
            raise InputError(
                f"{file}: damaged: its SHA-256 is not the one in {MANIFEST}."
            )
    return manifest


def _json_bytes(value):
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # JSON can name half a character, of which UTF-8 knows nothing.
    return text.encode(errors="replace")


def signed(content):
    """Returns a dict with one entry more: the SHA-256 of all the others."""
    digest = hashlib.sha256(_json_bytes(content)).hexdigest()
    return {**content, "sha256": digest}


def file_hash(path):
    """Returns the SHA-256 of a file as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_file(path):
    """Returns when a file or folder is on the disk, not only on its way."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
