"""Starts the default run of run_sft.py, and stops after its first steps.

Settings: started, time.time() of when this process was started.
"""

import contextlib
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

from experiments.benchmarks.workers.protocol import serve, versions
from experiments.run_sft import CONFIG
from kerasgpt.data.prepare import load_corpus
from kerasgpt.training import pretrain

# What has been done when each line is told; the last are the first steps.
PHASES = ("data, tokenizer, model", "first validation", "first steps")


class FirstStepsDone(Exception):
    """There is nothing more to see."""


def build(settings):
    times = [settings["started"], time.time()]

    def tell(line):
        times.append(time.time())
        if len(times) == 2 + len(PHASES):
            raise FirstStepsDone

    with tempfile.TemporaryDirectory() as folder:
        config = CONFIG.override([f"run_dir={folder}/run"])
        with contextlib.suppress(FirstStepsDone):
            pretrain.run(config.base, load_corpus(config.data), tell=tell)
    phases = {
        name: end - begin
        for name, begin, end in zip(
            ("import", *PHASES), times, times[1:], strict=False
        )
    }
    facts = {"phases": phases, "versions": versions("keras", "tensorflow")}
    return facts, lambda request: {"seconds": []}


if __name__ == "__main__":
    serve(build)
