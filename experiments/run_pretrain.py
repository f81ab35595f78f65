"""Question  How well does a base model learn the shop's documents, or yours?
Command   python experiments/run_pretrain.py [data.documents_path=my_texts/]
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from kerasgpt.cli import run_script
from kerasgpt.generation import Generator
from kerasgpt.training import pretrain

CONFIG = pretrain.PretrainConfig()
TINY = CONFIG.override(
    [
        "model.depth=2",
        "model.model_dim=32",
        "model.context_length=64",
        "tokenizer.vocabulary_size=800",
        "data.num_products=20",
        "data.num_documents=300",
        "data.num_chats=10",
        "data.validation_fraction=0.1",
        "train.steps=4",
        "train.batch_tokens=512",
        "train.log_steps=2",
    ]
)
BEGINNINGS = ("The price of", "商品")


def main(config):
    base = pretrain.run(config)
    if not base.is_chief:
        return
    generator = Generator(base.model, base.tokenizer)
    for text in generator.complete(BEGINNINGS, max_new_tokens=40):
        print(f"  … {text}")
    print(
        f"""
validation      {base.metrics["bits_per_byte"]:.3f} bits a byte, \
perplexity {base.metrics["perplexity"]:.2f}
continue text   kerasgpt generate {base.folder} "{BEGINNINGS[0]}"
fine-tune it    python experiments/run_sft.py init={base.folder} \
data.path=my_chats.jsonl run_dir=experiments/runs/mine"""
    )


if __name__ == "__main__":
    run_script(
        main,
        CONFIG,
        stages=lambda config: {"train": config.train},
        document=__doc__,
    )
