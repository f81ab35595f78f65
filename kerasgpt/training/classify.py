"""Owns the classification stage: base model + labelled texts -> classifier."""

import dataclasses
import pathlib

import keras

from kerasgpt.checkpoints.model_folder import load_model
from kerasgpt.config import Config, setting
from kerasgpt.data.labelled import (
    LabelledConfig,
    LabelledCorpus,
    load_labelled,
    pack_labelled,
)
from kerasgpt.data.prepare import Corpus, DataConfig, load_corpus
from kerasgpt.evaluation.classification import class_probabilities
from kerasgpt.models.gpt import ModelConfig
from kerasgpt.models.heads import ClassifierConfig
from kerasgpt.training import pretrain, sft, stage
from kerasgpt.training.distribution import build_strategy
from kerasgpt.training.run_folder import claim_folder
from kerasgpt.training.stage import StageResult, TrainConfig


@dataclasses.dataclass(frozen=True)
class ClassifyConfig(Config):
    """A classifier: labelled texts in, a model that names classes out."""

    run_dir: str = setting("experiments/runs/classifier", "folder of the run")
    init: str = setting(
        "",
        "folder of a trained model to start from; empty = pretrain one, on the "
        "shop or on your training texts",
    )
    overwrite: bool = setting(False, "delete another run's run_dir first")
    seed: int = setting(0, "of weights and of the order of the data", minimum=0)
    is_pretrained: bool = setting(
        True, "start from the base's weights; false = a control, from random"
    )
    data: LabelledConfig = setting(LabelledConfig(), "what is learned from")
    tokenizer: pretrain.TokenizerConfig = setting(
        pretrain.TokenizerConfig(), "text to tokens"
    )
    model: ModelConfig = setting(ModelConfig(), "the network")
    pretrain: TrainConfig = setting(
        TrainConfig(steps=1600), "training of the base model"
    )
    train: TrainConfig = setting(
        TrainConfig(steps=200, evaluate_steps=25, learning_rate_factor=0.25),
        "training of the classifier",
    )

    def __post_init__(self):
        super().__post_init__()
        # Refuses what does not go together, such as init and model.
        _ = self.base

    @property
    def base(self):
        """PretrainConfig of the base model: the one that run_sft.py trains."""
        return sft.SFTConfig(
            run_dir=self.run_dir,
            init=self.init,
            seed=self.seed,
            distribute="none",
            data=DataConfig(
                path=self.data.path,
                world_seed=self.data.world_seed,
                num_products=self.data.num_products,
                num_documents=self.data.num_documents,
                num_chats=self.data.num_chats,
                # No chat is trained on here, so none must fit the context.
                max_skipped_fraction=1.0,
            ),
            tokenizer=self.tokenizer,
            model=self.model,
            pretrain=self.pretrain,
        ).base


@dataclasses.dataclass(frozen=True)
class ClassifyResult:
    """What training a classifier leaves behind.

    Attributes:
        base: StageResult of the model it started from.
        classifier: StageResult of the classifier.
        corpus: LabelledCorpus.
        num_cut: int, training texts that lost their end.
    """

    base: StageResult
    classifier: StageResult
    corpus: LabelledCorpus
    num_cut: int


def run(config, *, tell=print):
    """Trains a classifier on a base model's backbone; pretrains it if need be.

    Args:
        config: ClassifyConfig.
        tell: function of one str, prints a line.

    Returns:
        ClassifyResult.

    Raises:
        InputError: for data or settings that cannot be used.
    """
    corpus = load_labelled(config.data)
    if config.init:
        model, tokenizer = load_model(config.init)
        base = StageResult(model, tokenizer, pathlib.Path(config.init), {})
    folder = claim_folder(
        config.run_dir,
        config,
        overwrite=config.overwrite,
        ignored=("run_dir", "overwrite", *stage.HARDWARE_ONLY),
    )
    # All that is read: what is tested decides what may be learned.
    read = DataConfig(
        path=config.data.path, documents_path=config.data.test_path
    )
    pretrain.claim_data(folder, read, init=config.init)
    if not config.init:
        base = pretrain.run(config.base, _texts(config, corpus), tell=tell)
    tokenizer = base.tokenizer
    context_length = base.model.config.context_length
    rows, num_cut = {}, 0
    for name, texts in (
        ("train", corpus.train),
        ("validation", corpus.validation),
    ):
        rows[name], cut = pack_labelled(
            texts, corpus.labels, tokenizer, context_length
        )
        num_cut += cut
    tell(
        f"classifier: {len(corpus.train):,} training texts of "
        f"{len(corpus.labels)} classes in {len(rows['train']):,} rows of "
        f"{context_length} ({rows['train'].used_fraction:.1%} used), "
        f"{len(corpus.validation):,} for validation, {len(corpus.test):,} held "
        f"out; {num_cut} lost their end."
    )
    keras.utils.set_random_seed(config.seed)
    model = stage.build_model(
        ClassifierConfig.of(base.model.config, corpus.labels),
        config.train,
        build_strategy("none"),
    )
    if config.is_pretrained:
        model.take_backbone(base.model)
    shown = [row.text for row in corpus.validation[:4]]

    def sample(model):
        found = class_probabilities(model, tokenizer, shown).argmax(1)
        return "\n".join(
            f"{text} → {corpus.labels[number]}"
            for text, number in zip(shown, found, strict=True)
        )

    classifier = stage.train(
        model,
        tokenizer,
        rows,
        config.train,
        folder,
        name="classifier",
        seed=config.seed,
        sample=sample,
        counts_bytes=False,
        tell=tell,
    )
    return ClassifyResult(base, classifier, corpus, num_cut)


def _texts(config, corpus):
    """Returns the Corpus that a base model is pretrained on."""
    if not config.data.path:
        return load_corpus(config.base.data)
    texts = [row.text for row in corpus.train]
    return Corpus(texts, [], [], [], corpus.skipped, None)
