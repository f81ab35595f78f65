"""Owns raw files -> a folder of prepared data: the order of the work.

Not: any step of it (staging.py, deduplication.py, contamination.py,
mixture.py, augmentation.py), nor what the folder looks like (prepared.py).

    read -> clean -> hash            each input by itself, kept in DIR/.staged
    duplicates -> overlap with evaluation -> split -> copies -> variations
"""

import collections
import dataclasses
import os
import pathlib
import shutil

from kerasgpt.config import Config, InputError, setting
from kerasgpt.data.augmentation import AugmentationConfig, vary_row
from kerasgpt.data.cleaning import CleaningConfig
from kerasgpt.data.contamination import ContaminationConfig, Evaluation
from kerasgpt.data.deduplication import (
    ExactDuplicates,
    NearDuplicateConfig,
    NearDuplicates,
)
from kerasgpt.data.mixture import (
    MixtureConfig,
    check_weights,
    num_copies,
    source_weight,
)
from kerasgpt.data.prepared import (
    KINDS,
    SHARD_BYTES,
    SPLITS,
    RowWriter,
    ShardWriter,
    content_key,
    row_text,
    split_of,
    write_prepared_manifest,
)
from kerasgpt.data.rows import TFDS_PREFIX
from kerasgpt.data.sources import SourceConfig, find_inputs, read_text
from kerasgpt.data.staging import (
    EXAMPLE_CHARACTERS,
    Counts,
    StagingConfig,
    cleaning_processes,
    input_digest,
    is_staged,
    load_staged,
    stage_input,
    staged_folder,
    staged_left_out,
    staged_rows,
)
from kerasgpt.files import MANIFEST, file_hash, read_json, write_json

WORK = ".staged"
CLAIM = "config.json"
LEFT_OUT = "left_out.jsonl.zst"
# Rows looked at together for overlap with evaluation.
ROWS_AT_ONCE = 500
NUM_CLUSTERS_SHOWN = 10
# Settings that change how the work is done, not what it gives.
FREE = ("num_workers", "overwrite")


@dataclasses.dataclass(frozen=True)
class SplitConfig(Config):
    """Shares that are held out, by the hash of the text."""

    validation_fraction: float = setting(
        0.02, "of documents, for the loss", minimum=0.0, maximum=0.5
    )
    test_fraction: float = setting(
        0.0, "of documents, that no run reads", minimum=0.0, maximum=0.4
    )


@dataclasses.dataclass(frozen=True)
class PreparationConfig(Config):
    """How raw files become prepared data."""

    num_workers: int = setting(
        0, "processes that clean; 0 = one a core", minimum=0
    )
    overwrite: bool = setting(
        False, "replace what was prepared with other settings"
    )
    source: SourceConfig = setting(SourceConfig(), "how inputs are read")
    cleaning: CleaningConfig = setting(CleaningConfig(), "which rules clean")
    remove_near_duplicates: bool = setting(
        True, "drop documents that are nearly the same as an earlier one"
    )
    near: NearDuplicateConfig = setting(
        NearDuplicateConfig(), "when two documents are nearly the same"
    )
    contamination: ContaminationConfig = setting(
        ContaminationConfig(), "overlap with evaluation"
    )
    split: SplitConfig = setting(SplitConfig(), "what is held out")
    mixture: MixtureConfig = setting(MixtureConfig(), "weights of sources")
    augmentation: AugmentationConfig = setting(
        AugmentationConfig(), "variations of the training split"
    )
    shard_bytes: int = setting(
        SHARD_BYTES, "JSON in a shard, before zstd", unit="bytes", minimum=1
    )

    @property
    def staging(self):
        """StagingConfig: what an input's staged folder depends on."""
        return StagingConfig(
            self.source, self.cleaning, self.near, self.remove_near_duplicates
        )


