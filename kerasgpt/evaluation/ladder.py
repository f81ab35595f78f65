"""Owns the table and plot of models compared on one text. Not: scoring them."""

import dataclasses
import itertools
import math
import pathlib

from kerasgpt.evaluation.plots import load_pyplot, save_figure
from kerasgpt.files import write_json, write_text

COLUMNS = (
    ("parameters", "num_parameters"),
    ("training FLOPs", "flops"),
    ("seconds", "seconds"),
)


@dataclasses.dataclass(frozen=True)
class Rung:
    """One model, and what it cost.

    Attributes:
        name: str.
        bits_per_byte: float, of the held-out text; may be infinite.
        loss: float, nats a token.
        num_parameters: int. Weights, or counts that are kept.
        flops: float. Of all of its training.
        seconds: float. From an empty model to a trained one.
        sample: str. What it writes.
        is_step: bool. It should beat the step before it; else it stands
            beside the ladder.
    """

    name: str
    bits_per_byte: float
    loss: float
    num_parameters: int
    flops: float
    seconds: float
    sample: str = ""
    is_step: bool = True


def write_ladder(folder, rungs, *, title, references=()):
    """Writes ladder.md, ladder.json and ladder.png into a run's folder.

    Args:
        folder: str or Path.
        rungs: list of Rung, from the lowest.
        title: str. What was learned from.
        references: list of (name, bits a byte, source): published figures.

    Returns:
        str, the table.
    """
    folder = pathlib.Path(folder)
    table = ladder_table(rungs, references)
    _plot(folder / "ladder.png", rungs, references)
    samples = [f"### {r.name}\n\n```\n{r.sample}\n```\n" for r in rungs]
    write_text(
        folder / "ladder.md",
        f"# {title}\n\n{table}\n\n![ladder](ladder.png)\n\n"
        + "\n".join(samples),
    )
    write_json(
        folder / "ladder.json",
        {
            "title": title,
            "rungs": [
                {
                    name: value if value != math.inf else None
                    for name, value in dataclasses.asdict(rung).items()
                }
                for rung in rungs
            ],
            "references": [list(reference) for reference in references],
        },
    )
    return table


def ladder_table(rungs, references=()):
    """Returns a Markdown table: a row a model, published figures last.

    Example:
        >>> print(ladder_table([Rung("uniform", 8.0, 5.545, 0, 0.0, 0.0)]))
        | model | bits a byte | nats a token | parameters | FLOPs | seconds |
        |---|---|---|---|---|---|
        | uniform | 8.000 | 5.545 | 0 | 0 | 0.0 |
    """
    lines = [
        "| model | bits a byte | nats a token | parameters | FLOPs | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for rung in rungs:
        name = rung.name if rung.is_step else f"({rung.name})"
        lines.append(
            f"| {name} | {_number(rung.bits_per_byte)} | {_number(rung.loss)} "
            f"| {rung.num_parameters:,} | {_flops(rung.flops)} | "
            f"{rung.seconds:.1f} |"
        )
    for name, bits, source in references:
        lines.append(f"| *{name}* | {bits:.3f} | | | | {source} |")
    return "\n".join(lines)


def steps_that_do_not_rise(rungs):
    """Returns the names of steps no better than the one before them."""
    steps = [rung for rung in rungs if rung.is_step]
    return [
        rung.name
        for before, rung in itertools.pairwise(steps)
        if not rung.bits_per_byte < before.bits_per_byte
    ]


def _number(value):
    return f"{value:.3f}" if math.isfinite(value) else "∞"


def _flops(value):
    return f"{value:.1e}" if value else "0"


def _plot(path, rungs, references):
    pyplot = load_pyplot()
    figure, all_axes = pyplot.subplots(
        1, len(COLUMNS), figsize=(5 * len(COLUMNS), 4), sharey=True
    )
    finite = [rung for rung in rungs if math.isfinite(rung.bits_per_byte)]
    for axes, (label, attribute) in zip(all_axes, COLUMNS, strict=True):
        for rung in finite:
            # A logarithm has no place for what costs nothing.
            place = max(getattr(rung, attribute), 0.1)
            axes.scatter([place], [rung.bits_per_byte])
            axes.annotate(
                rung.name,
                (place, rung.bits_per_byte),
                textcoords="offset points",
                xytext=(4, 4),
                fontsize=7,
            )
        for name, bits, _ in references:
            axes.axhline(bits, linestyle=":", linewidth=1, label=name)
        axes.set_xscale("log")
        axes.set_xlabel(label)
    all_axes[0].set_ylabel("held-out bits a byte")
    if references:
        all_axes[-1].legend(fontsize=7)
    save_figure(figure, path)
