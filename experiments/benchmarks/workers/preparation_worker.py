"""Prepares documents of random lines; tells the speed and the memory.

Settings: megabytes, threads, near (bool), lines (path of a text), folder.
"""

import json
import pathlib
import random
import resource
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

from experiments.benchmarks.workers.protocol import serve, status_bytes
from kerasgpt.data.preparation import PreparationConfig, prepare_files

# About a page of English or two of Chinese.
LINES = 12


def build(task):
    folder = pathlib.Path(task["folder"])
    lines = pathlib.Path(task["lines"]).read_text().splitlines()
    path = folder / f"{task['megabytes']:g}.jsonl"
    draw, size, num_documents = random.Random(0), 0, 0
    with open(path, "w") as file:
        while size < task["megabytes"] * 1e6:
            text = "\n".join(draw.choices(lines, k=LINES))
            row = json.dumps({"text": text}, ensure_ascii=False) + "\n"
            file.write(row)
            size += len(row.encode())
            num_documents += 1

    def run(_):
        config = PreparationConfig(
            num_workers=task["threads"], remove_near_duplicates=task["near"]
        )
        start = time.perf_counter()
        manifest = prepare_files(
            [str(path)], folder / f"{path.stem}.out", config, tell=str
        )
        seconds = time.perf_counter() - start
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        return {
            "seconds": [seconds],
            "megabytes": size / 1e6,
            "num_documents": num_documents,
            "written": manifest["statistics"]["splits"],
            "parent_bytes": status_bytes("VmHWM"),
            "child_bytes": children * 1024,
        }

    return {}, run


if __name__ == "__main__":
    serve(build)
