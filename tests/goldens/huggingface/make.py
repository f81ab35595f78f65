"""Makes the folders beside it: tiny random models of transformers, and logits.

Command  python tests/goldens/huggingface/make.py
Needs    pip install -e '.[peers]'

Each folder is as `save_pretrained` leaves it, and has expected.safetensors:
token_ids int64 (2, length), logits float32 (2, length, vocabulary). Versions
and the seed are in origin.json.
"""

import copy
import json
import pathlib
import shutil

FOLDER = pathlib.Path(__file__).parent
SEED = 0
# Large enough that no part of a model is lost in rounding.
SCALE = 0.3
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    # Of four pairs one keeps its pace, one is between, two slow down.
    "original_max_position_embeddings": 64,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
GPT2 = {
    "vocab_size": 23,
    "n_positions": 17,
    "n_embd": 12,
    "n_layer": 2,
    "n_head": 3,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA = {
    "vocab_size": 23,
    "max_position_embeddings": 17,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
# Name -> (model_type, changes of the above, how it is saved).
MODELS = {
    "gpt2": ("gpt2", {}, {}),
    "gpt2_inner": (
        "gpt2",
        {
            "n_inner": 18,
            "n_layer": 3,
            "n_head": 2,
            "activation_function": "gelu",
            "layer_norm_epsilon": 1e-3,
        },
        {},
    ),
    "gpt2_untied_shards": (
        "gpt2",
        {
            "n_head": 1,
            "activation_function": "gelu_pytorch_tanh",
            "tie_word_embeddings": False,
        },
        {"max_shard_size": "8KB"},
    ),
    "gpt1": ("openai-gpt", {"n_embd": 8, "n_head": 2}, {}),
    "llama2": ("llama", {}, {}),
    "llama_shared_heads": (
        "llama",
        {
            "hidden_size": 16,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
        {},
    ),
    "llama3_bfloat16": (
        "llama",
        {
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "max_position_embeddings": 512,
            "rope_parameters": LLAMA3,
        },
        {"dtype": "bfloat16"},
    ),
    "llama3_tied": (
        "llama",
        {
            "head_dim": 8,
            "tie_word_embeddings": True,
            "max_position_embeddings": 512,
            "rope_parameters": LLAMA3,
        },
        {},
    ),
    "llama_linear": (
        "llama",
        {
            "head_dim": 6,
            "hidden_act": "gelu",
            "rope_parameters": {
                "rope_type": "linear",
                "rope_theta": 10000.0,
                "factor": 2.5,
            },
        },
        {},
    ),
    "qwen2": (
        "qwen2",
        {
            "hidden_size": 16,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
        {},
    ),
    "qwen2_untied_float16": (
        "qwen2",
        {"num_key_value_heads": 1},
        {"dtype": "float16"},
    ),
    "qwen3": (
        "qwen3",
        {
            "hidden_size": 10,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 6,
            "tie_word_embeddings": True,
        },
        {},
    ),
    "qwen3_untied": (
        "qwen3",
        {
            "num_key_value_heads": 1,
            "head_dim": 8,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        {},
    ),
    "qwen3_shards": (
        "qwen3",
        {"num_key_value_heads": 3, "head_dim": 2, "num_hidden_layers": 3},
        {"max_shard_size": "4KB"},
    ),
}


def build(name, seed):
    """Returns a random model of transformers, in float32."""
    import torch
    import transformers

    model_type, changes, options = MODELS[name]
    base = GPT2 if model_type in ("gpt2", "openai-gpt") else LLAMA
    # What differs between versions is not left to a default.
    values = {"num_key_value_heads": None} if base is LLAMA else {}
    config = transformers.AutoConfig.for_model(
        model_type,
        **{**base, **values, **changes},
        attn_implementation="eager",
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    shake(model, seed, options.get("dtype", "float32"))
    return model


def shake(model, seed, dtype):
    """Adds to a model's weights what can be saved in a dtype."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, dtype)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            # As exact as the file will be.
            weight.copy_((weight + SCALE * noise).to(dtype))


def save_as(model, folder, options):
    """Writes a model as users of transformers have it."""
    import torch

    options = dict(options)
    dtype = getattr(torch, options.pop("dtype", "float32"))
    # A copy: rotary frequencies, too, would be rounded for good.
    copy.deepcopy(model).to(dtype).save_pretrained(folder, **options)
    (folder / "generation_config.json").unlink(missing_ok=True)


def logits(model, token_ids):
    """Returns float32 logits of a model of transformers as an array."""
    import torch

    with torch.no_grad():
        return model(torch.tensor(token_ids)).logits.numpy()


def draw_tokens(model, seed):
    """Returns token ids int64 (2, 13)."""
    import numpy as np

    rng = np.random.default_rng(seed)
    return rng.integers(0, model.config.vocab_size, (2, 13))


def main():
    """Writes all folders anew."""
    import safetensors.numpy

    for name in MODELS:
        folder = FOLDER / name
        shutil.rmtree(folder, ignore_errors=True)
        model = build(name, SEED)
        save_as(model, folder, MODELS[name][2])
        token_ids = draw_tokens(model, SEED)
        safetensors.numpy.save_file(
            {"token_ids": token_ids, "logits": logits(model, token_ids)},
            folder / "expected.safetensors",
        )
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{name}: {size:,} bytes")
    write_origin(FOLDER, "python tests/goldens/huggingface/make.py")


def write_origin(folder, command):
    """Writes what folders beside it were made with."""
    import numpy
    import torch
    import transformers

    origin = {
        "command": command,
        "seed": SEED,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }
    text = json.dumps(origin, indent=2) + "\n"
    (folder / "origin.json").write_text(text)


if __name__ == "__main__":
    main()
