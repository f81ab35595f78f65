"""Writes a GPT-2 of 124M random parameters as transformers does, and logits.

Settings: folder, which is made.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

import numpy as np
import torch
import transformers

from experiments.benchmarks.workers.protocol import serve, versions


def build(settings):
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    model.save_pretrained(settings["folder"])
    token_ids = np.arange(0, 50_000, 400).reshape(1, -1)
    with torch.no_grad():
        logits = model(torch.tensor(token_ids)).logits.numpy()
    np.savez(
        f"{settings['folder']}/expected.npz", token_ids=token_ids, logits=logits
    )
    facts = {"versions": versions("torch", "transformers")}
    return facts, lambda request: {"seconds": []}


if __name__ == "__main__":
    serve(build)
