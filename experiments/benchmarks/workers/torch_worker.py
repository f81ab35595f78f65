"""Trains a plain GPT in PyTorch, by the strongest settings found on a CPU.

Settings: job, and what the job's function reads.
"""

import pathlib
import sys
from math import cos, pi

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from experiments.benchmarks.workers.gpt_task import (
    ADAM_EPSILON,
    NORM_EPSILON,
    batches,
    first_weights,
    loss_head_inputs,
)
from experiments.benchmarks.workers.protocol import (
    repeat,
    repeat_with_memory,
    serve,
    timed,
    versions,
)


class Block(nn.Module):
    def __init__(self, width, num_heads, norm):
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = norm()
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.feed_forward_norm = norm()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        batch, length, width = x.shape
        heads = (batch, length, self.num_heads, width // self.num_heads)
        query, key, value = (
            part.view(heads).transpose(1, 2)
            for part in self.query_key_value(self.attention_norm(x)).split(
                width, 2
            )
        )
        attended = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True
        )
        x = x + self.output(attended.transpose(1, 2).reshape(x.shape))
        inner = functional.gelu(self.up(self.feed_forward_norm(x)))
        return x + self.down(inner)


class GPT(nn.Module):
    def __init__(self, task, *, norm_bias=True):
        super().__init__()
        width = task["model_dim"]

        def norm():
            return nn.LayerNorm(width, eps=NORM_EPSILON, bias=norm_bias)

        self.token_embedding = nn.Embedding(task["vocabulary_size"], width)
        self.position_embedding = nn.Embedding(task["context_length"], width)
        self.blocks = nn.ModuleList(
            Block(width, task["num_heads"], norm)
            for _ in range(task["num_layers"])
        )
        self.final_norm = norm()

    def forward(self, tokens):
        """Returns the mean loss of int (batch, length + 1) tokens."""
        token_ids, targets = tokens[:, :-1], tokens[:, 1:]
        x = self.token_embedding(token_ids)
        x = x + self.position_embedding.weight[: token_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.final_norm(x) @ self.token_embedding.weight.T
        return functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
        )

    def set_first_weights(self, task):
        weights = {
            name: torch.from_numpy(value)
            for name, value in first_weights(task).items()
        }
        with torch.no_grad():
            for name in ("token_embedding", "position_embedding"):
                getattr(self, name).weight.copy_(weights[name])
            for index, block in enumerate(self.blocks):
                attention, network = (
                    f"block_{index}/attention",
                    f"block_{index}/feed_forward",
                )
                joined = [
                    weights[f"{attention}/{name}"]
                    for name in ("query", "key", "value")
                ]
                block.query_key_value.weight.copy_(torch.cat(joined, 1).T)
                block.output.weight.copy_(weights[f"{attention}/output"].T)
                block.up.weight.copy_(weights[f"{network}/up"].T)
                block.down.weight.copy_(weights[f"{network}/down"].T)


