"""Question  How fast and how well are near-duplicates found, beside datasketch?
Command   python experiments/benchmarks/deduplication.py

The same texts, permutations and threshold; every third text is a copy with
edits, of which half lie on either side of the threshold. What is found is
compared with the true Jaccard similarity of each planted pair.
"""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments.benchmarks.contest import (
    Contest,
    ContestConfig,
    ours,
    peer,
)
from experiments.benchmarks.report import (
    Answer,
    Figure,
    machine_line,
    run_benchmark,
    table,
)
from experiments.benchmarks.workers.deduplication_task import build_texts
from kerasgpt.config import setting

OURS, DATASKETCH, RENSA = "kerasgpt", "datasketch", "rensa"
LANGUAGES = ("en", "zh")
SPEED_GOAL, F1_GOAL = 10.0, 0.95
HEADER = [
    *("language", "contestant", "documents/s", "precision", "recall", "F1"),
    *("F1 outside the margin", "joined wrongly"),
]
# Of pairs so near the threshold a sketch of 128 values is right by chance:
# its estimate has a standard deviation of sqrt(J (1 - J) / 128) = 0.035.
MARGIN = 0.07


@dataclasses.dataclass(frozen=True)
class DeduplicationConfig(ContestConfig):
    """Near-duplicates, us and the peers."""

    repeats: int = setting(3, "rounds", minimum=1)
    threads: int = setting(1, "of every contestant", minimum=1)
    num_texts: int = setting(6000, "of 50 to 800 words", minimum=30)
    threshold: float = setting(0.8, "Jaccard similarity")
    num_permutations: int = setting(128, "values of a sketch", minimum=16)


CONFIG = DeduplicationConfig()
QUICK = ["repeats=1", "num_texts=900"]


def build_task(config, language):
    return {
        "language": language,
        "num_texts": config.num_texts,
        "threshold": config.threshold,
        "num_permutations": config.num_permutations,
        # Of rensa, whose bands are of one size; candidates are checked.
        "num_bands": config.num_permutations // 4,
        "shingle_length": 5,
        "seed": 0,
    }


def contestants(config, task):
    return [
        ours(OURS, "deduplication_worker.py", task),
        *(
            peer(
                name,
                "deduplication_peer_worker.py",
                {**task, "library": name},
                config,
            )
            for name in (DATASKETCH, RENSA)
        ),
    ]


def quality(firsts, pairs, threshold, margin=0.0):
    """Returns (precision, recall, F1) on the planted pairs.

    Args:
        firsts: list of int, of each text the first of its cluster.
        pairs: list of (original, copy, true similarity).
        threshold: float.
        margin: float. Pairs so near the threshold do not count.
    """
    pairs = [pair for pair in pairs if abs(pair[2] - threshold) >= margin]
    found = {(a, b) for a, b, _ in pairs if firsts[a] == firsts[b]}
    true = {(a, b) for a, b, jaccard in pairs if jaccard >= threshold}
    hits = len(found & true)
    precision, recall = hits / max(1, len(found)), hits / max(1, len(true))
    return precision, recall, 2 * hits / max(1, len(found) + len(true))


def joined_wrongly(firsts, pairs):
    """Returns how many texts that are no copy were taken for one."""
    copies = {copy for _, copy, _ in pairs}
    return sum(
        first != number
        for number, first in enumerate(firsts)
        if number not in copies
    )


def row(config, language, outcome, pairs):
    if outcome.missing:
        return [language, outcome.name, f"not measured: {outcome.missing}"]
    firsts = outcome.answers[0]["firsts"]
    speeds = sorted(config.num_texts / s for s in outcome.seconds)
    middle = speeds[len(speeds) // 2]
    return [
        language,
        outcome.name,
        f"{middle:,.0f} [{speeds[0]:,.0f}–{speeds[-1]:,.0f}]",
        *(f"{x:.3f}" for x in quality(firsts, pairs, config.threshold)),
        f"{quality(firsts, pairs, config.threshold, MARGIN)[2]:.3f}",
        str(joined_wrongly(firsts, pairs)),
    ]


def figures_of(config, language, contest, pairs):
    mine = contest.measured(OURS)
    if not mine:
        return []
    firsts = mine.answers[0]["firsts"]
    precision, recall, f1 = quality(firsts, pairs, config.threshold)
    figures = [
        Figure(
            f"planted near-duplicates, {language}: F1",
            f"≥ {F1_GOAL}",
            f"{f1:.3f} (precision {precision:.3f}, recall {recall:.3f})",
            f1 >= F1_GOAL,
        )
    ]
    theirs = contest.measured(DATASKETCH)
    if theirs:
        speed = mine.speed_against(theirs)
        figures.append(
            Figure(
                f"near-duplicates, {language}: documents a second over "
                f"datasketch's",
                f"≥ {SPEED_GOAL:g} ×",
                f"{speed.show()} ×",
                speed.median >= SPEED_GOAL,
            )
        )
    return figures


def ask(config):
    rows, figures, data, lines = [], [], {}, []
    for language in LANGUAGES:
        task = build_task(config, language)
        _, pairs = build_texts(task)
        print(f"\n{language}: ", end="")
        with Contest(
            contestants(config, task), config, with_yardsticks=False
        ) as contest:
            contest.play({"run": 1})
        rows += [
            row(config, language, outcome, pairs)
            for outcome in contest.outcomes
        ]
        figures += figures_of(config, language, contest, pairs)
        data[language] = contest.record
        for outcome in data[language]["outcomes"]:
            for answer in outcome["answers"]:
                del answer["firsts"]
        facts = contest.facts
    lines = [*table(HEADER, rows), ""]
    lines += [f"{figure.name}: {figure.seen}" for figure in figures]
    return Answer([*lines, "", machine_line(facts)], figures, data)


if __name__ == "__main__":
    run_benchmark(ask, CONFIG, quick=QUICK, document=__doc__)