def prepare_files(
    paths, output, config, *, stage_all=None, translate_back=None, tell=print
):
    """Reads, cleans, deduplicates, splits and writes; returns the manifest.

    Inputs that were staged before, with the same content and settings, are not
    read again; after an interruption the same call goes on with the input it
    was at. The result depends on nothing but inputs and settings.

    Memory is that of some batches of rows, and about 1.3 KB a document.

    Args:
        paths: list of str: files, folders, globs, "tfds:NAME".
        output: str or Path, a new folder, or one that was prepared before.
        config: PreparationConfig.
        stage_all: function of (list of (Input, folder), StagingConfig, number
            of processes, tell) that stages them; `None` = processes here.
        translate_back: as in `augmentation.vary_row`; no setting, so that the
            caller answers for its being the same the next time.
        tell: function of one str, prints a line.

    Returns:
        dict, the manifest: settings, inputs, statistics, files.

    Raises:
        InputError: for inputs that are missing or hold nothing, a folder that
            is another's or was prepared with other settings, a full disk.
    """
    folder = pathlib.Path(output)
    inputs, skipped = find_inputs(paths)
    sources = list(dict.fromkeys(one.source for one in inputs))
    check_weights(sources, config.mixture)
    _check_outside(inputs, folder)
    evaluation = Evaluation(config.contamination)
    claim(folder, config)
    work = folder / WORK
    digests = [input_digest(one) for one in inputs]
    folders = [
        staged_folder(work, one, config.staging, digest)
        for one, digest in zip(inputs, digests, strict=True)
    ]
    missing = [
        (one, staged)
        for one, staged in zip(inputs, folders, strict=True)
        if not is_staged(staged)
    ]
    if len(missing) < len(inputs):
        tell(f"{len(inputs) - len(missing)} inputs were cleaned before.")
    num_workers = config.num_workers or len(os.sched_getaffinity(0))
    (stage_all or stage_here)(missing, config.staging, num_workers, tell)
    counts = Counts()
    for item in skipped:
        counts.add_left_out("skipped", item.reason, item.location, item.reason)
    statistics, files = _write_shards(
        folder,
        inputs,
        folders,
        config,
        evaluation,
        counts,
        skipped,
        translate_back,
    )
    statistics.update(dataclasses.asdict(counts))
    write_prepared_manifest(
        folder,
        files,
        settings=_settings(config),
        inputs=[
            {**dataclasses.asdict(one), "sha256": digest}
            for one, digest in zip(inputs, digests, strict=True)
        ],
        statistics=statistics,
    )
    for staged in work.iterdir():
        if staged not in folders:
            shutil.rmtree(staged)
    tell("\n".join(summary(statistics)))
    return read_json(folder / MANIFEST)


def stage_here(missing, config, num_workers, tell):
    """Stages inputs in processes of this machine.

    Args:
        missing: list of (Input, folder).
        config: StagingConfig.
        num_workers: int.
        tell: function of one str.
    """
    with cleaning_processes(config, num_workers) as clean_all:
        for one, staged in missing:
            counts = stage_input(one, staged, config, clean_all)
            kept = counts.kept.get("documents", 0)
            read = counts.read.get("documents", 0)
            left = sum(entry["count"] for entry in counts.skipped.values())
            tell(
                f"{one.path}: {read:,} read, {kept:,} kept"
                + (f", {left:,} unreadable" if left else "")
            )


def claim(folder, config):
    """Binds a folder to settings, from the first minute.

    Raises:
        InputError: if it is bound to others, or holds something else.
    """
    settings = _settings(config)
    path = folder / CLAIM
    if path.is_file():
        other = read_json(path)
        changes = _changes(other, settings)
        if changes and not config.overwrite:
            raise InputError(
                f"{folder}: was prepared with other settings: "
                f"{'; '.join(changes[:3])}; choose another folder, or set "
                f"overwrite=true."
            )
        if not changes:
            return
        # From here on it is not what its manifest says.
        (folder / MANIFEST).unlink(missing_ok=True)
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"{folder}: holds other files; choose a new folder for --output."
        )
    write_json(path, settings)


