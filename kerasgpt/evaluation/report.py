"""Owns the report card of a run. Not: the numbers in it (scoring, stages)."""

import json
import pathlib

from kerasgpt.evaluation.plots import load_pyplot, save_figure
from kerasgpt.evaluation.scoring import exact_match
from kerasgpt.files import write_json, write_text

SHOWN_FAILURES = 20


def write_report(folder, *, answers, metrics, curves, facts):
    """Writes report.md, report.json and plots into a run's folder.

    Args:
        folder: str or Path.
        answers: dict of model name ("base", "chat") to list of Answer.
        metrics: see `metrics_table`.
        curves: dict of model name to the path of its metrics.jsonl.
        facts: dict of further JSON values, shown as a list.

    Returns:
        dict, the content of report.json.
    """
    folder = pathlib.Path(folder)
    scores = {
        name: {
            "all": exact_match(rows, lambda q: "all").get("all", (0.0, 0)),
            "tasks": exact_match(rows, lambda q: f"{q.task}.{q.language}"),
            "wordings": exact_match(rows, lambda q: q.wording),
        }
        for name, rows in answers.items()
    }
    report = {"scores": scores, "metrics": metrics, **facts}
    plots = [_plot_tasks(folder, scores), plot_curves(folder, curves)]
    failures = [
        {
            "task": row.question.task,
            "prompt": [m["content"] for m in row.question.messages],
            "answer": row.question.answer,
            "reply": row.reply,
        }
        for row in list(answers.values())[-1]
        if not row.is_right
    ]
    report["failures"] = failures
    write_text(
        folder / "report.md", _markdown(scores, metrics, facts, plots, failures)
    )
    write_json(folder / "report.json", report)
    return report


def score_table(scores):
    """Returns a Markdown table: a row a task, a column a model."""
    names = list(scores)
    lines = [
        f"| held-out exact match | {' | '.join(names)} | questions |",
        f"|---|{'---|' * (len(names) + 1)}",
    ]
    rows = [("all", "all")] + [
        ("tasks", task) for task in scores[names[-1]]["tasks"]
    ]
    rows += [("wordings", word) for word in scores[names[-1]]["wordings"]]
    for kind, key in rows:
        cells, count = [], 0
        for name in names:
            group = scores[name][kind]
            share, count = group if kind == "all" else group.get(key, (0, 0))
            cells.append(f"{share:.1%}")
        label = f"wording {key}" if kind == "wordings" else key
        lines.append(f"| {label} | {' | '.join(cells)} | {count} |")
    return "\n".join(lines)


def metrics_table(metrics):
    """Returns a Markdown table: a row a model and split, a column a metric.

    Args:
        metrics: dict of label to dict of loss, accuracy, perplexity and
            bits_per_byte.
    """
    keys = ("loss", "accuracy", "perplexity", "bits_per_byte")
    lines = [f"| validation | {' | '.join(keys)} |", f"|---|{'---|' * 4}"]
    for name, values in metrics.items():
        cells = [f"{values[key]:.4g}" if key in values else "–" for key in keys]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _markdown(scores, metrics, facts, plots, failures):
    lines = ["# Report card", "", score_table(scores), ""]
    lines += [metrics_table(metrics)]
    lines += ["", *[f"![{plot}]({plot})" for plot in plots], ""]
    for key, value in facts.items():
        if isinstance(value, list):
            lines += [f"- {key}: {len(value)}"]
            lines += [
                f"  - {json.dumps(row, ensure_ascii=False)}"
                for row in value[:SHOWN_FAILURES]
            ]
        elif not isinstance(value, dict):
            lines.append(f"- {key}: {value}")
    lines += ["", f"## Wrong answers ({len(failures)})", ""]
    for row in failures[:SHOWN_FAILURES]:
        lines.append(
            f"- {row['task']}: {row['prompt'][-1]!r} → {row['reply']!r}, "
            f"right: {row['answer']!r}"
        )
    return "\n".join(lines) + "\n"


def _plot_tasks(folder, scores):
    pyplot = load_pyplot()
    names = list(scores)
    tasks = list(scores[names[-1]]["tasks"])
    figure, axes = pyplot.subplots(figsize=(8, 0.3 * len(tasks) * 1.2 + 1.5))
    height = 0.8 / len(names)
    for index, name in enumerate(names):
        shares = [scores[name]["tasks"].get(t, (0, 0))[0] for t in tasks]
        places = [place + index * height for place in range(len(tasks))]
        axes.barh(places, shares, height=height, label=name)
    axes.set_yticks(
        [place + 0.4 - height / 2 for place in range(len(tasks))], tasks
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("held-out exact match")
    # Above the bars: a full bar would be hidden behind it.
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2)
    return save_figure(figure, folder / "tasks.png")


def plot_curves(folder, curves):
    """Draws curves.png into a folder, losses over steps; returns its name.

    Args:
        folder: pathlib.Path.
        curves: dict of model name to the path of its metrics.jsonl.
    """
    pyplot = load_pyplot()
    figure, all_axes = pyplot.subplots(
        1, len(curves), figsize=(5 * len(curves), 4), squeeze=False
    )
    for axes, (name, path) in zip(all_axes[0], curves.items(), strict=True):
        for split in ("train", "validation"):
            events = [
                event
                for event in map(
                    json.loads,
                    path.read_text().splitlines() if path.is_file() else [],
                )
                if event["split"] == split
            ]
            axes.plot(
                [event["step"] for event in events],
                [event["loss"] for event in events],
                marker="o" if split == "validation" else None,
                label=split,
            )
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats a token")
        axes.set_yscale("log")
        axes.legend()
    return save_figure(figure, folder / "curves.png")
