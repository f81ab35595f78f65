"""Question  What loss does a 0.8M-parameter GPT reach on characters in 2,000
          steps, with nanoGPT's settings for a CPU (1.886 there, on 20 batches)?
Command   python experiments/run_shakespeare.py data.path=tinyshakespeare.txt
"""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import keras
import numpy as np

from kerasgpt.cli import run_script
from kerasgpt.config import Config, InputError, setting
from kerasgpt.data.packing import pack
from kerasgpt.data.sources import read_text
from kerasgpt.generation import Generator
from kerasgpt.models import GPTCausalLM, ModelConfig
from kerasgpt.tokenizers import ByteTokenizer
from kerasgpt.training import pretrain, stage
from kerasgpt.training.run_folder import claim_folder


@dataclasses.dataclass(frozen=True)
class TextConfig(Config):
    """The text; its last tenth is the validation split."""

    path: str = setting("", "a UTF-8 text file")


@dataclasses.dataclass(frozen=True)
class ShakespeareConfig(Config):
    """Character-level training on one text, once a seed."""

    run_dir: str = setting("experiments/runs/shakespeare", "folder of the run")
    overwrite: bool = setting(False, "delete another run's run_dir first")
    num_seeds: int = setting(3, "runs, for mean and spread")
    data: TextConfig = setting(TextConfig(), "what is learned from")
    tokenizer: pretrain.TokenizerConfig = setting(
        pretrain.TokenizerConfig(kind="byte"), "text to tokens"
    )
    model: ModelConfig = setting(
        ModelConfig(depth=4, model_dim=128, num_heads=4, context_length=64),
        "the network",
    )
    train: stage.TrainConfig = setting(
        stage.TrainConfig(
            steps=2000,
            batch_tokens=768,
            evaluate_steps=500,
            evaluate_rows=1_000_000,
            log_steps=100,
        ),
        "the training",
    )


CONFIG = ShakespeareConfig()


def main(config):
    if not config.data.path:
        raise InputError("data.path=: name the text file to learn.")
    tokenizer = ByteTokenizer()
    token_ids = np.array(tokenizer.encode(read_text(config.data.path)))
    cut = int(0.9 * len(token_ids))
    parts = {"train": token_ids[:cut], "validation": token_ids[cut:]}
    model_config = config.model.build_config(
        vocabulary_size=tokenizer.vocabulary_size, context_length=64
    )
    rows = {
        name: pack(
            part,
            np.ones(len(part), np.uint8),
            np.array([0, len(part)]),
            row_length=model_config.context_length,
        )
        for name, part in parts.items()
    }
    folder = claim_folder(
        config.run_dir,
        config,
        overwrite=config.overwrite,
        ignored=("run_dir", "overwrite", "num_seeds"),
    )
    losses = []
    for seed in range(config.num_seeds):
        keras.utils.set_random_seed(seed)
        model = GPTCausalLM(model_config, name="gpt")
        model.build()
        generator = Generator(model, tokenizer)
        result = stage.train(
            model,
            tokenizer,
            rows,
            config.train,
            folder / f"seed_{seed}",
            name=f"seed {seed}",
            seed=seed,
            sample=lambda _, generator=generator: generator.complete(
                ["ROMEO:"], max_new_tokens=40, temperature=0.8
            )[0],
        )
        losses.append(result.metrics["loss"])
        print(f"seed {seed}: loss {losses[-1]:.4f} on the validation split")
    print(
        f"\n{model_config.num_parameters:,} parameters, {len(losses)} seeds: "
        f"validation loss {np.mean(losses):.4f} ± {np.std(losses):.4f} nats a "
        f"character, {len(parts['validation']):,} characters"
    )


if __name__ == "__main__":
    run_script(
        main,
        CONFIG,
        stages=lambda config: {"train": config.train},
        document=__doc__,
    )
