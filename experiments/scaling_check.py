"""Question  Does a step on several devices take what scaling.py adds up:
          computing, and a ring's all-reduce of the gradients?
Command   python experiments/scaling_check.py

On this machine: 2 and 4 processes of a core each, joined by the loopback, and
the bandwidth that its sums reach. Needs jax, and a core for each process.
"""

import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from kerasgpt.training.scaling import ring_seconds

COUNTS = (2, 4)
WORKER = pathlib.Path(__file__).with_name("scaling_worker.py")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def measure(count):
    """Returns what the first of `count` workers prints."""
    port = free_port()
    workers = [
        subprocess.Popen(
            [sys.executable, WORKER, *map(str, (number, count, port))],
            env={**os.environ, "KERAS_BACKEND": "jax"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    outputs = [worker.communicate(timeout=600) for worker in workers]
    for worker, (_, errors) in zip(workers, outputs, strict=True):
        if worker.returncode:
            sys.exit(errors[-3000:])
    return json.loads(outputs[0][0].splitlines()[-1])


def spread(values, digits=0):
    """Returns "median [least–most]"."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} [{low:.{digits}f}–{high:.{digits}f}]"


def main():
    print(
        "| processes | own step, ms | sum of gradients, ms | step together, ms "
        "| predicted / measured | large sum, MB/s a process | predicted from 2 "
        "/ measured |"
    )
    print("| --- " * 7 + "|")
    bandwidth = None
    for count in COUNTS:
        found = measure(count)
        rounds = found["rounds"]
        ratios = [
            (one["alone"] + one["gradients"]) / one["together"]
            for one in rounds
        ]
        # What a ring's formula makes of a process's time.
        sent = ring_seconds(found["large_bytes"], count, 1.0)
        rates = [sent / one["large"] for one in rounds]
        bandwidth = bandwidth or statistics.median(rates)
        large = [
            ring_seconds(found["large_bytes"], count, bandwidth) / one["large"]
            for one in rounds
        ]
        cells = [
            str(count),
            spread([1e3 * one["alone"] for one in rounds]),
            spread([1e3 * one["gradients"] for one in rounds], 1),
            spread([1e3 * one["together"] for one in rounds]),
            spread(ratios, 2),
            spread([rate / 1e6 for rate in rates]),
            spread(large, 2) if count > COUNTS[0] else "",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
