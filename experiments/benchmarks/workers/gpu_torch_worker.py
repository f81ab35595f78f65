"""Trains the plain GPT by torch.compile, in bfloat16 where autocast takes it.

Settings: those of a task.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

import torch

from experiments.benchmarks.workers.gpt_task import batches
from experiments.benchmarks.workers.protocol import (
    repeat,
    serve,
    timed,
    versions,
)
from experiments.benchmarks.workers.torch_worker import GPT, Trainer


class AutocastGPT(GPT):
    def forward(self, tokens):
        with torch.autocast(tokens.device.type, torch.bfloat16):
            return super().forward(tokens)


def train_step(task):
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if has_gpu else "cpu")
    torch.set_float32_matmul_precision("high")
    model = AutocastGPT(task)
    model.set_first_weights(task)
    trainer = Trainer(model.to(device), {**task, "compile": True})
    tokens = torch.from_numpy(batches(task)).long().to(device)

    def epoch():
        losses = [trainer.step(batch) for batch in tokens]
        loss = torch.stack(losses).mean().item()
        # The last update runs after its loss is known.
        if has_gpu:
            torch.cuda.synchronize()
        return loss

    (first, loss), (second, next_loss) = timed(epoch), timed(epoch)
    facts = {
        "parameters": sum(p.numel() for p in trainer.parameters),
        "losses": [loss, next_loss],
        "compile_seconds": first - second,
        "device": torch.cuda.get_device_name() if has_gpu else "cpu",
        "device_bytes": torch.cuda.max_memory_allocated() if has_gpu else 0,
        "versions": versions("torch"),
    }
    return facts, repeat(epoch)


if __name__ == "__main__":
    serve(train_step)