def summary(statistics):
    """Returns lines that tell what came in, what was left out, what stays."""
    read = statistics["read"].get("documents", 0)
    lines = [f"{read:>10,} documents and conversations read"]
    for name, word in (("skipped", "unreadable"), ("dropped", "dropped")):
        for rule, entry in sorted(
            statistics[name].items(), key=lambda item: -item[1]["count"]
        ):
            lines.append(f"{entry['count']:>10,} {word}: {rule}")
    for split, kinds in statistics["splits"].items():
        for kind, entry in kinds.items():
            lines.append(
                f"{entry['documents']:>10,} {kind} for {split}, "
                f"{entry['bytes'] / 1e6:,.1f} MB"
            )
    return lines


def _settings(config):
    """Returns what binds a folder: the settings, hashes of files they name."""
    settings = {
        key: value
        for key, _, _, value, _ in config.describe()
        if key not in FREE
    }
    for name, path in (
        ("word_list", config.cleaning.word_list),
        ("synonyms", config.augmentation.synonyms),
    ):
        if path:
            # Read, so that one that cannot be is told in our words.
            settings[f"{name} sha256"] = content_key(read_text(path))
    return settings


def _changes(old, new):
    """Returns "key: old -> new" of settings that differ."""
    if not isinstance(old, dict):
        return ["config.json is damaged"]
    return [
        f"{key} was {old.get(key, 'unknown')}, is {new.get(key, 'unknown')}"
        for key in {**old, **new}
        if old.get(key, ...) != new.get(key, ...)
    ]


def _check_outside(inputs, folder):
    output = folder.resolve()
    for one in inputs:
        if one.path.startswith(TFDS_PREFIX):
            continue
        if output in pathlib.Path(one.path).resolve().parents:
            raise InputError(
                f"--output {folder}: lies within the input {one.source}; "
                f"choose a folder outside."
            )


def _write_shards(
    folder,
    inputs,
    folders,
    config,
    evaluation,
    counts,
    skipped,
    translate_back,
):
    """Writes the shards; returns (statistics, dict of file to SHA-256)."""
    exact, near = ExactDuplicates(), NearDuplicates(config.near)
    for staged in folders:
        one_counts, hashes, signatures = load_staged(staged)
        _merge(counts, one_counts)
        exact.add_hashes(hashes)
        near.add_signatures(signatures)
    total = len(exact)
    if not total:
        reasons = ", ".join([*counts.skipped, *counts.dropped]) or "no row"
        raise InputError(
            f"{', '.join(dict.fromkeys(one.source for one in inputs))}: no "
            f"document is left: {reasons}."
        )
    is_near_wanted = config.remove_near_duplicates
    exact_firsts = exact.firsts()
    firsts = near.firsts() if is_near_wanted else exact_firsts
    places = exact.places()
    tally = _Tally(firsts, exact_firsts)
    writers = {
        (kind, split): ShardWriter(
            folder, kind, split, shard_bytes=config.shard_bytes
        )
        for kind in KINDS
        for split in SPLITS
    }
    part = folder / f".{LEFT_OUT}.part"
    with RowWriter(part) as left_out:

        def drop(row, rule, text, **more):
            location = row["location"]
            counts.add_left_out("dropped", rule, location, text)
            left_out.write(
                {"location": location, "rule": rule, "text": text, **more}
            )

        for item in skipped:
            left_out.write(
                {"location": item.location, "rule": item.reason, "text": ""}
            )
        for staged in folders:
            for row in staged_left_out(staged):
                left_out.write(row)
        rows = enumerate(
            row for staged in folders for row in staged_rows(staged)
        )
        for batch in _lists(rows):
            kept = []
            for number, row in batch:
                original = tally.original_of(number, row)
                if original is None:
                    kept.append((number, row))
                else:
                    rule = tally.rule_of(number)
                    drop(row, rule, row_text(row), of=original)
            overlaps = evaluation.check(
                [row_text(row) for _, row in kept],
                [row["location"] for _, row in kept],
            )
            for (number, row), overlap in zip(kept, overlaps, strict=True):
                text = row_text(row)
                if overlap and config.contamination.is_dropped:
                    drop(row, "contamination", text)
                    continue
                place = float(places[number])
                split = split_of(place, config.split)
                kind = "chats" if "messages" in row else "documents"
                copies = 1
                if split == "train":
                    weight = source_weight(row["source"], config.mixture)
                    # Not the place itself, by which the split was made.
                    copies = num_copies(place * 2**20 % 1, weight)
                for _ in range(copies):
                    writers[kind, split].write(row)
                tally.add(row, text, kind, split, copies)
                if split == "train" and copies:
                    for varied in vary_row(
                        row, config.augmentation, translate_back=translate_back
                    ):
                        writers[kind, split].write(varied)
                        tally.add(varied, row_text(varied), kind, split, 1)
    files = {}
    for writer in writers.values():
        writer.close()
        files.update(writer.files)
    os.replace(part, folder / LEFT_OUT)
    files[LEFT_OUT] = file_hash(folder / LEFT_OUT)
    statistics = tally.statistics()
    statistics["contamination"] = evaluation.report()
    return statistics, files


