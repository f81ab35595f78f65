"""Owns the tokenizer stage: files -> a tokenizer, and what it is worth."""

import dataclasses
import pathlib
import time

from kerasgpt.checkpoints.model_folder import (
    TOKENIZER_FILE,
    load_tokenizer,
    save_tokenizer,
)
from kerasgpt.config import Config, InputError, setting
from kerasgpt.data.fertility import measure_usage, sample_texts
from kerasgpt.data.languages import UNSPACED
from kerasgpt.data.rows import cut
from kerasgpt.data.sources import Document, SourceConfig, stream_documents
from kerasgpt.files import (
    atomic_folder,
    read_json,
    write_json,
    write_manifest,
    write_text,
)
from kerasgpt.tokenizers.huggingface import load_huggingface_tokenizer
from kerasgpt.tokenizers.kinds import KINDS, train_tokenizer

TELL_SECONDS = 5.0
MEGABYTE = 1_000_000


@dataclasses.dataclass(frozen=True)
class SampleConfig(Config):
    """Which texts are learned from."""

    megabytes: float = setting(
        16.0,
        "of text, chosen by its hash from all that there is",
        unit="MB",
        minimum=0.001,
    )
    measured_fraction: float = setting(
        0.1,
        "share of it that is measured, and not learned from",
        minimum=0.0,
        maximum=0.9,
    )
    sources: SourceConfig = setting(SourceConfig(), "how inputs are read")


@dataclasses.dataclass(frozen=True)
class TrainTokenizerConfig(Config):
    """A tokenizer, from files."""

    kind: str = setting(
        "sentence_piece",
        "learned pieces, merged (sentence_piece) or likeliest (unigram); pairs "
        "of bytes as GPT-2 and Llama 3 have them; plain bytes; or word_piece, "
        "for masked language models only",
        choices=KINDS,
    )
    vocabulary_size: int = setting(
        2048,
        "pieces, control tokens and bytes included",
        unit="tokens",
        minimum=20,
    )
    sample: SampleConfig = setting(SampleConfig(), "what is learned from")


@dataclasses.dataclass(frozen=True)
class CompareTokenizersConfig(Config):
    """Several tokenizers, from the same files."""

    kinds: str = setting(
        "sentence_piece,byte_pair",
        f"comma between; of {', '.join(KINDS)}; empty = none is trained",
    )
    vocabulary_sizes: str = setting(
        "2048,4096,8192", "of each kind; comma between", unit="tokens"
    )
    folders: str = setting(
        "",
        "tokenizers to compare with, ours or of Hugging Face; comma between",
    )
    sample: SampleConfig = setting(SampleConfig(), "what is learned from")


def train(paths, output, config, *, overwrite=False, tell=print):
    """Trains a tokenizer and writes it to a folder, with report.md.

    Args:
        paths: list of str: files, folders, globs, "tfds:NAME".
        output: str or Path, the folder.
        config: TrainTokenizerConfig.
        overwrite: bool. Replace an existing folder.
        tell: function of one str, prints a line.

    Returns:
        Tokenizer.

    Raises:
        InputError: if there is no text, for settings that cannot be met, or
            if the folder exists.
    """
    output = pathlib.Path(output)
    if output.exists() and not overwrite:
        raise InputError(f"{output}: exists; choose another, or --overwrite.")
    learned, measured = read_sample(paths, config.sample, tell=tell)
    tokenizer, seconds = _train(
        config.kind, learned, config.vocabulary_size, tell
    )
    usage = measure_usage(tokenizer, measured)
    lines = usage_table(usage)
    facts = {
        "kind": config.kind,
        "vocabulary_size": tokenizer.vocabulary_size,
        "fingerprint": tokenizer.fingerprint(),
        "learned_bytes": sum(len(text.encode()) for text in learned),
        "training_seconds": round(seconds, 1),
        "settings": config.to_dict(),
        "usage": {name: dataclasses.asdict(one) for name, one in usage.items()},
    }
    with atomic_folder(output, overwrite=overwrite) as temporary:
        save_tokenizer(temporary, tokenizer)
        write_json(temporary / "report.json", facts)
        title = f"# Tokenizer {config.kind}, {tokenizer.vocabulary_size:,} ids"
        write_text(temporary / "report.md", "\n".join([title, "", *lines, ""]))
        write_manifest(temporary)
    tell("\n".join(["", *lines, "", f"{output}: written."]))
    return tokenizer


