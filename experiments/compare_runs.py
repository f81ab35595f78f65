"""Question  How much of a result is chance?
Command   python experiments/compare_runs.py RUN_DIR [RUN_DIR ...]
Prints    held-out exact match of finished run_sft.py runs, mean ± standard
          deviation over the runs, for each task and language.
"""

import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from kerasgpt.config import InputError
from kerasgpt.console import guard
from kerasgpt.files import read_json

# Tasks whose answer is a fact that no training chat asked for.
RECALL_TASKS = ("fact", "follow_up")


def shares(report, model):
    """Returns {row label: share of right answers} of one run."""
    scores = report["scores"][model]
    tasks = scores["tasks"]
    recalled = [
        value for task, value in tasks.items() if _name(task) in RECALL_TASKS
    ]
    rows = {"all": scores["all"][0]}
    if recalled:
        right = sum(share * count for share, count in recalled)
        rows["facts never asked about"] = right / sum(c for _, c in recalled)
    rows |= {task: share for task, (share, _) in tasks.items()}
    words = scores["wordings"].items()
    return rows | {f"wording {word}": share for word, (share, _) in words}


def main(folders):
    if not folders:
        raise InputError("name at least one run folder.")
    reports = [read_json(pathlib.Path(f) / "report.json") for f in folders]
    models = list(reports[0]["scores"])
    print(f"| {len(reports)} runs | {' | '.join(models)} |")
    print(f"|---|{'---|' * len(models)}")
    tables = {
        model: [shares(report, model) for report in reports] for model in models
    }
    for row in tables[models[-1]][0]:
        cells = []
        for model in models:
            values = [table.get(row, 0.0) for table in tables[model]]
            mean, spread = statistics.fmean(values), statistics.pstdev(values)
            cells.append(f"{mean:.1%} ± {spread:.1%}")
        print(f"| {row} | {' | '.join(cells)} |")


def _name(task):
    return task.rpartition(".")[0]


if __name__ == "__main__":
    sys.exit(guard(lambda: main(sys.argv[1:])))
