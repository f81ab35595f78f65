"""Question  What do weights of 8 bits cost a model?
Command   python experiments/quantize_check.py experiments/runs/shop_chat …

Each run's own validation rows, before and after, and the size of both files.
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


def main(runs):
    if not runs:
        raise InputError("name at least one run folder.")
    print("| run | weights | MB | bits per byte | nats a token |")
    print("|---|---|---|---|---|")
    for run in runs:
        with tempfile.TemporaryDirectory() as folder:
            target = pathlib.Path(folder) / "int8"
            quantize(run, target, tell=lambda line: None)
            before, after = measure(run, run), measure(target, run)
        name = pathlib.Path(run).name
        for kind, (size, bits, loss) in (("float32", before), ("int8", after)):
            cells = f"{size / 1e6:.2f} | {bits:.6f} | {loss:.6f}"
            print(f"| {name} | {kind} | {cells} |")
        changes = [
            new / old - 1 for old, new in zip(before, after, strict=True)
        ]
        cells = " | ".join(f"{change:+.2%}" for change in changes)
        print(f"| {name} | change | {cells} |")


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
