"""Owns the report on prepared data: HTML and Markdown, with plots.

Not: what is counted (staging.py, preparation.py).
"""

import base64
import html
import io
import pathlib

from kerasgpt.config import InputError
from kerasgpt.data.prepared import (
    read_prepared,
    read_prepared_manifest,
    row_text,
)
from kerasgpt.files import write_json, write_text

FOLDER = "report"
# Tokens a parameter at which a training budget is best spent: Hoffmann et al.
# 2022, "Training compute-optimal large language models", table 3.
TOKENS_PER_PARAMETER = 20
# Repeating data this often costs next to nothing: Muennighoff et al. 2023,
# "Scaling data-constrained language models", section 5.
HARMLESS_EPOCHS = 4
# Rows encoded at once.
ROWS_AT_ONCE = 1000
NUM_EXAMPLES = 3
LEFT_OUT_HINT = "zstdcat left_out.jsonl.zst."
STYLE = """\
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;
padding:0 1rem;color:#222}table{border-collapse:collapse;margin:1rem 0}
td,th{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:left;
vertical-align:top;overflow-wrap:anywhere}img{max-width:100%}"""


def write_data_report(folder, *, tokenizer=None, num_parameters=0):
    """Writes report/report.html, .md and .json into a folder of prepared data.

    Args:
        folder: str or Path.
        tokenizer: Tokenizer, for tokens and compression; all is read then.
        num_parameters: int, of the model, for epochs; 0 = unknown.

    Returns:
        pathlib.Path of the HTML file.

    Raises:
        InputError: if the folder holds no prepared data, or is damaged.
    """
    folder = pathlib.Path(folder)
    manifest = read_prepared_manifest(folder)
    tokens = count_tokens(folder, tokenizer) if tokenizer else None
    if num_parameters and not tokens:
        raise InputError(
            "--parameters needs --tokenizer: epochs are of tokens."
        )
    sections = _sections(manifest, tokens, num_parameters)
    plots = _plots(manifest["statistics"])
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    for name, image in plots.items():
        (target / f"{name}.png").write_bytes(image)
    write_text(target / "report.md", _markdown(sections, plots))
    path = target / "report.html"
    write_text(path, _html(sections, plots))
    write_json(
        target / "report.json",
        {"statistics": manifest["statistics"], "tokens": tokens},
    )
    return path


def count_tokens(folder, tokenizer):
    """Returns tokens, bytes and the tokenizer's fingerprint.

    Args:
        folder: pathlib.Path of prepared data.
        tokenizer: Tokenizer.

    Returns:
        dict: fingerprint, and sources, languages: dict of name to {"tokens",
        "bytes"} of the training split.
    """
    sources, languages, batch = {}, {}, []

    def flush():
        encoded = tokenizer.encode_batch([row_text(row) for row in batch])
        for row, ids in zip(batch, encoded, strict=True):
            size = len(row_text(row).encode())
            for group, name in (
                (sources, row["source"]),
                (languages, row["language"]),
            ):
                entry = group.setdefault(name, {"tokens": 0, "bytes": 0})
                entry["tokens"] += len(ids)
                entry["bytes"] += size
        batch.clear()

    for _, row in read_prepared(folder, splits=("train",)):
        batch.append(row)
        if len(batch) == ROWS_AT_ONCE:
            flush()
    if batch:
        flush()
    return {
        "fingerprint": tokenizer.fingerprint(),
        "sources": sources,
        "languages": languages,
    }


def estimate_epochs(num_tokens, num_parameters):
    """Returns how often the data are read by a compute-optimal run.

    Example:
        >>> estimate_epochs(1_000_000_000, 100_000_000)
        2.0
    """
    return TOKENS_PER_PARAMETER * num_parameters / max(1, num_tokens)