class Trainer:
    """Model, optimizer and the step of one batch."""

    def __init__(
        self, model, task, *, decays_embeddings=False, epsilon=ADAM_EPSILON
    ):
        self.parameters = list(model.parameters())
        decayed, rest = [], []
        for name, parameter in model.named_parameters():
            is_table = "embedding" in name and not decays_embeddings
            is_decayed = parameter.dim() == 2 and not is_table
            (decayed if is_decayed else rest).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": task["weight_decay"]},
                {"params": rest, "weight_decay": 0.0},
            ],
            lr=task["learning_rate"],
            betas=(0.9, task["beta_2"]),
            eps=epsilon,
            fused=True,
        )
        self.loss = torch.compile(model) if task["compile"] else model

    def step(self, tokens):
        loss = self.loss(tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def _set_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate


def train_step(task):
    model = GPT(task)
    model.set_first_weights(task)
    trainer = Trainer(model, task)
    tokens = torch.from_numpy(batches(task)).long()

    def epoch():
        return sum(trainer.step(batch) for batch in tokens).item() / len(tokens)

    (first, loss), (second, next_loss) = timed(epoch), timed(epoch)
    facts = {
        "parameters": sum(p.numel() for p in trainer.parameters),
        "losses": [loss, next_loss],
        "compile_seconds": first - second,
        "versions": versions("torch"),
    }
    return facts, repeat(epoch)


def loss_head(settings):
    """The table's product with hidden states, cross-entropy, gradients."""
    hidden_states, kernel, targets = (
        torch.from_numpy(array) for array in loss_head_inputs(settings)
    )
    hidden_states.requires_grad_()
    kernel.requires_grad_()

    def mean_loss(hidden_states, kernel, targets):
        return functional.cross_entropy(hidden_states @ kernel.T, targets)

    function = torch.compile(mean_loss) if settings["compile"] else mean_loss

    def call():
        loss = function(hidden_states, kernel, targets.long())
        torch.autograd.grad(loss, (hidden_states, kernel))
        return loss.item()

    facts = {"losses": [call()], "versions": versions("torch")}
    return facts, repeat_with_memory(call)


def race(settings):
    """nanoGPT's settings for a CPU, to be trained in stretches.

    Reference: karpathy/nanoGPT, README, "I only have a macbook", and
    config/train_shakespeare_char.py.
    """
    stretch, steps = settings["stretch_steps"], settings["steps"]
    context, batch_size = 64, 12
    rate, final_rate, warmup = 1e-3, 1e-4, 100
    text = pathlib.Path(settings["path"]).read_bytes()
    symbols, token_ids = np.unique(
        np.frombuffer(text, np.uint8), return_inverse=True
    )
    token_ids = torch.from_numpy(token_ids.astype(np.int64))
    cut = int(0.9 * len(token_ids))
    train, validation = token_ids[:cut], token_ids[cut:]
    task = {
        "vocabulary_size": len(symbols),
        "context_length": context,
        "num_layers": 4,
        "model_dim": 128,
        "num_heads": 4,
        "learning_rate": rate,
        "weight_decay": 0.1,
        "beta_2": 0.99,
        "compile": settings["compile"],
    }
    model = GPT(task, norm_bias=False)
    trainer = Trainer(model, task, decays_embeddings=True, epsilon=1e-8)

    def reset(seed):
        torch.manual_seed(seed)
        trainer.optimizer.state.clear()
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                nn.init.ones_(parameter)
                continue
            is_last = name.endswith(("output.weight", "down.weight"))
            scale = (2 * task["num_layers"]) ** -0.5 if is_last else 1.0
            nn.init.normal_(parameter, std=0.02 * scale)

    def rate_at(step):
        if step < warmup:
            return rate * (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1, steps - warmup)
        return final_rate + (rate - final_rate) * (1 + cos(pi * done)) / 2

    def train_stretch(start):
        for step in range(start, min(start + stretch, steps)):
            _set_rate(trainer.optimizer, rate_at(step))
            starts = torch.randint(len(train) - context, (batch_size,))
            trainer.step(
                torch.stack([train[i : i + context + 1] for i in starts])
            )

    def evaluate():
        whole = (len(validation) - 1) // context * context
        with torch.no_grad():
            # The loss of all rows, and of the last one, which is shorter.
            rows = validation[: whole + 1].unfold(0, context + 1, context)
            total = sum(
                model(part).item() * part[:, 1:].numel()
                for part in rows.split(256)
            )
            rest = validation[whole:][None]
            if rest.shape[1] > 1:
                total += model(rest).item() * (rest.shape[1] - 1)
        return total / (len(validation) - 1)

    def run(request):
        start = request["step"]
        if start == 0:
            reset(request["seed"])
        seconds, _ = timed(lambda: train_stretch(start))
        return {
            "seconds": [seconds],
            "step": min(start + stretch, steps),
            "loss": evaluate(),
        }

    (first, _), (second, _) = (timed(lambda: train_stretch(0)) for _ in "12")
    facts = {
        "parameters": sum(p.numel() for p in trainer.parameters),
        "validation_tokens": len(validation),
        "steps": steps,
        "compile_seconds": first - second,
        "versions": versions("torch"),
    }
    return facts, run


JOBS = {"train_step": train_step, "loss_head": loss_head, "race": race}

if __name__ == "__main__":
    serve(lambda settings: JOBS[settings["job"]](settings))
