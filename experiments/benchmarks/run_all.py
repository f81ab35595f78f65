"""Question  Where do all figures of speed stand, beside their goals?
Command   python experiments/benchmarks/run_all.py \\
              data.path=tinyshakespeare.txt record=experiments/records/speed

Every benchmark in turn, each in a process of its own; then one table.
"""

import dataclasses
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments.benchmarks.contest import (
    ContestConfig,
)
from experiments.benchmarks.peers import (
    FOLDER,
)
from experiments.benchmarks.report import (
    Answer,
    Figure,
    run_benchmark,
    table,
)
from experiments.run_shakespeare import TextConfig
from kerasgpt.config import setting
from kerasgpt.files import read_json

SCRIPTS = (
    "train_step",
    "time_to_loss",
    "decode",
    "loss_head",
    "input_pipeline",
    "checkpoint",
    "start_up",
    "convert",
    "plan",
    "serving",
)
SHARED = ("threads", "cores", "peers_python")
HEADER = ["figure", "goal", "seen", "met?"]
WORDS = {True: "yes", False: "no", None: "–"}


@dataclasses.dataclass(frozen=True)
class RunAllConfig(ContestConfig):
    """All benchmarks; `repeats` and `contestants` stay each script's own."""

    look: bool = setting(False, "pass --quick on")
    scripts: str = setting(",".join(SCRIPTS), "which; commas between")
    data: TextConfig = setting(TextConfig(), "the text of time_to_loss.py")


CONFIG = RunAllConfig()
QUICK = ["look=true"]


def run(script, config, record):
    """Returns the figures of a script, run in a process of its own."""
    arguments = [f"{key}={getattr(config, key)}" for key in SHARED]
    arguments += ["--quick"] if config.look else []
    if script == "time_to_loss":
        arguments.append(f"data.path={config.data.path}")
    print(f"\n== {script}", flush=True)
    command = [sys.executable, str(FOLDER / f"{script}.py"), *arguments]
    process = subprocess.Popen(
        [*command, f"record={record}"], stderr=subprocess.PIPE, text=True
    )
    last = ""
    for line in process.stderr:
        print(line, end="", file=sys.stderr)
        last = line.strip() or last
    if process.wait():
        return [Figure(script, "", f"not measured: {last}")]
    found = read_json(pathlib.Path(record) / f"{script}.json")["figures"]
    return [Figure(**figure) for figure in found]


def ask(config):
    with tempfile.TemporaryDirectory() as temporary:
        figures = [
            figure
            for script in config.scripts.split(",")
            for figure in run(script, config, config.record or temporary)
        ]
    rows = [[f.name, f.goal, f.seen, WORDS[f.is_met]] for f in figures]
    return Answer(table(HEADER, rows), figures, {})


if __name__ == "__main__":
    run_benchmark(ask, CONFIG, quick=QUICK, document=__doc__)
