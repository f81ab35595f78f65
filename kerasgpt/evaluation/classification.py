"""Owns how good a text classifier is. Not: its training, or baselines."""

import pathlib

import numpy as np

from kerasgpt.data.labelled import text_rows
from kerasgpt.evaluation.plots import load_pyplot, save_figure
from kerasgpt.evaluation.report import metrics_table, plot_curves
from kerasgpt.files import write_json, write_text

BATCH_ROWS = 32
# More classes make no readable plot or table of confusions.
MOST_SHOWN_LABELS = 30
SHOWN_FAILURES = 20


def class_probabilities(model, tokenizer, texts):
    """Returns the probability of each class for each text.

    Args:
        model: TextClassifier.
        tokenizer: Tokenizer.
        texts: list of str. Longer ones lose their end, as in training.

    Returns:
        float32 (texts, classes).
    """
    rows, _ = text_rows(texts, tokenizer, model.config.context_length)
    found = np.zeros((len(rows), len(model.config.labels)), np.float32)
    # Neighbours in length share a batch: little padding.
    order = np.argsort([len(row) for row in rows], kind="stable")
    for start in range(0, len(rows), BATCH_ROWS):
        chosen = order[start : start + BATCH_ROWS]
        # A power of two: few shapes to compile.
        length = 1 << (max(len(rows[i]) for i in chosen) - 1).bit_length()
        token_ids = np.zeros((BATCH_ROWS, length), np.int32)
        lengths = np.ones(BATCH_ROWS, np.int32)
        for place, index in enumerate(chosen):
            token_ids[place, : len(rows[index])] = rows[index]
            lengths[place] = len(rows[index])
        # No mask is needed: what pads stands after what is read.
        logits = model.predict_on_batch({"token_ids": token_ids})
        last = logits[np.arange(BATCH_ROWS), lengths - 1][: len(chosen)]
        exponentials = np.exp(last - last.max(1, keepdims=True))
        found[chosen] = exponentials / exponentials.sum(1, keepdims=True)
    return found


def confusion_matrix(truth, predicted, labels):
    """Returns int (labels, labels): how often a class was taken for another.

    Rows are true classes, columns predicted ones.

    Args:
        truth, predicted: lists of str, each one of the labels.
        labels: list of str.

    Example:
        >>> confusion_matrix(["a", "a", "b"], ["a", "b", "b"], ["a", "b"])
        array([[1, 1],
               [0, 1]])
    """
    numbers = {label: number for number, label in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels)), int)
    for one, other in zip(truth, predicted, strict=True):
        matrix[numbers[one], numbers[other]] += 1
    return matrix


def classification_scores(truth, predicted, labels):
    """Returns accuracy, macro-F1, and precision, recall and F1 of each class.

    Macro-F1 is the mean of the classes' F1; a class that is neither there nor
    predicted counts for nothing.

    Args:
        truth, predicted, labels: see `confusion_matrix`.

    Returns:
        dict: "accuracy", "macro_f1", "count", and "classes", a dict of label
        to dict of "precision", "recall", "f1", "count".

    Example:
        F1 of a is 2/3 (precision 1, recall 1/2), of b 2/3 as well:

        >>> scores = classification_scores("aab", "abb", "ab")
        >>> round(scores["accuracy"], 4), round(scores["macro_f1"], 4)
        (0.6667, 0.6667)

    Reference: Sokolova and Lapalme 2009, section 3.
    """
    matrix = confusion_matrix(truth, predicted, labels)
    classes = {}
    for number, label in enumerate(labels):
        right = matrix[number, number]
        real, told = matrix[number].sum(), matrix[:, number].sum()
        if real or told:
            classes[label] = {
                "precision": float(right / told) if told else 0.0,
                "recall": float(right / real) if real else 0.0,
                "f1": float(2 * right / (real + told)),
                "count": int(real),
            }
    return {
        "accuracy": float(np.trace(matrix) / max(1, matrix.sum())),
        "macro_f1": float(np.mean([row["f1"] for row in classes.values()])),
        "count": int(matrix.sum()),
        "classes": classes,
    }


