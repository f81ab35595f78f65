"""Owns what becomes of a benchmark's answers: table, figures, record.

Not: how they are measured (contest.py).
"""

import contextlib
import dataclasses
import datetime
import os
import pathlib
import platform
import statistics
import subprocess
import sys

from kerasgpt.console import guard, quiet_libraries, settings_table
from kerasgpt.files import write_json, write_text

# TensorFlow greets when it is loaded; where it is missing, only workers need
# a backend.
with quiet_libraries(), contextlib.suppress(ImportError):
    import keras  # noqa: F401


@dataclasses.dataclass(frozen=True)
class Figure:
    """One line of the summary: what is wanted, and what was seen.

    Attributes:
        name: str.
        goal: str, such as "≥ 1.2 ×".
        seen: str, or why it was not measured.
        is_met: bool, or None where nothing can be said.
    """

    name: str
    goal: str
    seen: str
    is_met: bool | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a benchmark found: lines to print, figures, data for the record."""

    lines: list
    figures: list
    data: dict


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median and range of repetitions.

    Example:
        >>> print(Spread.of([0.001, 0.004, 0.002]).show(1e3))
        2.0 [1.0–4.0]
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values):
        return cls(statistics.median(values), min(values), max(values))

    def show(self, scale=1.0, digits=1):
        """Returns "median [low–high]", each times `scale`."""
        median, low, high = (
            f"{scale * value:,.{digits}f}"
            for value in (self.median, self.low, self.high)
        )
        return f"{median} [{low}–{high}]"


def machine_facts():
    """Returns a dict of the machine, the commit and the date."""
    cpu = platform.processor()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _git("rev-parse", "--short", "HEAD")
        + (" and changes" if _git("status", "--porcelain") else ""),
        "cpu": cpu,
        "memory_gb": round(pages / 1e9, 1),
        "python": platform.python_version(),
    }


def _git(*arguments):
    try:
        return subprocess.run(
            ["git", "-C", str(pathlib.Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
        ).stdout.strip()
    except OSError:
        return ""


def machine_line(facts):
    """Returns the machine in one line, to stand under a table."""
    parts = [f"{facts['cpu']}, {facts['threads']} threads"]
    parts += [f"{facts['memory_gb']} GB"]
    if "matmul_gflops" in facts:
        parts += [
            f"in the same run {facts['matmul_gflops']} GFLOP/s in a float32 "
            f"matrix product and {facts['read_gb_per_second']} GB/s read"
        ]
    parts += [f"{name} {number}" for name, number in facts["versions"].items()]
    parts += [f"commit {facts['commit']}", facts["date"]]
    return ", ".join(parts) + "."


def table(header, rows):
    """Returns lines of a table that is Markdown and reads well as it is.

    Args:
        header: list of str.
        rows: list of lists of str; a short row is filled up.

    Example:
        >>> print("\\n".join(table(["who", "ms"], [["we", "1.5"], ["they"]])))
        | who  | ms  |
        |------|-----|
        | we   | 1.5 |
        | they |     |
    """
    rows = [list(row) + [""] * (len(header) - len(row)) for row in rows]
    widths = [
        max(map(len, column)) for column in zip(header, *rows, strict=True)
    ]
    lines = [
        "| " + " | ".join(map(str.ljust, row, widths)) + " |"
        for row in (header, *rows)
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [lines[0], rule, *lines[1:]]


def run_benchmark(ask, config, *, quick, document):
    """Runs a benchmark script: settings, one call, table, record.

    `--help` lists the settings; `--quick` takes fewer and smaller ones, for a
    look.

    Args:
        ask: function of the resolved config, returns an Answer.
        config: ContestConfig with the defaults.
        quick: list of str, key=value, what `--quick` stands for.
        document: str, the script's docstring.
    """
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(document.strip())
        print(f"\n--quick stands for: {' '.join(quick)}")
        print("\nSettings, written key=value:\n")
        print(settings_table(config))
        return

    def start():
        overrides = [text for text in arguments if text != "--quick"]
        if "--quick" in arguments:
            overrides = quick + overrides
        resolved = config.override(overrides)
        answer = ask(resolved)
        print("", *answer.lines, sep="\n")
        if resolved.record:
            write_record(resolved, answer, document)

    sys.exit(guard(start))


def write_record(config, answer, document):
    """Writes `<script>.json` and `.md` into the folder `config.record`."""
    name = pathlib.Path(sys.argv[0]).stem
    folder = pathlib.Path(config.record)
    write_json(
        folder / f"{name}.json",
        {
            # Where it was written, and by which Python, is no setting of it.
            "settings": {
                key: _without_folders(value)
                for key, value in config.to_dict().items()
                if key not in ("record", "peers_python")
            },
            "figures": [dataclasses.asdict(f) for f in answer.figures],
            **answer.data,
        },
    )
    question = document.split("Command")[0].removeprefix("Question")
    lines = [" ".join(question.split()), "", *answer.lines, ""]
    write_text(folder / f"{name}.md", "\n".join(lines))


def _without_folders(value):
    """Returns settings with the files of this machine by their names alone.

    Example:
        >>> _without_folders({"data": {"path": "/home/me/a.txt,b/c.txt"}})
        {'data': {'path': 'a.txt,b/c.txt'}}
    """
    if isinstance(value, dict):
        return {key: _without_folders(one) for key, one in value.items()}
    if isinstance(value, str):
        return ",".join(
            pathlib.PurePath(part).name if part.startswith("/") else part
            for part in value.split(",")
        )
    return value
