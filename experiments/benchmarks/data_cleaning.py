"""Question  How fast are documents cleaned, in English and in Chinese?
Command   python experiments/benchmarks/data_cleaning.py \\
              en=c4_demo.jsonl zh=alpaca_zh_demo.json

Every edit and rule of `kerasgpt.data.cleaning` and an exact hash of the
result, on `threads` processes; each step alone, in one; then `kerasgpt data
prepare` from file to shards, of documents made of random lines of the same
texts, with the memory it takes at two sizes.
"""

import dataclasses
import functools
import hashlib
import multiprocessing
import pathlib
import shutil
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments.benchmarks.contest import (
    Contest,
    ContestConfig,
    ours,
)
from experiments.benchmarks.report import (
    Answer,
    Figure,
    Spread,
    machine_facts,
    run_benchmark,
    table,
)
from kerasgpt.config import InputError, setting
from kerasgpt.data import languages, privacy, quality, shop
from kerasgpt.data.cleaning import TEXT_EDITS, CleaningConfig, clean
from kerasgpt.data.sources import Document, stream_documents
from kerasgpt.files import write_text

GOAL = 5.0
# What a document costs, 16 bytes and a place in some arrays, is no text.
FLAT_MB = 150
CLEANING = CleaningConfig()
# Characters of a page; the shop's documents are a sentence each.
PAGE_CHARACTERS = {"en": 2500, "zh": 900}


@dataclasses.dataclass(frozen=True)
class CleaningBenchmarkConfig(ContestConfig):
    """The cleaning of documents in two languages."""

    en: str = setting("", "English files or folder; empty = the shop's texts")
    zh: str = setting("", "Chinese files or folder; empty = the shop's texts")
    megabytes: float = setting(
        4.0,
        "of text a round and language, repeated if there is less",
        unit="MB",
    )
    sizes: str = setting(
        "100,1000", "MB that are prepared, for the memory; empty = none"
    )


CONFIG = CleaningBenchmarkConfig()
QUICK = ["repeats=2", "megabytes=0.5", "sizes=2,8"]


def texts(language, path, megabytes):
    """Returns documents of about so many megabytes, a list of str."""
    if path:
        found = [
            item.text
            for item in stream_documents([path])
            if isinstance(item, Document)
        ]
    else:
        world = shop.build_world(0, 100)
        found = _pages(
            (
                text
                for text in shop.generate_documents(world, count=20_000)
                if languages.identify(text) == language
            ),
            PAGE_CHARACTERS[language],
        )
    if not found:
        raise InputError(f"{language}={path}: holds no document.")
    size, chosen = 0, []
    while size < megabytes * 1e6:
        for text in found:
            chosen.append(text)
            size += len(text.encode())
    return chosen


def _pages(sentences, characters):
    pages, page = [], ""
    for sentence in sentences:
        page += sentence + "\n"
        if len(page) > characters:
            pages.append(page)
            page = ""
    return pages


def clean_and_hash(documents):
    """Returns the number of documents kept of those seen first."""
    seen = set()
    for text in documents:
        cleaned = clean(text, CLEANING)
        if not cleaned.dropped_by:
            seen.add(hashlib.blake2b(cleaned.text.encode()).digest())
    return len(seen)


def megabytes_per_second(function, documents, repeats):
    """Returns the Spread of MB/s of a function of one document."""
    size = sum(len(text.encode()) for text in documents) / 1e6
    speeds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for text in documents:
            function(text)
        speeds.append(size / (time.perf_counter() - start))
    return Spread.of(speeds)


def steps(language):
    """Returns the steps of cleaning a document, a dict of functions."""
    return {
        "languages.identify": languages.identify,
        **TEXT_EDITS,
        **privacy.MASKS,
        "privacy.mask, all": functools.partial(
            privacy.mask, config=CLEANING.privacy
        ),
        "quality.judge": functools.partial(
            quality.judge, language=language, config=CLEANING.quality
        ),
        "clean": functools.partial(clean, config=CLEANING),
    }


