"""Owns what every Python worker shares: JSON lines that chatter cannot break.

Standard library only: it runs under the peers' Python too.
"""

import ctypes
import gc
import importlib.metadata
import json
import os
import pathlib
import sys
import time


def serve(build):
    """Builds once, says that it is ready, then answers until stdin ends.

    Libraries print where they like; so the real standard output is kept
    aside for answers, and what is printed goes to standard error.

    Args:
        build: function of the settings (a dict, the process' argument);
            returns (facts, run). `facts` is a dict for the ready message, and
            `run` a function of a request that returns the answer, a dict.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(message):
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    facts, run = build(json.loads(sys.argv[1]))
    send({"ready": True, **facts})
    for line in sys.stdin:
        send(run(json.loads(line)))


def repeat(function):
    """Returns `run` for `serve`: a request {"run": n} times n calls.

    Args:
        function: called without arguments; returns when its work is done.
    """

    def run(request):
        seconds = []
        for _ in range(request["run"]):
            started = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    return run


def timed(function):
    """Returns (seconds, result) of one call."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def versions(*names):
    """Returns dict of package name to installed version."""
    return {name: importlib.metadata.version(name) for name in names}


def repeat_with_memory(function):
    """Returns `repeat` whose answers also have "bytes", of one call more.

    Bytes are the peak of resident memory during the call, results included,
    beyond what was resident before it.
    """
    run = repeat(function)

    def run_with_memory(request):
        answer = run(request)
        gc.collect()
        # What earlier calls have freed must not be there for the taking.
        ctypes.CDLL(None).malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = status_bytes("VmRSS")
        function()
        return {**answer, "bytes": status_bytes("VmHWM") - before}

    return run_with_memory


def status_bytes(name, process="self"):
    """Returns the value of a line of /proc/<process>/status, such as VmHWM."""
    for line in (
        pathlib.Path(f"/proc/{process}/status").read_text().splitlines()
    ):
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    # A process that has ended has no memory, and no such line.
    raise OSError(f"/proc/{process}/status: there is no {name}.")
