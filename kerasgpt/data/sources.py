"""Owns files -> documents and conversations.

Not: reading a file (rows.py), or what a row means (formats.py).
"""

import dataclasses
import glob
import os
import pathlib

from kerasgpt.config import Config, InputError, setting
from kerasgpt.data.formats import (
    RowError,
    find_text_column,
    read_messages,
    read_text_column,
    recognise,
)
from kerasgpt.data.prepared import is_prepared, prepared_shards
from kerasgpt.data.rows import (
    ROW_SUFFIXES,
    SUFFIXES,
    TABLE_SUFFIXES,
    TEXT_SUFFIXES,
    TFDS_PREFIX,
    Skipped,
    cut,
    file_kind,
    read_rows,
    tfds_rows,
)
from kerasgpt.files import MANIFEST


@dataclasses.dataclass(frozen=True)
class SourceConfig(Config):
    """How inputs are read."""

    text_column: str = setting(
        "",
        "column or key that holds documents; empty = recognised: text, "
        "content, body, 正文, … or a conversation",
    )
    tfds_data_dir: str = setting(
        "", "folder of prepared TFDS datasets; empty = TFDS's own"
    )
    tfds_manual_dir: str = setting(
        "", "folder with files that TFDS is not to download, such as input.txt"
    )


@dataclasses.dataclass(frozen=True)
class Input:
    """One file, or TFDS dataset, to read.

    Attributes:
        source: str, the input it belongs to, as it was given.
        path: str, the file, or "tfds:NAME".
    """

    source: str
    path: str


@dataclasses.dataclass(frozen=True)
class Document:
    """A text and where it comes from.

    Attributes:
        text: str; of a conversation the contents, joined by line breaks.
        source: str, the input as it was given.
        location: str, the file, and its line, item or row.
        messages: list of {"role", "content"}, or None.
    """

    text: str
    source: str
    location: str
    messages: list | None = None


def stream_documents(paths, config=None):
    """Yields the Documents of inputs, and Skipped for what is left out.

    One row is in memory at a time; `rows.read_rows` tells what becomes of
    damaged files. The order is that of the inputs, then of file names.

    Args:
        paths: list of str: files, folders, globs, "tfds:NAME".
        config: SourceConfig.

    Yields:
        Document, or Skipped.

    Raises:
        InputError: as `find_inputs`, and if a TFDS dataset cannot be loaded.
    """
    inputs, skipped = find_inputs(paths)
    yield from skipped
    for one in inputs:
        yield from stream_input(one, config)


def stream_input(one, config=None):
    """Yields the Documents of one Input, and Skipped, as `stream_documents`.

    Args:
        one: Input.
        config: SourceConfig.
    """
    config = config or SourceConfig()
    for item in _read(one, config):
        if isinstance(item, Skipped):
            yield item
            continue
        location, row = item
        try:
            text, messages = _understand(row, config.text_column)
        except RowError as error:
            yield Skipped(location, str(error))
            continue
        yield Document(text, one.source, location, messages)


def find_inputs(paths, *, suffixes=SUFFIXES):
    """Returns the files that inputs stand for, each once.

    A folder stands for the files below it of a known kind, hidden ones left
    out; links are followed, to each folder and file once, whatever it is
    called, so that a loop of links ends. Prepared data stand for their
    training split.

    Args:
        paths: list of str: files, folders, globs, "tfds:NAME".
        suffixes: kinds of files to look for in folders.

    Returns:
        list of Input, and list of Skipped: links that lead nowhere or back,
        folders that cannot be read.

    Raises:
        InputError: for a missing file or folder, a named file of unknown
            kind, a folder or glob without a file.
    """
    inputs, skipped, seen = [], [], set()
    for source in map(str, paths):
        if source.startswith(TFDS_PREFIX):
            inputs.append(Input(source, source))
            continue
        matches = [source]
        if not os.path.lexists(source) and glob.has_magic(source):
            matches = sorted(glob.glob(source, recursive=True))
            if not matches:
                raise InputError(f"{source}: matches no file.")
        for match in matches:
            for item in _walk(pathlib.Path(match), suffixes, seen):
                if isinstance(item, Skipped):
                    skipped.append(item)
                else:
                    inputs.append(Input(source, str(item)))
    return inputs, skipped


def read_chats(path, *, max_skipped_fraction=0.05):
    """Returns (conversations, skipped rows) of a chat file or folder.

    Args:
        path: str. A file in a format that `formats` recognises, a folder of
            such files, or "tfds:NAME".
        max_skipped_fraction: float. More unusable rows than this are an error.

    Returns:
        list of lists of messages, and list of Skipped.

    Raises:
        InputError: for a file that is missing, empty, binary, malformed or of
            another kind, or with too many unusable rows.
    """
    if file_kind(path) in TEXT_SUFFIXES and pathlib.Path(path).is_file():
        raise InputError(
            f"{path}: is plain text, and conversations are needed; train on "
            f"text with run_pretrain.py data.documents_path={path}."
        )
    chats, skipped = [], []
    for location, row in _read_all(
        path, skipped, ROW_SUFFIXES + TABLE_SUFFIXES
    ):
        try:
            chats.append(read_messages(row))
        except RowError as error:
            skipped.append(Skipped(location, str(error)))
    check_skipped(
        path, skipped, len(chats) + len(skipped), max_skipped_fraction
    )
    if not chats:
        raise InputError(f"{path}: holds no conversation.")
    return chats, skipped