def prepared(config, documents):
    """Returns (lines, figures, data) of whole runs, file to shards."""
    sizes = [float(size) for size in config.sizes.split(",") if size]
    answers = {}
    with tempfile.TemporaryDirectory() as folder:
        lines = pathlib.Path(folder) / "lines.txt"
        texts = [text for found in documents.values() for text in found]
        kept = {line for text in texts for line in text.split("\n")}
        write_text(lines, "\n".join(sorted(filter(str.strip, kept))))
        for near in (False, True):
            # What a signature costs is the same at any size.
            for size in sizes[:1] if near else sizes:
                task = {
                    "megabytes": size,
                    "threads": config.threads,
                    "near": near,
                    "lines": str(lines),
                    "folder": tempfile.mkdtemp(dir=folder),
                }
                name = f"{size:g} MB, {'near' if near else 'exact'} copies"
                contestant = ours(name, "preparation_worker.py", task)
                with Contest(
                    [contestant],
                    dataclasses.replace(config, contestants=""),
                    with_yardsticks=False,
                ) as contest:
                    contest.play({"run": 1}, rounds=1)
                outcome = contest[name]
                if outcome.missing:
                    raise InputError(f"{name}: {outcome.missing}")
                answers[name] = outcome.answers[0]
                shutil.rmtree(task["folder"])
    rows = [
        [
            name,
            f"{answer['num_documents']:,}",
            f"{answer['megabytes'] / answer['seconds'][0]:.1f}",
            f"{answer['parent_bytes'] / 1e6:,.0f}",
            f"{answer['child_bytes'] / 1e6:,.0f}",
        ]
        for name, answer in answers.items()
    ]
    figures = []
    exact = [answer for name, answer in answers.items() if "exact" in name]
    if len(exact) > 1:
        speed = exact[-1]["megabytes"] / exact[-1]["seconds"][0]
        growth = exact[-1]["parent_bytes"] - exact[0]["parent_bytes"]
        figures = [
            Figure(
                f"file to shards, exact copies dropped, {sizes[-1]:g} MB",
                f"≥ {GOAL:g} MB/s",
                f"{speed:.1f} MB/s",
                speed >= GOAL,
            ),
            Figure(
                f"memory that {sizes[-1]:g} MB take beyond {sizes[0]:g} MB",
                f"≤ {FLAT_MB:g} MB",
                f"{growth / 1e6:.0f} MB",
                growth <= FLAT_MB * 1e6,
            ),
        ]
    header = ["prepared", "documents", "MB/s", "parent MB", "child MB"]
    return table(header, rows) if rows else [], figures, answers


def ask(config):
    documents = {
        language: texts(language, getattr(config, language), config.megabytes)
        for language in ("en", "zh")
    }
    speeds = {language: [] for language in documents}
    with multiprocessing.get_context("fork").Pool(config.threads) as pool:
        pool.map(clean_and_hash, [found[:9] for found in documents.values()])
        for _ in range(config.repeats):
            for language, found in documents.items():
                size = sum(len(text.encode()) for text in found) / 1e6
                parts = [
                    found[start :: config.threads]
                    for start in range(config.threads)
                ]
                start = time.perf_counter()
                pool.map(clean_and_hash, parts)
                speeds[language].append(size / (time.perf_counter() - start))
    whole = {key: Spread.of(values) for key, values in speeds.items()}
    figures = [
        Figure(
            f"cleaned and hashed on {config.threads} processes, {language}",
            f"≥ {GOAL:g} MB/s",
            f"{spread.show()} MB/s",
            spread.median >= GOAL,
        )
        for language, spread in whole.items()
    ]
    alone = {
        name: {
            language: megabytes_per_second(
                steps(language)[name], found, min(3, config.repeats)
            )
            for language, found in documents.items()
        }
        for name in steps("en")
    }
    rows = [
        [name, *(spread.show() for spread in spreads.values())]
        for name, spreads in alone.items()
    ]
    lines = table(["one process, MB/s", "en", "zh"], rows)
    more_lines, more_figures, answers = prepared(config, documents)
    lines += ["", *more_lines]
    figures += more_figures
    lines += ["", *(f"{figure.name}: {figure.seen}" for figure in figures)]
    facts = machine_facts()
    lines += ["", f"{facts['cpu']}, commit {facts['commit']}, {facts['date']}."]
    data = {
        "machine": facts,
        "megabytes_per_second": speeds,
        "prepared": answers,
        "steps": {
            name: {key: dataclasses.asdict(value) for key, value in row.items()}
            for name, row in alone.items()
        },
    }
    return Answer(lines, figures, data)


if __name__ == "__main__":
    run_benchmark(ask, CONFIG, quick=QUICK, document=__doc__)