def _sections(manifest, tokens, num_parameters):
    """Returns a list of (title, lines of text, header, rows)."""
    statistics = manifest["statistics"]
    read, kept = statistics["read"], statistics["kept"]
    dropped = sum(entry["count"] for entry in statistics["dropped"].values())
    skipped = sum(entry["count"] for entry in statistics["skipped"].values())
    sections = [
        (
            "What came in, what stays",
            [
                f"{len(manifest['inputs'])} inputs. Copies that the mixture "
                f"asks for count as documents."
            ],
            ["", "documents", "MB"],
            [
                ["read", _number(read, "documents"), _megabytes(read)],
                ["unreadable", f"{skipped:,}", ""],
                ["dropped, by rules or as copies", f"{dropped:,}", ""],
                ["cleaned", _number(kept, "documents"), _megabytes(kept)],
                *(
                    [
                        f"written: {kind}, {split}",
                        _number(entry, "documents"),
                        _megabytes(entry),
                    ]
                    for split, kinds in statistics["splits"].items()
                    for kind, entry in kinds.items()
                ),
            ],
        ),
        (
            "Sources",
            [],
            ["input", "split", "documents", "MB"],
            [
                [source, split, _number(entry, "documents"), _megabytes(entry)]
                for source, splits in statistics["sources"].items()
                for split, entry in splits.items()
            ],
        ),
        (
            "Edits",
            ["Each with the documents it touched and the places it changed."],
            ["edit", "documents", "places"],
            [
                [edit, f"{entry['documents']:,}", f"{entry['places']:,}"]
                for edit, entry in _largest(statistics["edits"], "documents")
            ],
        ),
    ]
    for name, title in (
        ("dropped", "Dropped by rules"),
        ("skipped", "Unreadable"),
    ):
        sections.append(
            (
                title,
                [f"All of them, with their texts: {LEFT_OUT_HINT}"],
                ["rule", "count", "examples"],
                [
                    [
                        rule,
                        f"{entry['count']:,}",
                        " · ".join(
                            f"{example['location']}: "
                            f"{_one_line(example['text'])}"
                            for example in entry["examples"][:NUM_EXAMPLES]
                        ),
                    ]
                    for rule, entry in _largest(statistics[name], "count")
                ],
            )
        )
    clusters = statistics["clusters"]
    sections += [
        (
            "Clusters of duplicates",
            [
                ", ".join(
                    f"{count:,} of {size}"
                    for size, count in clusters["sizes"].items()
                )
                or "None."
            ],
            ["documents", "kept", "text"],
            [
                [str(c["size"]), c["location"], _one_line(c["text"])]
                for c in clusters["largest"]
            ],
        ),
        (
            "Overlap with evaluation",
            [
                f"{len(statistics['contamination'])} items of evaluation share "
                f"runs of words with documents."
            ],
            ["item", "its runs found", "documents", "some of them"],
            [
                [
                    f"{row['item']}: {_one_line(row['text'])}",
                    f"{row['share']:.0%}",
                    str(row["num_documents"]),
                    ", ".join(row["documents"]),
                ]
                for row in statistics["contamination"]
            ],
        ),
    ]
    if tokens:
        sections.append(_tokens_section(tokens, num_parameters))
    sections.append(
        (
            "Settings",
            [],
            ["setting", "value"],
            [[key, str(value)] for key, value in manifest["settings"].items()],
        )
    )
    return sections


def _tokens_section(tokens, num_parameters):
    total = sum(entry["tokens"] for entry in tokens["sources"].values())
    lines = [
        f"{total:,} tokens in the training split, by tokenizer "
        f"{tokens['fingerprint']}."
    ]
    if num_parameters:
        epochs = estimate_epochs(total, num_parameters)
        lines.append(
            f"A model of {num_parameters:,} parameters is best trained on "
            f"{TOKENS_PER_PARAMETER * num_parameters:,} tokens: {epochs:,.1f} "
            f"epochs"
            + (
                f"; more than {HARMLESS_EPOCHS} teach ever less."
                if epochs > HARMLESS_EPOCHS
                else "."
            )
        )
    return (
        "Tokens",
        lines,
        ["", "tokens", "bytes a token"],
        [
            [
                name,
                f"{entry['tokens']:,}",
                f"{entry['bytes'] / max(1, entry['tokens']):.2f}",
            ]
            for group in ("sources", "languages")
            for name, entry in tokens[group].items()
        ],
    )


