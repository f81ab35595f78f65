"""Owns one input -> its rows, cleaned, with hashes, in a folder of their own.

Not: what rows of several inputs have to do with each other (preparation.py).

A staged folder is named by what it depends on: the file's content and the
settings. So a second run finds what the first one made, whole or not at all.

    rows.jsonl.zst    cleaned documents and conversations that were kept
    hashes.npy        uint64 (rows, 2), of exact duplicates
    signatures.npy    uint8 (rows, bins), of near ones
    left_out.jsonl.zst    what was not: {"location", "rule", "text"}
    counts.json       what came in, what each rule found and dropped
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import re
import signal

import numpy as np

from kerasgpt.config import Config, InputError, setting
from kerasgpt.data.cleaning import CleaningConfig, clean, clean_chat
from kerasgpt.data.deduplication import (
    NearDuplicateConfig,
    hash_texts,
    sign_texts,
)
from kerasgpt.data.prepared import RowWriter, content_key, read_rows_of
from kerasgpt.data.sources import SourceConfig, stream_input
from kerasgpt.data.text_lines import Skipped
from kerasgpt.files import (
    atomic_folder,
    file_hash,
    read_json,
    read_manifest,
    write_json,
    write_manifest,
)

VERSION = "2"
# Characters and rows sent to a process at once: half a second of cleaning,
# which pays for the sending, and little memory.
BATCH_CHARACTERS, BATCH_ROWS = 1_000_000, 2_000
# Named of what was left out by each rule; all are counted.
MAX_EXAMPLES = 5
EXAMPLE_CHARACTERS = 200
NUMBER = re.compile(r"\d[\d,]*")


@dataclasses.dataclass(frozen=True)
class StagingConfig(Config):
    """How one input is read and cleaned."""

    source: SourceConfig = setting(SourceConfig(), "how inputs are read")
    cleaning: CleaningConfig = setting(CleaningConfig(), "which rules clean")
    near: NearDuplicateConfig = setting(
        NearDuplicateConfig(), "when two documents are nearly the same"
    )
    remove_near_duplicates: bool = setting(
        True, "drop documents that are nearly the same as an earlier one"
    )


@dataclasses.dataclass
class Counts:
    """What became of the rows of an input.

    Attributes:
        read, kept: dict of "documents", "characters", "bytes" to int.
        skipped, dropped: dict of rule, or reason, to {"count", "examples"}.
        edits: dict of edit to {"documents", "places"}.
        languages: dict of language to documents kept.
    """

    read: dict = dataclasses.field(default_factory=dict)
    kept: dict = dataclasses.field(default_factory=dict)
    skipped: dict = dataclasses.field(default_factory=dict)
    dropped: dict = dataclasses.field(default_factory=dict)
    edits: dict = dataclasses.field(default_factory=dict)
    languages: dict = dataclasses.field(default_factory=dict)

    def add_text(self, name, text):
        """Counts a text in `read` or `kept`."""
        counts = getattr(self, name)
        for key, number in (
            ("documents", 1),
            ("characters", len(text)),
            ("bytes", len(text.encode("utf-8", "replace"))),
        ):
            counts[key] = counts.get(key, 0) + number

    def add_left_out(self, name, rule, location, text):
        """Counts what was left out in `skipped` or `dropped`."""
        entry = getattr(self, name).setdefault(
            rule, {"count": 0, "examples": []}
        )
        entry["count"] += 1
        if len(entry["examples"]) < MAX_EXAMPLES:
            text = text[:EXAMPLE_CHARACTERS]
            entry["examples"].append({"location": location, "text": text})

    def add_edits(self, counts):
        """Counts the edits of a document, as `Cleaned.counts` has them."""
        for edit, places in counts.items():
            entry = self.edits.setdefault(edit, {"documents": 0, "places": 0})
            entry["documents"] += 1
            entry["places"] += places


def clean_documents(documents, config):
    """Returns what cleaning makes of some Documents. Pure.

    Args:
        documents: list of Document.
        config: StagingConfig.

    Returns:
        list of (row or None, Cleaned), one a document; uint64 (kept, 2)
        hashes; uint8 (kept, bins) signatures, of the rows kept.
    """
    results, texts = [], []
    for document in documents:
        if document.messages is None:
            cleaned = clean(document.text, config.cleaning)
            content = {"text": cleaned.text}
        else:
            messages, cleaned = clean_chat(document.messages, config.cleaning)
            content = {"messages": messages}
        row = None
        if not cleaned.dropped_by:
            row = {
                **content,
                "source": document.source,
                "location": document.location,
                "language": cleaned.language,
            }
            texts.append(cleaned.text)
        results.append((row, cleaned))
    signatures = np.zeros((0, config.near.num_bins), np.uint8)
    if config.remove_near_duplicates:
        signatures = sign_texts(texts, config.near)
    return results, hash_texts(texts), signatures


@contextlib.contextmanager
def cleaning_processes(config, num_workers):
    """Gives a function of an iterable of lists of Documents that maps them.

    It yields (documents, what `clean_documents` returns) in order, and holds a
    few lists at most.

    Args:
        config: StagingConfig.
        num_workers: int, processes; 1 = this one.

    Raises:
        InputError: if a process dies, as for lack of memory.
    """
    if num_workers == 1:
        yield lambda batches: (
            (batch, clean_documents(batch, config)) for batch in batches
        )
        return
    # Forked: a new interpreter would run the script that called us again. The
    # children touch neither TensorFlow nor its threads.
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(
        num_workers, context, initializer=_leave_interrupts_to_the_parent
    ) as pool:

        def results(batches):
            waiting = collections.deque()
            for batch in batches:
                waiting.append(
                    (batch, pool.submit(clean_documents, batch, config))
                )
                if len(waiting) > num_workers + 1:
                    yield _result(*waiting.popleft())
            while waiting:
                yield _result(*waiting.popleft())

        yield results


def staged_folder(work, one, config, file_digest):
    """Returns the folder in which an Input is, or will be, staged.

    Args:
        work: pathlib.Path, the folder of staged folders.
        one: Input.
        config: StagingConfig.
        file_digest: str, SHA-256 of the file; "" of a TFDS dataset.
    """
    word_list = config.cleaning.word_list
    key = content_key(
        VERSION,
        one.source,
        one.path,
        file_digest,
        config.fingerprint(),
        file_hash(word_list) if word_list else "",
    )
    return pathlib.Path(work) / key


def input_digest(one):
    """Returns the SHA-256 of an Input's file, "" if it is none or unreadable.

    What cannot be read is told by who reads it.
    """
    try:
        return file_hash(one.path) if os.path.isfile(one.path) else ""
    except OSError:
        return ""


def is_staged(folder):
    """Returns whether a folder is staged, every bit of it."""
    try:
        read_manifest(folder, required=("rows.jsonl.zst", "hashes.npy"))
    except InputError:
        return False
    return True


def stage_input(one, folder, config, clean_all):
    """Reads and cleans an Input, and writes its staged folder.

    Memory is that of a few batches, and 272 bytes a document.

    Args:
        one: Input.
        folder: pathlib.Path, as `staged_folder` names it.
        config: StagingConfig.
        clean_all: as `cleaning_processes` gives it.

    Returns:
        Counts.

    Raises:
        InputError: if the place cannot be written.
    """
    counts = Counts()
    hashes = [np.zeros((0, 2), np.uint64)]
    signatures = [np.zeros((0, config.near.num_bins), np.uint8)]
    with atomic_folder(folder, overwrite=True) as temporary:
        with (
            RowWriter(temporary / "rows.jsonl.zst") as writer,
            RowWriter(temporary / "left_out.jsonl.zst") as left_out,
        ):

            def leave_out(name, rule, location, text):
                counts.add_left_out(name, rule, location, text)
                left_out.write(
                    {"location": location, "rule": rule, "text": text}
                )

            batches = _batches(one, config, leave_out)
            for documents, found in clean_all(batches):
                results, batch_hashes, batch_signatures = found
                hashes.append(batch_hashes)
                signatures.append(batch_signatures)
                for document, (row, cleaned) in zip(
                    documents, results, strict=True
                ):
                    location, language = document.location, cleaned.language
                    counts.add_text("read", document.text)
                    counts.add_edits(cleaned.counts)
                    if row is None:
                        rule = cleaned.dropped_by
                        leave_out("dropped", rule, location, cleaned.text)
                        continue
                    counts.add_text("kept", cleaned.text)
                    counts.languages.setdefault(language, 0)
                    counts.languages[language] += 1
                    writer.write(row)
        np.save(temporary / "hashes.npy", np.concatenate(hashes))
        np.save(temporary / "signatures.npy", np.concatenate(signatures))
        write_json(temporary / "counts.json", dataclasses.asdict(counts))
        write_manifest(temporary, input=one.path, rows=writer.num_rows)
    return counts


def load_staged(folder):
    """Returns (Counts, hashes, signatures) of a staged folder.

    Raises:
        InputError: if a file is missing or damaged.
    """
    try:
        counts = Counts(**read_json(folder / "counts.json"))
        hashes = np.load(folder / "hashes.npy", allow_pickle=False)
        signatures = np.load(folder / "signatures.npy", allow_pickle=False)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise InputError(
            f"{folder}: damaged; delete it, and run again."
        ) from error
    return counts, hashes, signatures


def staged_rows(folder):
    """Yields the rows of a staged folder."""
    yield from read_rows_of(folder / "rows.jsonl.zst")


def staged_left_out(folder):
    """Yields what was left out in a staged folder."""
    yield from read_rows_of(folder / "left_out.jsonl.zst")


def _batches(one, config, leave_out):
    """Yields lists of Documents, and tells what cannot be read."""
    batch, size = [], 0
    for item in stream_input(one, config.source):
        if isinstance(item, Skipped):
            # One rule, however many bytes and lines it names.
            rule = NUMBER.sub("…", item.reason)
            leave_out("skipped", rule, item.location, item.reason)
            continue
        batch.append(item)
        size += len(item.text)
        if size >= BATCH_CHARACTERS or len(batch) >= BATCH_ROWS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _leave_interrupts_to_the_parent():
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _result(batch, future):
    try:
        return batch, future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise InputError(
            f"{batch[0].location}: a cleaning process was killed, perhaps for "
            f"lack of memory; try num_workers=1."
        ) from error
