"""Owns how figures are drawn and saved. Not: what they show (report.py, …)."""


def load_pyplot():
    """Returns matplotlib.pyplot, which draws without a screen."""
    # Slow to import, and needed when a run ends only; Agg needs no screen.
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def save_figure(figure, path):
    """Writes a figure as PNG, forgets it, and returns the file's name.

    Args:
        figure: matplotlib Figure.
        path: pathlib.Path.
    """
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    load_pyplot().close(figure)
    return path.name