def classification_table(scores):
    """Returns a Markdown table: a row a model, accuracy and macro-F1.

    Args:
        scores: dict of model name to dict of group ("all", "en", …) to what
            `classification_scores` returns.
    """
    groups = list(next(iter(scores.values())))
    names = [f"{group} {kind}" for group in groups for kind in ("acc.", "F1")]
    lines = [
        f"| held out | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for name, by_group in scores.items():
        cells = [
            f"{by_group[group][key]:.1%}"
            for group in groups
            for key in ("accuracy", "macro_f1")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_classification_report(
    folder, *, texts, predictions, labels, metrics, curves, facts
):
    """Writes report.md, report.json and plots into a run's folder.

    Args:
        folder: str or Path.
        texts: list of LabelledText, held out.
        predictions: dict of model name to list of str, a label a text; the
            last is the model of the run.
        labels: tuple of str, the classes of training.
        metrics: see `report.metrics_table`.
        curves: dict of name to the path of a metrics.jsonl.
        facts: dict of further JSON values.

    Returns:
        dict, the content of report.json.
    """
    folder = pathlib.Path(folder)
    # A held-out class that training never saw is one that is never right.
    labels = [*labels, *sorted({row.label for row in texts} - {*labels})]
    languages = sorted({row.language for row in texts})
    groups = ["all", *(languages if len(languages) > 1 else [])]
    scores = {
        name: {
            group: _scores_of(texts, predicted, labels, group)
            for group in groups
        }
        for name, predicted in predictions.items()
    }
    name, predicted = list(predictions.items())[-1]
    truth = [row.label for row in texts]
    matrix = confusion_matrix(truth, predicted, labels)
    plots = [plot_curves(folder, curves)]
    if len(labels) <= MOST_SHOWN_LABELS:
        plots.insert(0, _plot_confusion(folder, matrix, labels))
    failures = [
        {"text": row.text, "label": row.label, "predicted": other}
        for row, other in zip(texts, predicted, strict=True)
        if row.label != other
    ]
    report = {
        "scores": scores,
        "labels": labels,
        "confusion": matrix.tolist(),
        "metrics": metrics,
        **facts,
        "failures": failures,
    }
    lines = ["# Classification report", "", classification_table(scores), ""]
    lines += [
        f"| {name} | precision | recall | F1 | texts |",
        "|---|---|---|---|---|",
    ]
    for label, row in scores[name]["all"]["classes"].items():
        lines.append(
            f"| {label} | {row['precision']:.1%} | {row['recall']:.1%} | "
            f"{row['f1']:.1%} | {row['count']} |"
        )
    lines += ["", metrics_table(metrics), ""]
    lines += [f"![{plot}]({plot})" for plot in plots]
    lines += [""] + [
        f"- {key}: {value}"
        for key, value in facts.items()
        if not isinstance(value, dict)
    ]
    lines += ["", f"## Wrong ({len(failures)} of {len(texts)})", ""]
    lines += [
        f"- {row['text'][:200]!r} → {row['predicted']}, right: {row['label']}"
        for row in failures[:SHOWN_FAILURES]
    ]
    write_text(folder / "report.md", "\n".join(lines) + "\n")
    write_json(folder / "report.json", report)
    return report


def _scores_of(texts, predicted, labels, group):
    pairs = [
        (row.label, other)
        for row, other in zip(texts, predicted, strict=True)
        if group in ("all", row.language)
    ]
    truth, others = zip(*pairs, strict=True)
    return classification_scores(truth, others, labels)


def _plot_confusion(folder, matrix, labels):
    pyplot = load_pyplot()
    size = 2.5 + 0.45 * len(labels)
    figure, axes = pyplot.subplots(figsize=(size + 1, size))
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(matrix.shape):
        axes.text(
            column,
            row,
            matrix[row, column],
            ha="center",
            va="center",
            color="white" if shares[row, column] > 0.5 else "black",
        )
    places = range(len(labels))
    axes.set_xticks(places, labels, rotation=45, ha="right")
    axes.set_yticks(places, labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return save_figure(figure, folder / "confusion.png")
