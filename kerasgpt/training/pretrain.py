"""Owns the pretraining stage: texts -> tokenizer -> base model."""

import dataclasses
import functools
import hashlib
import pathlib
import random

import keras
import numpy as np

from kerasgpt.checkpoints.exchange import load_pretrained, pretrained_hash
from kerasgpt.checkpoints.model_folder import (
    load_tokenizer,
    save_tokenizer,
)
from kerasgpt.config import Config, InputError, setting
from kerasgpt.data.packing import pack
from kerasgpt.data.prepare import (
    Corpus,
    DataConfig,
    fit_chats,
    load_corpus,
    prepare_documents,
)
from kerasgpt.data.shards import load_shards
from kerasgpt.data.sources import TFDS_PREFIX, list_files
from kerasgpt.files import (
    atomic_folder,
    file_hash,
    read_manifest,
    write_manifest,
    write_text,
)
from kerasgpt.generation.generate import Generator
from kerasgpt.models.gpt import ModelConfig
from kerasgpt.tokenizers.chat_template import ChatTemplate
from kerasgpt.tokenizers.kinds import EXACT_KINDS, train_tokenizer
from kerasgpt.training import stage
from kerasgpt.training.distribution import (
    DISTRIBUTE_NAMES,
    build_strategy,
    on_chief,
    on_chief_only,
)
from kerasgpt.training.run_folder import claim_folder
from kerasgpt.training.stage import TrainConfig
from kerasgpt.training.tokenizer import open_tokenizer

# Settings of the data that change nothing about a base model.
FINE_TUNING_ONLY = ("data.replay_fraction", "data.max_skipped_fraction")
DEFAULT_CONTEXT, LONGEST_CONTEXT = 256, 2048
# Enough text for a small vocabulary, and little enough to train it in seconds.
TOKENIZER_CHARACTERS = 16_000_000


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(Config):
    """How text is cut into tokens."""

    kind: str = setting(
        "sentence_piece",
        "learned pieces, merged (sentence_piece) or likeliest (unigram), "
        "pairs of bytes as GPT-2 and Llama 3 have them, or plain bytes",
        choices=EXACT_KINDS,
    )
    path: str = setting(
        "",
        "folder of a tokenizer to use, ours or of Hugging Face; empty = train "
        "one",
    )
    vocabulary_size: int = setting(
        2048,
        "pieces, control tokens and bytes included",
        unit="tokens",
        minimum=300,
    )


@dataclasses.dataclass(frozen=True)
class PretrainConfig(Config):
    """A base model: texts in, a model that continues texts out."""

    run_dir: str = setting("experiments/runs/base", "folder of the run")
    init: str = setting(
        "",
        "run, model or transformers folder, or keras_hub:PRESET, whose model "
        "goes on learning; empty = a new one",
    )
    overwrite: bool = setting(False, "delete another run's run_dir first")
    seed: int = setting(0, "of weights and of the order of the data", minimum=0)
    distribute: str = setting(
        "auto",
        "which devices train together; auto = all GPUs, and all workers of "
        "TF_CONFIG",
        choices=DISTRIBUTE_NAMES,
    )
    data: DataConfig = setting(DataConfig(), "what is learned from")
    tokenizer: TokenizerConfig = setting(TokenizerConfig(), "text to tokens")
    model: ModelConfig = setting(ModelConfig(), "the network")
    train: TrainConfig = setting(TrainConfig(steps=1600), "the training")

    def __post_init__(self):
        super().__post_init__()
        check_init(self, ("model", "tokenizer"))


def check_init(config, brought):
    """Refuses settings of what the model that a run starts from brings.

    Args:
        config: Config with `init`, "" = a new model.
        brought: tuple of str, the sections.

    Raises:
        InputError: naming the section.
    """
    # The dataclass' own defaults, so that no number stands here twice.
    for field in dataclasses.fields(config):
        if (
            config.init
            and field.name in brought
            and getattr(config, field.name) != field.default
        ):
            raise InputError(
                f"init={config.init}: brings its own model and tokenizer; "
                f"leave out {field.name}.*"
            )


