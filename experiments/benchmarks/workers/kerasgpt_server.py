"""Serves an export as `kerasgpt serve` does, but with given sizes of a batch.

Settings, the only argument: folder, of versions; row_counts.
"""

import functools
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

from kerasgpt.console import Interrupted
from kerasgpt.serving.engine import load_engine
from kerasgpt.serving.server import ServeConfig, serve


def main(settings):
    make_backend = functools.partial(
        load_engine, row_counts=tuple(settings["row_counts"])
    )
    serve(
        ServeConfig(folder=settings["folder"], rest_api_port=0),
        make_backend=make_backend,
        write=functools.partial(print, flush=True),
    )


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except Interrupted:
        sys.exit(0)
