"""Question  Is a small model better for having learned from a larger one's
          logits, at equal steps, batches and first weights?
Command   python experiments/run_pretrain.py && \
python experiments/run_distill.py [teacher.run=experiments/runs/base]
"""

import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from kerasgpt.cli import run_script
from kerasgpt.files import write_json, write_text
from kerasgpt.training import distill

CONFIG = distill.DistillConfig()
TINY = CONFIG.override(
    [
        "num_seeds=1",
        "model.depth=1",
        "model.model_dim=16",
        "train.steps=4",
        "train.log_steps=2",
    ]
)
METRICS = ("loss", "accuracy", "bits_per_byte")


def table(result):
    """Returns a Markdown table: validation of teacher and students."""
    first = result.students[distill.ALONE]
    lines = [
        f"| validation, {len(first)} seeds | parameters | "
        f"{' | '.join(METRICS)} |",
        f"|---|---|{'---|' * len(METRICS)}",
    ]
    for name, runs in {"teacher": [result.teacher], **result.students}.items():
        cells = [f"{runs[0].model.config.num_parameters:,}"]
        for metric in METRICS:
            values = [run.metrics[metric] for run in runs]
            cell = f"{statistics.fmean(values):.4f}"
            if len(values) > 1:
                cell += f" ± {statistics.pstdev(values):.4f}"
            cells.append(cell)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(config):
    result = distill.run(config)
    shown = table(result)
    losses = {
        name: [run.metrics["loss"] for run in runs]
        for name, runs in result.students.items()
    }
    pairs = zip(losses[distill.ALONE], losses[distill.DISTILLED], strict=True)
    wins = sum(distilled < alone for alone, distilled in pairs)
    verdict = (
        f"the distilled model has the lower loss in {wins} of "
        f"{config.num_seeds} seeds."
    )
    report = {
        "losses": losses,
        "teacher": result.teacher.metrics,
        "config": config.to_dict(),
    }
    write_json(result.folder / "report.json", report)
    write_text(
        result.folder / "report.md",
        f"# Distillation\n\n{shown}\n\nAt equal steps, {verdict}\n",
    )
    best = result.students[distill.DISTILLED][0].folder
    print(
        f"""
{shown}

{verdict}

report          {result.folder}/report.md
use it          kerasgpt generate {best} "The price of" \
--max-new-tokens 40"""
    )


if __name__ == "__main__":
    run_script(
        main,
        CONFIG,
        stages=distill.stages,
        document=__doc__,
    )
