"""Writes new tokens with Hugging Face's GPT-2 and its `generate`, eager.

Settings: a task of decode_task.py.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from experiments.benchmarks.workers.decode_task import (
    contestant,
    prompts,
    weights,
)
from experiments.benchmarks.workers.gpt_task import NORM_EPSILON
from experiments.benchmarks.workers.protocol import serve, versions


def build_model(task):
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=task["vocabulary_size"],
            n_positions=task["context_length"],
            n_embd=task["model_dim"],
            n_layer=task["num_layers"],
            n_head=task["num_heads"],
            layer_norm_epsilon=NORM_EPSILON,
            activation_function="gelu_new",
            # Neither is in the vocabulary of a task.
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    ours = {name: torch.from_numpy(w) for name, w in weights(task).items()}
    values = {
        "wte": ours["token_embedding"],
        "wpe": ours["position_embedding"],
    }
    for block in range(task["num_layers"]):
        attention, network = (
            f"block_{block}/attention/",
            f"block_{block}/feed_forward/",
        )
        joined = [ours[attention + name] for name in ("query", "key", "value")]
        values[f"h.{block}.attn.c_attn"] = torch.cat(joined, 1)
        values[f"h.{block}.attn.c_proj"] = ours[attention + "output"]
        values[f"h.{block}.mlp.c_fc"] = ours[network + "up"]
        values[f"h.{block}.mlp.c_proj"] = ours[network + "down"]
    with torch.no_grad():
        for name, parameter in model.transformer.named_parameters():
            module = name.rsplit(".", 1)[0]
            if module in values and parameter.dim() == 2:
                parameter.copy_(values[module])
            elif name.endswith("bias"):
                parameter.zero_()
    return model


def decode(task):
    model = build_model(task)
    token_ids = torch.from_numpy(prompts(task)).long()

    @torch.inference_mode()
    def generate():
        rows = model.generate(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            max_new_tokens=task["new_tokens"],
            do_sample=False,
        )
        return rows[:, task["prompt_length"] :]

    return contestant(
        generate,
        parameters=sum(p.numel() for p in model.parameters()),
        versions=versions("torch", "transformers"),
    )


if __name__ == "__main__":
    serve(decode)