class _Tally:
    """Counts what is written, and remembers clusters of duplicates."""

    def __init__(self, firsts, exact_firsts):
        self.firsts, self.exact_firsts = firsts, exact_firsts
        sizes = collections.Counter(
            firsts[firsts != range(len(firsts))].tolist()
        )
        self.sizes = {first: size + 1 for first, size in sizes.items()}
        self.locations = {}
        self.largest = {
            first: None
            for first, _ in sorted(
                self.sizes.items(), key=lambda item: (-item[1], item[0])
            )[:NUM_CLUSTERS_SHOWN]
        }
        self.splits, self.sources, self.languages = {}, {}, {}
        self.lengths = {}

    def original_of(self, number, row):
        """Returns the location that a row repeats, or None."""
        first = int(self.firsts[number])
        if first != number:
            return self.locations[first]
        if number in self.sizes:
            self.locations[number] = row["location"]
        if number in self.largest:
            self.largest[number] = {
                "size": self.sizes[number],
                "location": row["location"],
                "text": row_text(row)[:EXAMPLE_CHARACTERS],
            }
        return None

    def rule_of(self, number):
        is_exact = self.exact_firsts[number] != number
        return "exact_duplicate" if is_exact else "near_duplicate"

    def add(self, row, text, kind, split, copies):
        """Counts a row that was written so many times."""
        size = len(text.encode("utf-8", "replace"))
        for entry in (
            self.splits.setdefault(split, {}).setdefault(kind, {}),
            self.sources.setdefault(row["source"], {}).setdefault(split, {}),
        ):
            for key, value in (
                ("documents", copies),
                ("characters", copies * len(text)),
                ("bytes", copies * size),
            ):
                entry[key] = entry.get(key, 0) + value
        language = row["language"]
        self.languages[language] = self.languages.get(language, 0) + copies
        # Characters from 2 ** (bit - 1) to 2 ** bit - 1.
        lengths = self.lengths.setdefault(language, {})
        bit = str(len(text).bit_length())
        lengths[bit] = lengths.get(bit, 0) + copies

    def statistics(self):
        sizes = collections.Counter(self.sizes.values())
        return {
            "splits": self.splits,
            "sources": self.sources,
            "written_languages": self.languages,
            "lengths": self.lengths,
            "clusters": {
                "sizes": {str(size): sizes[size] for size in sorted(sizes)},
                "largest": [*filter(None, self.largest.values())],
            },
        }


def _merge(counts, others):
    """Adds one input's Counts to those of all."""
    for name in ("read", "kept", "languages"):
        total = getattr(counts, name)
        for key, value in getattr(others, name).items():
            total[key] = total.get(key, 0) + value
    for edit, entry in others.edits.items():
        total = counts.edits.setdefault(edit, dict.fromkeys(entry, 0))
        for key, value in entry.items():
            total[key] += value
    for name in ("skipped", "dropped"):
        for rule, entry in getattr(others, name).items():
            for example in entry["examples"]:
                counts.add_left_out(
                    name, rule, example["location"], example["text"]
                )
            total = getattr(counts, name)[rule]
            total["count"] += entry["count"] - len(entry["examples"])


def _lists(rows):
    """Yields lists of ROWS_AT_ONCE rows."""
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == ROWS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
