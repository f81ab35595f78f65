"""Question  Where do all figures of speed stand, beside their goals?
Command   python experiments/benchmarks/run_all.py \\
              data.path=tinyshakespeare.txt record=experiments/records/speed

Every benchmark in turn, each in a process of its own; then one table. One that
fails or takes too long is told there, and the others go on.
"""

import dataclasses
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

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
from kerasgpt.config import InputError, setting
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
    script_minutes: float = setting(
        120.0, "after so many a script is ended", minimum=0.01
    )
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
    started = time.monotonic()
    process = subprocess.Popen(
        [
            sys.executable,
            str(FOLDER / f"{script}.py"),
            *arguments,
            f"record={record}",
        ],
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    # Its workers end when their input does.
    clock = threading.Timer(60 * config.script_minutes, process.kill)
    clock.start()
    last = ""
    for line in process.stderr:
        print(line, end="", file=sys.stderr)
        last = line.strip() or last
    status = process.wait()
    clock.cancel()
    minutes = (time.monotonic() - started) / 60
    print(f"== {script}: {minutes:.1f} minutes", flush=True)
    if minutes >= config.script_minutes:
        last = f"took longer than script_minutes={config.script_minutes:g}"
    if status:
        return [missing(script, last or f"ended with status {status}")]
    try:
        found = read_json(pathlib.Path(record) / f"{script}.json")["figures"]
        return [Figure(**figure) for figure in found]
    # Whatever it left behind, the others go on.
    except (InputError, OSError, KeyError, TypeError, ValueError) as error:
        return [missing(script, f"told no figures: {error!r}")]


def missing(script, reason):
    return Figure(script, "", f"not measured: {reason}")


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
