"""Question  What do weights of 8 and of 4 bits cost a model?
Command   python experiments/quantize_check.py experiments/runs/shop_chat …

Each run's own validation rows, before and after, and the size of all files;
4 bits rounded to what is nearest, and fitted to the run's training rows.
"""

import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from kerasgpt.checkpoints.exchange import quantize
from kerasgpt.checkpoints.model_folder import (
    WEIGHTS_FILE,
    find_model_folder,
    load_model,
)
from kerasgpt.config import InputError
from kerasgpt.console import guard
from kerasgpt.data.packing import pack
from kerasgpt.data.shards import load_shards
from kerasgpt.evaluation.likelihood import NetworkScorer, score_rows

KINDS = {
    "8 bits": {"bits": 8},
    "4 bits": {"bits": 4},
    "4 bits, fitted": {"bits": 4, "fit_to": True},
}


def main(runs):
    if not runs:
        raise InputError("name at least one run folder.")
    print("| run | weights | MB | bits per byte | change | nats a token |")
    print("|---|---|---|---|---|---|")
    for run in runs:
        name = pathlib.Path(run).name
        size, before, loss = measure(run, run)
        cells = f"{size / 1e6:.2f} | {before:.6f} | | {loss:.6f}"
        print(f"| {name} | float32 | {cells} |")
        for kind, options in KINDS.items():
            if options.get("fit_to"):
                options = {**options, "fit_to": run}
            with tempfile.TemporaryDirectory() as folder:
                target = pathlib.Path(folder) / "model"
                quantize(run, target, tell=lambda line: None, **options)
                size, bits, loss = measure(target, run)
            cells = f"{bits:.6f} | {bits / before - 1:+.2%} | {loss:.6f}"
            print(f"| {name} | {kind} | {size / 1e6:.2f} | {cells} |")


def measure(folder, run):
    """Returns (bytes of the file, bits per byte, nats a token)."""
    model, tokenizer = load_model(folder)
    shards, _ = load_shards(
        pathlib.Path(run) / "data",
        tokenizer_fingerprint=tokenizer.fingerprint(),
    )
    shard = shards["validation"]
    rows = pack(
        shard.token_ids,
        shard.loss_mask,
        shard.offsets,
        row_length=model.config.context_length,
    )
    scores = score_rows(NetworkScorer(model), rows, tokenizer.token_bytes)
    size = (find_model_folder(folder) / WEIGHTS_FILE).stat().st_size
    return size, scores["bits_per_byte"], scores["loss"]


if __name__ == "__main__":
    sys.exit(guard(lambda: main(sys.argv[1:])))
