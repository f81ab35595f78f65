"""Starts a server and loads it, as its clients in a closed loop.

Settings: command, of the server, a Python's; packages, whose versions there
are told; path and body, of the first request.
A request {"clients": n, "path": …, "bodies": […]} is answered by "seconds" of
all, "tokens" and "answers"; {"stream": […], "path": …} by the seconds to each
first piece of text.
"""

import atexit
import json
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

from experiments.benchmarks.load import Client, Server, closed_loop
from experiments.benchmarks.workers.protocol import serve


def encoded(body):
    return json.dumps(body).encode()


def versions_there(python, packages):
    """Returns a dict of package to its version under another Python."""
    program = (
        "import importlib.metadata, json, sys; print(json.dumps({name: "
        "importlib.metadata.version(name) for name in sys.argv[1:]}))"
    )
    command = [python, "-c", program, *packages]
    return json.loads(subprocess.check_output(command))


def answer_of(reply):
    """Returns what a completion says: text, or token ids."""
    if reply.status != 200:
        raise OSError(f"status {reply.status}: {reply.content[:200]}")
    choice = reply.json()["choices"][0]
    return choice["text"] if "text" in choice else choice["token_ids"]


def load(settings):
    server = Server(settings["command"])
    atexit.register(server.close)
    client = Client(server.address)
    first = client.post(settings["path"], encoded(settings["body"]))
    if first.status != 200:
        raise OSError(f"status {first.status}: {first.content[:200]}")
    python, packages = settings["command"][0], settings["packages"]
    facts = {
        "ready_seconds": server.ready_seconds,
        "first_answer_seconds": time.perf_counter() - server.started,
        "versions": versions_there(python, packages),
    }

    def run(request):
        path = request["path"]
        if "stream" in request:
            seconds = [
                client.first_piece_seconds(path, encoded(body))
                for body in request["stream"]
            ]
            return {"seconds": seconds}
        seconds, replies = closed_loop(
            server.address,
            [(path, encoded(body)) for body in request["bodies"]],
            num_clients=request["clients"],
        )
        return {
            "clients": request["clients"],
            "seconds": [seconds],
            "answers": [answer_of(reply) for reply in replies],
            "tokens": sum(
                reply.json()["usage"]["completion_tokens"] for reply in replies
            ),
            "server_peak_bytes": server.peak_bytes,
        }

    return facts, run


if __name__ == "__main__":
    serve(load)