def run(config, corpus=None, *, tell=print):
    """Trains a tokenizer and a base model, or returns those of earlier.

    Args:
        config: PretrainConfig.
        corpus: Corpus, if it is loaded already, for fine-tuning later: its
            conversations must fit the context. `None` = load it.
        tell: function of one str, prints a line.

    Returns:
        StageResult.

    Raises:
        InputError: for data or settings that cannot be used.
    """
    strategy = build_strategy(config.distribute)
    tell = on_chief_only(tell, strategy)
    is_for_chats = corpus is not None
    if corpus is None:
        corpus = load_corpus(config.data, with_chats=False)
    folder = pathlib.Path(config.run_dir)
    keras.utils.set_random_seed(config.seed)
    # First what may be mistyped: a claimed folder is bound to it.
    known = load_pretrained(config.init) if config.init else None
    on_chief(
        strategy,
        lambda: _prepare(
            config, corpus, folder, known=known, is_for_chats=is_for_chats
        ),
    )
    tokenizer = load_tokenizer(folder / "tokenizer")
    model_config = (
        known[0].config if known else _model_config(config, corpus, tokenizer)
    )
    row_length = model_config.context_length
    if known:
        # Contexts of others are longer than a small machine can train.
        row_length = min(row_length, LONGEST_CONTEXT)
    shards, _ = load_shards(
        folder / "data", tokenizer_fingerprint=tokenizer.fingerprint()
    )
    rows = {
        name: pack(
            shard.token_ids,
            shard.loss_mask,
            shard.offsets,
            row_length=row_length,
        )
        for name, shard in shards.items()
    }
    model = stage.build_model(model_config, config.train, strategy)
    if known:
        model.set_weights(known[0].get_weights())
    tell(
        f"base: {model_config.num_parameters:,} parameters, "
        f"{shards['train'].num_documents:,} documents, "
        f"{shards['train'].num_tokens:,} tokens in {len(rows['train']):,} "
        f"rows of {row_length} "
        f"({rows['train'].used_fraction:.1%} used)."
    )
    build_generator = functools.cache(lambda model: Generator(model, tokenizer))
    prompts = [
        words
        for words in map(_first_words, corpus.documents[:2])
        if len(tokenizer.encode(words)) + 2 < model_config.context_length
    ]

    def sample(model):
        texts = build_generator(model).complete(prompts, max_new_tokens=32)
        return "\n".join(
            f"{prompt} → {text}"
            for prompt, text in zip(prompts, texts, strict=True)
        )

    return stage.train(
        model,
        tokenizer,
        rows,
        config.train,
        folder,
        name="base",
        seed=config.seed,
        sample=sample,
        strategy=strategy,
        tell=tell,
    )


def _prepare(config, corpus, folder, *, known, is_for_chats):
    """Makes a run's folder, its tokenizer and its shards.

    `known`: (model, tokenizer) that the run starts from, or None.
    """
    # First what the user may have mistyped: a claimed folder is bound to it.
    claim_folder(
        folder,
        config,
        overwrite=config.overwrite,
        ignored=(
            "run_dir",
            "overwrite",
            *FINE_TUNING_ONLY,
            *stage.HARDWARE_ONLY,
        ),
    )
    claim_data(folder, config.data, init=config.init)
    tokenizer = build_tokenizer(
        folder / "tokenizer",
        corpus,
        config.tokenizer,
        known=known[1] if known else None,
    )
    if is_for_chats:
        # Now, not after an hour of pretraining.
        fit_chats(
            corpus,
            tokenizer,
            _model_config(config, corpus, tokenizer).context_length,
            max_skipped_fraction=config.data.max_skipped_fraction,
        )
    prepare_documents(
        corpus.documents,
        tokenizer,
        folder / "data",
        validation_fraction=config.data.validation_fraction,
        is_validation=corpus.is_validation_document,
    )


def _model_config(config, corpus, tokenizer):
    return config.model.build_config(
        vocabulary_size=tokenizer.vocabulary_size,
        context_length=choose_context(corpus, tokenizer),
    )


