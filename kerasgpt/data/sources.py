"""Owns files -> documents and conversations. Not: what rows mean (formats)."""

import dataclasses
import json
import pathlib

from kerasgpt.config import InputError
from kerasgpt.data.formats import RowError, is_unicode, read_messages, recognise

TEXT_SUFFIXES = (".txt", ".md")
ROW_SUFFIXES = (".json", ".jsonl")
TFDS_PREFIX = "tfds:"
# A text file is cut into documents of about this size, so that some of one
# file can be held out; few enough cuts to cost no context worth speaking of.
DOCUMENT_CHARACTERS = 10_000


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A row that was left out: where it stands, and the rule it breaks."""

    location: str
    reason: str


def read_chats(path, *, max_skipped_fraction=0.05):
    """Returns (conversations, skipped rows) of a chat file or folder.

    Args:
        path: str. `.jsonl` or `.json` in a format that `formats` recognises,
            a folder of such files, or "tfds:NAME".
        max_skipped_fraction: float. More unusable rows than this are an error.

    Returns:
        list of lists of messages, and list of Skipped.

    Raises:
        InputError: for a file that is missing, empty, binary, malformed or of
            another kind, or with too many unusable rows.
    """
    chats, skipped = [], []
    for location, row in _rows(path, accept_text=False):
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
        path: str. `.txt` or `.md`, `.jsonl` or `.json` with a "text" field, a
            folder of such files, or "tfds:NAME". Rows that are conversations
            give their contents, joined by line breaks.
        max_skipped_fraction: float. More unusable rows than this are an error.

    Returns:
        list of str, and list of Skipped.

    Raises:
        InputError: as `read_chats`.
    """
    documents, skipped = [], []
    for location, row in _rows(path, accept_text=True):
        try:
            if recognise(row) == "text":
                text = row["text"]
                if not isinstance(text, str) or not is_unicode(text):
                    raise RowError("text is no valid Unicode text")
            else:
                messages = read_messages(row)
                text = "\n".join(m["content"] for m in messages)
        except RowError as error:
            skipped.append(Skipped(location, str(error)))
            continue
        documents.extend(_cut(text))
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

    Of a folder only those whose suffix is known; hidden ones are left out.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        return [path]
    return sorted(
        file
        for file in path.rglob("*")
        if file.suffix in ROW_SUFFIXES + TEXT_SUFFIXES
        and file.is_file()
        and not file.name.startswith(".")
    )


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


def _rows(path, *, accept_text):
    """Yields (location, row) of a file, of all files of a folder, or TFDS."""
    if str(path).startswith(TFDS_PREFIX):
        yield from _tfds_rows(str(path).removeprefix(TFDS_PREFIX))
        return
    path = pathlib.Path(path)
    suffixes = ROW_SUFFIXES + (TEXT_SUFFIXES if accept_text else ())
    if path.is_dir():
        files = [file for file in list_files(path) if file.suffix in suffixes]
        if not files:
            raise InputError(
                f"{path}: has no file that ends in {', '.join(suffixes)}."
            )
        for file in files:
            yield from _rows(file, accept_text=accept_text)
        return
    text = read_text(path)
    if path.suffix in TEXT_SUFFIXES and not accept_text:
        raise InputError(
            f"{path}: is plain text, and conversations are needed; train on "
            f"text with run_pretrain.py data.documents_path={path}."
        )
    if path.suffix in TEXT_SUFFIXES:
        yield str(path), {"text": text}
    elif path.suffix in ROW_SUFFIXES:
        yield from _json_rows(path, text)
    else:
        raise InputError(
            f"{path}: unknown kind of file; use {', '.join(suffixes)}."
        )


def _json_rows(path, text):
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(_json_error(path, error)) from error
        for index, row in enumerate(rows, start=1):
            yield f"{path}, item {index}", row
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"{path}, line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(_json_error(path, error, number)) from error


def _json_error(path, error, line=None):
    if line is None:
        line = getattr(error, "lineno", 1)
    reason = getattr(error, "msg", "nested too deeply")
    column = getattr(error, "colno", 1)
    return f"{path}, line {line}: malformed JSON at column {column}: {reason}."


def _tfds_rows(name):
    import tensorflow_datasets

    try:
        dataset = tensorflow_datasets.load(name, split="train")
    except Exception as error:
        # The builders raise all kinds; the first line says what is wrong.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{TFDS_PREFIX}{name}: {reason}") from error
    for index, example in enumerate(
        tensorflow_datasets.as_numpy(dataset), start=1
    ):
        row = {
            key: value.decode("utf-8", "replace")
            for key, value in example.items()
            if isinstance(value, bytes)
        }
        yield f"{TFDS_PREFIX}{name}, example {index}", row


def _cut(text):
    """Returns `text` in pieces of about DOCUMENT_CHARACTERS, cut at lines."""
    pieces, piece, size = [], [], 0
    for line in text.splitlines(keepends=True):
        for start in range(0, len(line), DOCUMENT_CHARACTERS):
            part = line[start : start + DOCUMENT_CHARACTERS]
            if piece and size + len(part) > DOCUMENT_CHARACTERS:
                pieces.append("".join(piece))
                piece, size = [], 0
            piece.append(part)
            size += len(part)
    if piece:
        pieces.append("".join(piece))
    return [piece for piece in pieces if piece.strip()]
