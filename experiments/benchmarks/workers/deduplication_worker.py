"""Deduplicates with kerasgpt.

Settings: a task of deduplication_task.py.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

from experiments.benchmarks.workers.deduplication_task import build_texts
from experiments.benchmarks.workers.protocol import serve, timed, versions
from kerasgpt.data.deduplication import NearDuplicateConfig, NearDuplicates


def build(task):
    texts, _ = build_texts(task)
    config = NearDuplicateConfig(
        threshold=task["threshold"],
        num_permutations=task["num_permutations"],
        word_shingle_length=task["shingle_length"],
        character_shingle_length=task["shingle_length"],
    )

    def deduplicate():
        duplicates = NearDuplicates(config)
        duplicates.add(texts)
        return duplicates.firsts().tolist()

    def run(_):
        seconds, firsts = timed(deduplicate)
        return {"seconds": [seconds], "firsts": firsts}

    # Tables of code points and the like are made once.
    run(None)
    return {"versions": versions("numpy")}, run


if __name__ == "__main__":
    serve(build)
