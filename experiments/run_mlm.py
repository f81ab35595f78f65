"""Question  How well does a bidirectional model fill in hidden words and
          characters of the shop's documents, or of yours?
Command   python experiments/run_mlm.py [data.documents_path=my_texts/]
"""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from kerasgpt.cli import run_script
from kerasgpt.config import Config, setting
from kerasgpt.data.masking import mask_texts
from kerasgpt.data.prepare import DataConfig, load_corpus, split_rows
from kerasgpt.evaluation.mask_filling import MaskFiller
from kerasgpt.files import write_json
from kerasgpt.models import EncoderConfig
from kerasgpt.models.encoder import MARKS
from kerasgpt.training import pretrain, stage
from kerasgpt.training.distribution import build_strategy

EXAMPLES = (
    "The price of the Repomu is [MASK] yuan.",
    "商品 Repomu 的价格是 [MASK] 元。",
)


@dataclasses.dataclass(frozen=True)
class MaskConfig(Config):
    """What is hidden."""

    share: float = setting(
        0.15, "of words and characters", minimum=0.01, maximum=0.9
    )
    num_copies: int = setting(10, "different maskings of each text", minimum=1)
    next_sentence: bool = setting(
        False, "also ask whether the second part of a text is its own"
    )
    num_measured: int = setting(
        60, "held-out texts of which every word is hidden once", minimum=1
    )


@dataclasses.dataclass(frozen=True)
class EncoderShape(Config):
    """One dial, `depth`: the width is 32 a block, at least 128."""

    depth: int = setting(4, "encoder blocks", minimum=1)
    context_length: int = setting(
        128, "longest input, marks included", unit="tokens", minimum=8
    )

    def build_encoder_config(self, *, vocabulary_size):
        """Returns the EncoderConfig for a tokenizer's vocabulary."""
        return EncoderConfig.from_depth(
            self.depth,
            vocabulary_size=vocabulary_size + len(MARKS),
            context_length=self.context_length,
        )

    def build_config(self, *, vocabulary_size, context_length):
        """Returns the GPT of this size, by whose cost a dry run tells ours."""
        encoder = self.build_encoder_config(vocabulary_size=vocabulary_size)
        return encoder.as_decoder(encoder.num_layers, position="learned")


@dataclasses.dataclass(frozen=True)
class MLMConfig(Config):
    """A masked language model: texts in, a model that fills gaps out."""

    run_dir: str = setting("experiments/runs/mlm", "folder of the run")
    overwrite: bool = setting(False, "delete another run's run_dir first")
    seed: int = setting(0, "of weights, masks and order", minimum=0)
    data: DataConfig = setting(
        DataConfig(num_documents=10_000), "what is learned from"
    )
    tokenizer: pretrain.TokenizerConfig = setting(
        pretrain.TokenizerConfig(), "text to tokens"
    )
    mask: MaskConfig = setting(MaskConfig(), "what is hidden")
    model: EncoderShape = setting(EncoderShape(), "the network")
    train: stage.TrainConfig = setting(
        stage.TrainConfig(steps=1500, batch_tokens=4096, evaluate_steps=300),
        "the training",
    )


CONFIG = MLMConfig()
TINY = CONFIG.override(
    [
        "tokenizer.vocabulary_size=800",
        "data.num_products=20",
        "data.num_documents=300",
        "mask.num_copies=2",
        "mask.num_measured=2",
        "model.depth=1",
        "train.steps=2",
        "train.batch_tokens=512",
        "train.evaluate_steps=2",
        "train.log_steps=2",
    ]
)


def main(config):
    corpus = load_corpus(config.data, with_chats=False)
    folder, tokenizer = pretrain.open_run(config, corpus.documents, config.data)
    model_config = config.model.build_encoder_config(
        vocabulary_size=tokenizer.vocabulary_size
    )
    texts = split_rows(
        corpus.documents, corpus.documents, config.data.validation_fraction
    )
    rows = {
        name: mask_texts(
            part,
            tokenizer,
            model_config,
            next_sentence=config.mask.next_sentence,
            share=config.mask.share,
            num_copies=config.mask.num_copies if name == "train" else 1,
            seed=config.seed,
        )
        for name, part in texts.items()
    }
    print(
        f"mlm: {model_config.num_parameters:,} parameters, "
        f"{len(texts['train']):,} documents in {len(rows['train'].rows):,} "
        f"rows, each hidden in {config.mask.num_copies} ways."
    )

    def sample(model):
        filler = MaskFiller(model, tokenizer)
        return "\n".join(filler.fill(text)[0].text for text in EXAMPLES)

    result = stage.train(
        stage.build_model(model_config, config.train, build_strategy("none")),
        tokenizer,
        rows,
        config.train,
        folder,
        name="mlm",
        seed=config.seed,
        sample=sample,
    )
    filler = MaskFiller(result.model, tokenizer)
    measured = {
        language: filler.measure(part[: config.mask.num_measured])
        for language, part in by_language(texts["validation"]).items()
        if part
    }
    write_json(folder / "mask_filling.json", measured)
    for language, values in measured.items():
        print(
            f"{language}: pseudo-perplexity {values['pseudo_perplexity']:.2f}, "
            f"{values['fill_in_accuracy']:.1%} of {values['units']:,} words "
            f"and characters filled in right"
        )
    for text in EXAMPLES:
        print(f"  {text} → {filler.fill(text)[0].text}")
    print(f'fill in yours   kerasgpt fill-mask {folder} "{EXAMPLES[0]}"')


def by_language(texts):
    """Returns dict of "en" and "zh" to those that hold no, or any, Han."""
    is_chinese = [
        any("\u4e00" <= letter <= "\u9fff" for letter in text) for text in texts
    ]
    return {
        name: [
            text
            for text, is_zh in zip(texts, is_chinese, strict=True)
            if is_zh == (name == "zh")
        ]
        for name in ("en", "zh")
    }


if __name__ == "__main__":
    run_script(
        main,
        CONFIG,
        stages=lambda config: {"train": config.train},
        document=__doc__,
    )