def read_documents(path, *, max_skipped_fraction=0.05):
    """Returns (documents, skipped rows) of a text source.

    Args:
        path: str. A file, a folder, or "tfds:NAME". Rows that are
            conversations give their contents, joined by line breaks.
        max_skipped_fraction: float. More unusable rows than this are an error.

    Returns:
        list of str, and list of Skipped.

    Raises:
        InputError: as `read_chats`.
    """
    documents, skipped = [], []
    for location, row in _read_all(path, skipped, SUFFIXES):
        try:
            text, _ = _understand(row)
        except RowError as error:
            skipped.append(Skipped(location, str(error)))
            continue
        documents.extend(piece for piece in cut([text]) if piece.strip())
    check_skipped(
        path, skipped, len(documents) + len(skipped), max_skipped_fraction
    )
    if not documents:
        raise InputError(f"{path}: holds no text.")
    return documents, skipped


def check_skipped(path, skipped, count, max_skipped_fraction):
    """Refuses a source of which too many rows were skipped.

    Raises:
        InputError: if more than `max_skipped_fraction` of `count` rows were.
    """
    if len(skipped) > max_skipped_fraction * count:
        first = skipped[0]
        raise InputError(
            f"{path}: {len(skipped)} of {count} rows cannot be used, more than "
            f"data.max_skipped_fraction={max_skipped_fraction:g} allows; the "
            f"first is {first.location}: {first.reason}."
        )


def list_files(path):
    """Returns the files that a path stands for: itself, or a folder's files.

    Of a folder only those whose kind is known; hidden ones are left out. Of
    prepared data the manifest, which knows the hashes of the others.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        return [path]
    if is_prepared(path):
        return [path / MANIFEST]
    found = _walk(path, SUFFIXES, set(), may_be_empty=True)
    return [item for item in found if not isinstance(item, Skipped)]


def read_text(path):
    """Returns the text of a UTF-8 file.

    Raises:
        InputError: if the file is missing, empty, binary or no valid UTF-8.
    """
    path = pathlib.Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}.") from (
            error
        )
    if not content.strip():
        raise InputError(f"{path}: is empty.")
    if b"\x00" in content[:8192]:
        raise InputError(f"{path}: is a binary file; text is needed.")
    try:
        # utf-8-sig: a byte order mark is no part of the text.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {line}: invalid UTF-8 at byte {error.start}; "
            f"convert the file to UTF-8."
        ) from error


def _read(one, config):
    """Returns an iterator of the (location, row) and Skipped of an Input."""
    if one.path.startswith(TFDS_PREFIX):
        return tfds_rows(
            one.path.removeprefix(TFDS_PREFIX),
            data_dir=config.tfds_data_dir,
            manual_dir=config.tfds_manual_dir,
        )

    def choose_columns(columns):
        # Of a document no more than its text.
        kind = recognise(dict.fromkeys(columns), text_column=config.text_column)
        if kind == "text":
            return [config.text_column or find_text_column(columns)]
        return columns

    return read_rows(pathlib.Path(one.path), choose_columns)


def _read_all(path, skipped, suffixes):
    """Yields (location, row) of a path; what is damaged is refused.

    Training reads what the user calls ready: `kerasgpt data prepare` is there
    for files that may be broken.
    """
    inputs, links = find_inputs([path], suffixes=suffixes)
    skipped.extend(links)
    for one in inputs:
        for item in _read(one, SourceConfig()):
            if isinstance(item, Skipped):
                raise InputError(f"{item.location}: {item.reason}.")
            yield item


def _understand(row, text_column=""):
    """Returns (text, messages or None) of a row."""
    if recognise(row, text_column=text_column) == "text":
        return read_text_column(row, text_column=text_column), None
    messages = read_messages(row)
    return "\n".join(message["content"] for message in messages), messages


def _walk(path, suffixes, seen, *, may_be_empty=False):
    """Yields the files of a path, and Skipped, and adds to `seen`."""
    if not path.exists():
        raise InputError(f"{path}: no such file.")
    if path.is_dir():
        is_empty = True
        for item in _walk_folder(path, suffixes, seen):
            is_empty = is_empty and isinstance(item, Skipped)
            yield item
        if is_empty and not may_be_empty:
            raise InputError(
                f"{path}: has no file that ends in {', '.join(suffixes)}."
            )
    elif file_kind(path) not in suffixes:
        raise InputError(
            f"{path}: unknown kind of file; use {', '.join(suffixes)}."
        )
    elif _is_new(path, seen):
        yield path


def _walk_folder(folder, suffixes, seen):
    if not _is_new(folder, seen):
        yield Skipped(str(folder), "a link to a folder that is read already")
        return
    if is_prepared(folder):
        yield from prepared_shards(folder, splits=("train",))
        return
    try:
        # A file under its own name, where there are links to it.
        paths = sorted(folder.iterdir())
        paths.sort(key=pathlib.Path.is_symlink)
    except OSError as error:
        yield Skipped(str(folder), f"cannot be read: {error.strerror}")
        return
    for path in paths:
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk_folder(path, suffixes, seen)
        elif file_kind(path) not in suffixes:
            continue
        elif not path.exists():
            yield Skipped(str(path), "a link that leads nowhere")
        elif path.is_file() and _is_new(path, seen):
            yield path


def _is_new(path, seen):
    """Returns whether a file or folder was not seen under another name."""
    status = path.stat()
    identity = (status.st_dev, status.st_ino)
    is_new = identity not in seen
    seen.add(identity)
    return is_new