def open_run(config, texts, data, *, ignored=()):
    """Claims the folder of a run that trains one model of any kind.

    Args:
        config: Config with run_dir, overwrite, seed and tokenizer.
        texts: list of str, to train a tokenizer on.
        data: DataConfig of what the run reads.
        ignored: tuple of str. Settings that may differ when it goes on.

    Returns:
        pathlib.Path of the run, and its Tokenizer.

    Raises:
        InputError: if the folder belongs to another run or other data.
    """
    folder = claim_folder(
        config.run_dir,
        config,
        overwrite=config.overwrite,
        ignored=("run_dir", "overwrite", *FINE_TUNING_ONLY, *ignored),
    )
    keras.utils.set_random_seed(config.seed)
    claim_data(folder, data)
    corpus = Corpus(texts, [], [], [], [], None)
    return folder, build_tokenizer(
        folder / "tokenizer", corpus, config.tokenizer
    )


def build_tokenizer(folder, corpus, config, *, known=None):
    """Returns the tokenizer saved in `folder`, trained if there is none.

    Args:
        folder: pathlib.Path.
        corpus: Corpus to train it on.
        config: TokenizerConfig.
        known: Tokenizer to save instead of training one.
    """
    if folder.is_dir():
        read_manifest(folder)
        return load_tokenizer(folder)
    if known is not None:
        return _keep_tokenizer(folder, known)
    if config.path:
        tokenizer = open_tokenizer(config.path)
        if tokenizer.kind not in EXACT_KINDS:
            raise InputError(
                f"tokenizer.path={config.path}: a tokenizer of kind "
                f"{tokenizer.kind!r} does not give texts back, which a model "
                f"that writes needs."
            )
        return _keep_tokenizer(folder, tokenizer)
    texts = corpus.documents + [
        message["content"] for chat in corpus.chats for message in chat
    ]
    share = TOKENIZER_CHARACTERS / max(1, sum(map(len, texts)))
    if share < 1:
        # Not every n-th: roles and languages may alternate.
        texts = random.Random(0).sample(texts, int(share * len(texts)))
    tokenizer = train_tokenizer(
        config.kind, texts, vocabulary_size=config.vocabulary_size
    )
    return _keep_tokenizer(folder, tokenizer)


def _keep_tokenizer(folder, tokenizer):
    with atomic_folder(folder) as temporary:
        save_tokenizer(temporary, tokenizer)
        write_manifest(temporary)
    return tokenizer


def choose_context(corpus, tokenizer):
    """Returns a context length that the conversations fit into.

    256 tokens, or the next power of two that holds 98 in 100 conversations, at
    most 2,048: attention costs grow with its square.
    """
    if corpus.world is not None or not corpus.chats:
        return DEFAULT_CONTEXT
    template = ChatTemplate(tokenizer)
    chats = random.Random(0).sample(corpus.chats, min(500, len(corpus.chats)))
    lengths = [len(template.render(chat)[0]) for chat in chats]
    needed = int(np.quantile(lengths, 0.98))
    context = DEFAULT_CONTEXT
    while context < min(needed, LONGEST_CONTEXT):
        context *= 2
    return context


def claim_data(folder, config, *, init=""):
    """Refuses to go on with a run whose input files have changed since.

    Args:
        folder: pathlib.Path of the run.
        config: DataConfig.
        init: str, what the run starts from, if anything.

    Raises:
        InputError: naming the folder and the cure.
    """
    text = source_hashes(config)
    if init:
        text += f"\ninit {pretrained_hash(init)}"
    path = folder / "sources.txt"
    if path.is_file() and path.read_text() != text:
        raise InputError(
            f"{folder}: the data changed since this run began; choose another "
            f"run_dir, or set overwrite=true."
        )
    write_text(path, text)


def source_hashes(config):
    """Returns a line for each input file or folder: the setting, its hash.

    Raises:
        InputError: if one does not exist.
    """
    found = {}
    for name in ("path", "documents_path"):
        source = getattr(config, name)
        if source and not source.startswith(TFDS_PREFIX):
            found[name] = _source_hash(pathlib.Path(source))
    return "\n".join(f"{name} {value}" for name, value in found.items())


def _source_hash(path):
    if not path.exists():
        raise InputError(f"{path}: no such file.")
    text = "\n".join(
        f"{file.name} {file_hash(file)}" for file in list_files(path)
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _first_words(text):
    return text.split("\n")[0][:24]