def compare(paths, config, *, tell=print):
    """Trains several tokenizers on the same texts and tells them in a table.

    Args:
        paths: list of str: files, folders, globs, "tfds:NAME".
        config: CompareTokenizersConfig.
        tell: function of one str, prints a line.

    Returns:
        dict from a name to the Usage by language.

    Raises:
        InputError: as `train`, or for a folder without a tokenizer.
    """
    kinds = _parts(config.kinds)
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(
                f"kinds={config.kinds}: {kind!r} is none of {', '.join(KINDS)}."
            )
    try:
        sizes = [int(size) for size in _parts(config.vocabulary_sizes)]
    except ValueError:
        raise InputError(
            f"vocabulary_sizes={config.vocabulary_sizes}: must be numbers with "
            f"commas between."
        ) from None
    finished = {
        folder: open_tokenizer(folder) for folder in _parts(config.folders)
    }
    if not (kinds and sizes) and not finished:
        raise InputError("there is nothing to compare: set kinds= or folders=.")
    learned, measured = read_sample(paths, config.sample, tell=tell)
    found = {}
    for kind in kinds:
        # All sizes of a byte tokenizer are one.
        for size in sizes if kind != "byte" else sizes[:1]:
            tokenizer, _ = _train(kind, learned, size, tell)
            name = f"{kind} {tokenizer.vocabulary_size}"
            found[name] = measure_usage(tokenizer, measured)
    for folder, tokenizer in finished.items():
        name = f"{folder} {tokenizer.vocabulary_size}"
        found[name] = measure_usage(tokenizer, measured)
    tell("\n".join(["", *comparison_table(found)]))
    return found


def open_tokenizer(folder):
    """Returns the tokenizer of a folder, ours or one of Hugging Face.

    Raises:
        InputError: if it holds none, or one that cannot be used.
    """
    folder = pathlib.Path(folder)
    path = folder / TOKENIZER_FILE
    if path.is_file() and "kind" in read_json(path):
        return load_tokenizer(folder)
    tokenizer = load_huggingface_tokenizer(folder)
    if tokenizer is None:
        raise InputError(f"{folder}: holds no tokenizer.")
    return tokenizer


def read_sample(paths, config, *, tell=print):
    """Returns (texts to learn from, texts to measure), lists of str.

    Only two texts or fewer are both.

    Args:
        paths: list of str: files, folders, globs, "tfds:NAME".
        config: SampleConfig.
        tell: function of one str, prints a line.

    Raises:
        InputError: if there is no text.
    """
    counts = {"texts": 0, "bytes": 0, "skipped": 0}
    texts = sample_texts(
        _read(paths, config.sources, counts, tell),
        num_bytes=int(config.megabytes * MEGABYTE),
    )
    if not texts:
        raise InputError(f"{', '.join(map(str, paths))}: hold no text.")
    size = sum(len(text.encode()) for text in texts)
    told = f", {counts['skipped']:,} rows skipped" if counts["skipped"] else ""
    tell(
        f"{counts['texts']:,} texts, {counts['bytes'] / MEGABYTE:,.1f} MB"
        f"{told}; {len(texts):,} texts, {size / MEGABYTE:,.1f} MB are used."
    )
    count = round(config.measured_fraction * len(texts))
    if len(texts) > 2 and config.measured_fraction:
        count = max(1, count)
    return (texts[count:], texts[:count]) if count else (texts, texts)


def usage_table(usage):
    """Returns the lines of a Markdown table of a measured tokenizer."""
    lines = [
        "| language | texts | bytes | tokens | bytes/token | tokens a | unit | "
        "unknown |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for language, one in usage.items():
        lines.append(
            f"| {language} | {one.num_texts:,} | {one.num_bytes:,} | "
            f"{one.num_tokens:,} | {one.compression:.2f} | "
            f"{one.fertility:.2f} | {_unit(language)} | {one.num_unknown:,} |"
        )
    return lines


def comparison_table(found):
    """Returns the lines of a Markdown table: a row a tokenizer.

    Args:
        found: dict from a name to the Usage by language.
    """
    languages = list(
        dict.fromkeys(key for usage in found.values() for key in usage)
    )
    heads = [
        head
        for language in languages
        for head in (
            f"{language}: bytes/token",
            f"{language}: tokens/{_unit(language)}",
        )
    ]
    lines = [
        f"| tokenizer | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
    ]
    for name, usage in found.items():
        cells = [
            f"{value:.2f}"
            for language in languages
            for value in (
                usage[language].compression,
                usage[language].fertility,
            )
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _unit(language):
    if language == "all":
        return "unit"
    return "character" if language in UNSPACED else "word"


def _parts(text):
    return [part.strip() for part in text.split(",") if part.strip()]


def _train(kind, texts, vocabulary_size, tell):
    size = sum(len(text.encode()) for text in texts)
    tell(
        f"training {kind}, {vocabulary_size:,} ids, on "
        f"{size / MEGABYTE:,.1f} MB …"
    )
    started = time.perf_counter()
    tokenizer = train_tokenizer(kind, texts, vocabulary_size=vocabulary_size)
    seconds = time.perf_counter() - started
    tell(f"{tokenizer.vocabulary_size:,} ids in {seconds:,.1f} s.")
    return tokenizer, seconds


def _read(paths, config, counts, tell):
    """Yields texts of about a page, and counts them in `counts`."""
    told = time.monotonic()
    for item in stream_documents(paths, config):
        if not isinstance(item, Document):
            counts["skipped"] += 1
            continue
        for text in cut([item.text]):
            if text.strip():
                counts["texts"] += 1
                counts["bytes"] += len(text.encode())
                yield text
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            tell(
                f"read {counts['texts']:,} texts, "
                f"{counts['bytes'] / MEGABYTE:,.1f} MB …"
            )