def _plots(statistics):
    """Returns dict of name to PNG."""
    import matplotlib.figure

    def draw(title, height=3.5):
        figure = matplotlib.figure.Figure(
            figsize=(8, height), layout="constrained"
        )
        axes = figure.subplots()
        axes.set_title(title)
        return figure, axes

    plots = {}
    for name, title, counts in (
        ("dropped", "documents dropped by each rule", _counts(statistics)),
        ("languages", "documents by language", statistics["written_languages"]),
    ):
        if counts:
            ordered = sorted(counts.items(), key=lambda item: item[1])
            figure, axes = draw(title, 1.2 + 0.3 * len(ordered))
            bars = axes.barh(*zip(*ordered, strict=True))
            axes.bar_label(bars, fmt="{:,.0f}", padding=3)
            plots[name] = _png(figure)
    figure, axes = draw("length of documents")
    for language, lengths in sorted(statistics["lengths"].items()):
        bits = range(min(map(int, lengths)), max(map(int, lengths)) + 1)
        axes.plot(
            [2 ** max(0, bit - 1) for bit in bits],
            [lengths.get(str(bit), 0) for bit in bits],
            marker="o",
            label=language,
        )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("characters, from")
    axes.set_ylabel("documents")
    if statistics["lengths"]:
        axes.legend()
    plots["lengths"] = _png(figure)
    sizes = statistics["clusters"]["sizes"]
    if sizes:
        figure, axes = draw("clusters of duplicates")
        axes.scatter([*map(int, sizes)], [*sizes.values()])
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("documents in a cluster")
        axes.set_ylabel("clusters")
        plots["clusters"] = _png(figure)
    return plots


def _counts(statistics):
    return {
        rule: entry["count"] for rule, entry in statistics["dropped"].items()
    }


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _markdown(sections, plots):
    lines = ["# Prepared data", ""]
    lines += [f"![{name}]({name}.png)\n" for name in plots]
    for title, texts, header, rows in sections:
        lines += [f"## {title}", "", *texts, ""]
        if rows:
            cells = [header, ["---"] * len(header), *rows]
            lines += [
                "| " + " | ".join(map(_cell, row)) + " |" for row in cells
            ]
            lines.append("")
    return "\n".join(lines)


def _cell(text):
    # A text of the data is shown, not read as Markdown or HTML.
    return (
        html.escape(text, quote=False).replace("|", "\\|").replace("`", "\\`")
    )


def _html(sections, plots):
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>Prepared data</title><style>{STYLE}</style>",
        "<h1>Prepared data</h1>",
    ]
    for name, image in plots.items():
        data = base64.b64encode(image).decode()
        parts.append(
            f'<p><img alt="{name}" src="data:image/png;base64,{data}">'
        )
    for title, texts, header, rows in sections:
        parts.append(f"<h2>{html.escape(title)}</h2>")
        parts += [f"<p>{html.escape(text)}" for text in texts]
        if rows:
            parts.append("<table>" + _row("th", header))
            parts += [_row("td", row) for row in rows]
            parts.append("</table>")
    return "\n".join(parts) + "\n</html>\n"


def _row(tag, cells):
    inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
    return f"<tr>{inner}</tr>"


def _largest(entries, key):
    return sorted(entries.items(), key=lambda item: -item[1][key])


def _one_line(text):
    return " ".join(text.split())[:100]


def _number(entry, key):
    return f"{entry.get(key, 0):,}"


def _megabytes(entry):
    return f"{entry.get('bytes', 0) / 1e6:,.1f}"
