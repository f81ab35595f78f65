"""Question  How well does an encoder-decoder translate held-out sentences of
          the shop between English and Chinese, or pairs of yours?
Command   python experiments/run_translate.py [data.path=pairs.tsv]
"""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from kerasgpt.cli import run_script
from kerasgpt.config import Config, setting
from kerasgpt.data import shop
from kerasgpt.data.pairs import encode_pairs, pack_pairs, read_pairs
from kerasgpt.data.prepare import DataConfig, split_rows
from kerasgpt.evaluation.translation import score_translations
from kerasgpt.files import write_json, write_text
from kerasgpt.generation.beam import START, STOP, Translator
from kerasgpt.models import EncoderDecoderConfig
from kerasgpt.training import pretrain, stage
from kerasgpt.training.distribution import build_strategy


@dataclasses.dataclass(frozen=True)
class PairConfig(Config):
    """What is learned from."""

    path: str = setting(
        "",
        "a TSV file, source, tab, target; empty = the embedded shop's "
        "sentences, English to Chinese and back",
    )
    world_seed: int = setting(0, "which shop")
    num_products: int = setting(
        1000, "products of the shop", minimum=50, maximum=2000
    )
    num_pairs: int = setting(20_000, "training pairs of the shop", minimum=2)
    num_validation: int = setting(
        400, "held-out pairs of the shop that are translated", minimum=2
    )
    validation_fraction: float = setting(
        0.05, "of the pairs of a file", minimum=0.0, maximum=0.9
    )


@dataclasses.dataclass(frozen=True)
class TranslatorShape(Config):
    """One dial, `depth`: the width is 32 a block, at least 128."""

    depth: int = setting(2, "blocks of either side", minimum=1)
    context_length: int = setting(
        96, "longest text of either side", unit="tokens", minimum=8
    )
    dropout_rate: float = setting(
        0.0, "of embeddings and branches", minimum=0.0, maximum=0.9
    )

    def build_translator_config(self, *, vocabulary_size):
        """Returns the EncoderDecoderConfig for a vocabulary."""
        return EncoderDecoderConfig.from_depth(
            self.depth,
            vocabulary_size=vocabulary_size,
            context_length=self.context_length,
            dropout_rate=self.dropout_rate,
        )

    def build_config(self, *, vocabulary_size, context_length):
        """Returns the GPT by whose cost a dry run tells ours.

        An encoder and a decoder block with its third attention cost little
        more than two blocks of a GPT.
        """
        shape = self.build_translator_config(vocabulary_size=vocabulary_size)
        return shape.as_decoder(2 * shape.num_layers)


@dataclasses.dataclass(frozen=True)
class TranslateConfig(Config):
    """A translator: pairs of texts in, a model that translates out."""

    run_dir: str = setting("experiments/runs/translate", "folder of the run")
    overwrite: bool = setting(False, "delete another run's run_dir first")
    seed: int = setting(0, "of weights and of the order of the data", minimum=0)
    num_beams: int = setting(4, "of the search; 1 = greedy", minimum=1)
    length_penalty: float = setting(1.0, "of the search", minimum=0.0)
    data: PairConfig = setting(PairConfig(), "what is learned from")
    tokenizer: pretrain.TokenizerConfig = setting(
        pretrain.TokenizerConfig(vocabulary_size=1024), "text to tokens"
    )
    model: TranslatorShape = setting(TranslatorShape(), "the network")
    train: stage.TrainConfig = setting(
        stage.TrainConfig(steps=1500, batch_tokens=3072, evaluate_steps=300),
        "the training",
    )


CONFIG = TranslateConfig()
TINY = CONFIG.override(
    [
        "data.num_products=50",
        "data.num_pairs=200",
        "data.num_validation=4",
        "tokenizer.vocabulary_size=600",
        "model.depth=1",
        "train.steps=2",
        "train.batch_tokens=384",
        "train.evaluate_steps=2",
        "train.log_steps=2",
    ]
)


def read_splits(config):
    """Returns dict of split to list of (source, target)."""
    if not config.path:
        world = shop.build_world(config.world_seed, config.num_products)
        return {
            name: list(
                shop.generate_pairs(
                    world, count=count, is_held_out=name == "validation"
                )
            )
            for name, count in (
                ("train", config.num_pairs),
                ("validation", config.num_validation),
            )
        }
    pairs = read_pairs(config.path)
    # By their sources: of several translations none is on the other side.
    sources = [source for source, _ in pairs]
    return split_rows(pairs, sources, config.validation_fraction)


def main(config):
    splits = read_splits(config.data)
    folder, tokenizer = pretrain.open_run(
        config,
        [text for pair in splits["train"] for text in pair],
        DataConfig(path=config.data.path),
        ignored=("num_beams", "length_penalty"),
    )
    model_config = config.model.build_translator_config(
        vocabulary_size=tokenizer.vocabulary_size
    )
    rows = {
        name: pack_pairs(
            *encode_pairs(
                pairs,
                tokenizer,
                start_id=tokenizer.control_id(START),
                stop_id=tokenizer.control_id(STOP),
            ),
            row_length=model_config.context_length,
        )
        for name, pairs in splits.items()
    }
    print(
        f"translate: {model_config.num_parameters:,} parameters, "
        f"{len(splits['train']):,} pairs in {len(rows['train']):,} rows "
        f"({rows['train'].used_fraction:.1%} used)."
    )
    shown = [source for source, _ in splits["validation"][:2]]

    def sample(model):
        made = Translator(model, tokenizer).translate(shown, num_beams=1)
        return "\n".join(map(" → ".join, zip(shown, made, strict=True)))

    result = stage.train(
        stage.build_model(model_config, config.train, build_strategy("none")),
        tokenizer,
        rows,
        config.train,
        folder,
        name="translate",
        seed=config.seed,
        sample=sample,
    )
    translator = Translator(result.model, tokenizer)
    sources, references = map(
        list,
        zip(*splits["validation"][: config.data.num_validation], strict=True),
    )
    made = translator.translate(
        sources,
        num_beams=config.num_beams,
        length_penalty=config.length_penalty,
    )
    write_text(
        folder / "translations.tsv",
        "".join(
            "\t".join(row) + "\n"
            for row in zip(sources, references, made, strict=True)
        ),
    )
    languages = [
        "zh" if any("\u4e00" <= letter <= "\u9fff" for letter in text) else "en"
        for text in references
    ]
    scores = {
        language: score_translations(
            *zip(
                *(
                    (translation, reference)
                    for translation, reference, one in zip(
                        made, references, languages, strict=True
                    )
                    if one == language
                ),
                strict=True,
            ),
            language=language,
        )
        for language in sorted(set(languages))
    }
    write_json(folder / "scores.json", scores)
    for language, values in scores.items():
        print(
            f"into {language}: BLEU {values['bleu']:.1f}, chrF "
            f"{values['chrf']:.1f}, {values['exact']:.1%} of "
            f"{values['texts']:,} as the reference"
        )
    for source, text in zip(sources[:4], made, strict=False):
        print(f"  {source} → {text}")
    print(f"all of them     {folder}/translations.tsv")


if __name__ == "__main__":
    run_script(
        main,
        CONFIG,
        stages=lambda config: {"train": config.train},
        document=__doc__,
    )
