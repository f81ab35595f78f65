"""Owns the supervised fine-tuning stage: base model + chats -> chat model."""

import dataclasses
import functools
import hashlib
import math
import pathlib
import random

import keras

from kerasgpt.checkpoints.exchange import load_pretrained
from kerasgpt.config import Config, InputError, setting
from kerasgpt.data.packing import pack
from kerasgpt.data.prepare import (
    Corpus,
    DataConfig,
    fit_chats,
    prepare_chats,
)
from kerasgpt.data.shards import load_shards
from kerasgpt.generation.generate import Generator
from kerasgpt.models.gpt import ModelConfig
from kerasgpt.models.lora import LoRAConfig, add_lora
from kerasgpt.tokenizers.chat_template import ChatTemplate
from kerasgpt.training import pretrain, stage
from kerasgpt.training.distribution import (
    DISTRIBUTE_NAMES,
    build_strategy,
    on_chief,
    on_chief_only,
)
from kerasgpt.training.run_folder import claim_folder
from kerasgpt.training.stage import StageResult, TrainConfig


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Config):
    """How the models are asked when training is done."""

    questions_per_task: int = setting(
        50,
        "held-out questions of each task and language; of your own data, "
        "held-out conversations",
        minimum=1,
    )
    max_new_tokens: int = setting(64, "of a reply", unit="tokens", minimum=1)


@dataclasses.dataclass(frozen=True)
class SFTConfig(Config):
    """A chat model: conversations in, a model that answers out."""

    run_dir: str = setting("experiments/runs/shop_chat", "folder of the run")
    export_dir: str = setting(
        "",
        "where the SavedModel goes, as <version>/; empty = saved_models/ and "
        "the name of run_dir",
    )
    init: str = setting(
        "",
        "run, model or transformers folder, or keras_hub:PRESET, to start "
        "from; empty = pretrain one",
    )
    row_length: int | None = setting(
        None,
        "longest conversation that is trained; none = the model's context, "
        f"of init at most {pretrain.LONGEST_CONTEXT:,}",
        unit="tokens",
        minimum=8,
    )
    overwrite: bool = setting(False, "delete another run's run_dir first")
    seed: int = setting(0, "of weights and of the order of the data", minimum=0)
    distribute: str = setting(
        "auto",
        "which devices train together; auto = all GPUs, and all workers of "
        "TF_CONFIG",
        choices=DISTRIBUTE_NAMES,
    )
    shuffle_answers: bool = setting(
        False,
        "a control: every chat gets the answers of another, so that nothing "
        "can be learned but how answers look",
    )
    data: DataConfig = setting(DataConfig(), "what is learned from")
    tokenizer: pretrain.TokenizerConfig = setting(
        pretrain.TokenizerConfig(), "text to tokens"
    )
    model: ModelConfig = setting(ModelConfig(), "the network")
    pretrain: TrainConfig = setting(
        TrainConfig(steps=1600), "training of the base model"
    )
    train: TrainConfig = setting(
        TrainConfig(steps=1400, learning_rate_factor=0.5),
        "training of the chat model",
    )
    lora: LoRAConfig = setting(LoRAConfig(), "train few weights of the model")
    evaluation: EvaluationConfig = setting(EvaluationConfig(), "the report")

    def __post_init__(self):
        super().__post_init__()
        pretrain.check_init(self, ("model", "tokenizer", "pretrain"))

    @property
    def export_folder(self):
        """pathlib.Path of the exported versions."""
        name = pathlib.Path(self.run_dir).name
        return pathlib.Path(self.export_dir or f"saved_models/{name}")

    @property
    def base(self):
        """PretrainConfig of the base model, in a folder of its own.

        Beside `run_dir` and named by the settings and the hash of your files,
        so that runs which differ in their fine-tuning only share one base
        model, and changed files make a new one.
        """
        config = pretrain.PretrainConfig(
            run_dir="",
            seed=self.seed,
            distribute=self.distribute,
            data=self.data,
            tokenizer=self.tokenizer,
            model=self.model,
            train=self.pretrain,
        )
        shared = config.override(
            f"{key}={value}"
            for key, _, _, value, _ in pretrain.PretrainConfig().describe()
            if key in (*pretrain.FINE_TUNING_ONLY, *stage.HARDWARE_ONLY)
        )
        parent = pathlib.Path(self.run_dir).parent
        name = f"base_{shared.fingerprint()}"
        sources = pretrain.source_hashes(self.data)
        if sources:
            name += f"_{hashlib.sha256(sources.encode()).hexdigest()[:12]}"
        return dataclasses.replace(config, run_dir=str(parent / name))


@dataclasses.dataclass(frozen=True)
class SFTResult:
    """What fine-tuning leaves behind.

    Attributes:
        base: StageResult of the model it started from.
        chat: StageResult of the chat model.
        corpus: Corpus, with the conversations that were used.
        used_fraction: float. Share of packed positions that hold a token.
    """

    base: StageResult
    chat: StageResult
    corpus: Corpus
    used_fraction: float


def stages(config):
    """Returns dict of name to TrainConfig of what a run trains.

    Example:
        >>> list(stages(SFTConfig())), list(stages(SFTConfig(init="base")))
        (['pretrain', 'train'], ['train'])
    """
    before = {} if config.init else {"pretrain": config.pretrain}
    return {**before, "train": config.train}


def run(config, corpus, *, tell=print):
    """Fine-tunes a base model on conversations; pretrains it if need be.

    Args:
        config: SFTConfig.
        corpus: Corpus.
        tell: function of one str, prints a line.

    Returns:
        SFTResult.

    Raises:
        InputError: for data or settings that cannot be used.
    """
    strategy = build_strategy(config.distribute)
    tell = on_chief_only(tell, strategy)
    # First what may be mistyped: a claimed folder is bound to it.
    if config.init:
        model, tokenizer = load_pretrained(config.init)
        base = StageResult(model, tokenizer, pathlib.Path(config.init), {})
    folder = pathlib.Path(config.run_dir)
    on_chief(strategy, lambda: _claim(folder, config))
    if not config.init:
        base = pretrain.run(config.base, corpus, tell=tell)
    tokenizer = base.tokenizer
    context_length = config.row_length or base.model.config.context_length
    if config.init and not config.row_length:
        # Contexts of others are longer than a small machine can train.
        context_length = min(context_length, pretrain.LONGEST_CONTEXT)
    if context_length > base.model.config.context_length:
        raise InputError(
            f"row_length={context_length}: is more than the model's context "
            f"of {base.model.config.context_length}."
        )
    corpus = fit_chats(
        corpus,
        tokenizer,
        context_length,
        max_skipped_fraction=config.data.max_skipped_fraction,
    )
    trained = corpus
    if config.shuffle_answers:
        chats = shuffled_answers(corpus.chats, config.seed)
        trained = dataclasses.replace(corpus, chats=chats)
    on_chief(
        strategy,
        lambda: prepare_chats(
            trained,
            tokenizer,
            folder / "data",
            replay_fraction=config.data.replay_fraction,
            replay_length=context_length,
            seed=config.seed,
        ),
    )
    shards, manifest = load_shards(
        folder / "data", tokenizer_fingerprint=tokenizer.fingerprint()
    )
    rows = {
        name: pack(
            shard.token_ids,
            shard.loss_mask,
            shard.offsets,
            row_length=context_length,
        )
        for name, shard in shards.items()
    }
    keras.utils.set_random_seed(config.seed)
    model = stage.build_model(base.model.config, config.train, strategy)
    model.set_weights(base.model.get_weights())
    if config.lora.rank:
        with strategy.scope():
            add_lora(model, config.lora)
        count = sum(map(_size, model.trainable_variables))
        total = model.config.num_parameters
        tell(
            f"chat: trains {count:,} parameters beside {total:,} "
            f"({count / total:.2%})."
        )
    tell(
        f"chat: {len(corpus.chats):,} conversations and replayed documents, "
        f"{shards['train'].num_tokens:,} tokens, "
        f"{manifest['splits']['train']['trained_tokens']:,} of them trained, "
        f"in {len(rows['train']):,} rows "
        f"({rows['train'].used_fraction:.1%} used); "
        f"{len(corpus.skipped)} rows skipped."
    )
    template = ChatTemplate(tokenizer)
    prompts = [chat[: _first_reply(chat)] for chat in corpus.held_out_chats[:2]]
    prompts = [
        chat
        for chat in prompts
        if chat and len(template.prompt(chat)) < context_length
    ]
    build_generator = functools.cache(lambda model: Generator(model, tokenizer))

    def sample(model):
        replies = build_generator(model).reply(prompts, max_new_tokens=32)
        return "\n".join(
            f"{chat[-1]['content']} → {reply}"
            for chat, reply in zip(prompts, replies, strict=True)
        )

    chat = stage.train(
        model,
        tokenizer,
        rows,
        config.train,
        folder,
        name="chat",
        seed=config.seed,
        sample=sample,
        strategy=strategy,
        lora=config.lora if config.lora.rank else None,
        tell=tell,
    )
    return SFTResult(base, chat, corpus, rows["train"].used_fraction)


def _size(variable):
    return math.prod(variable.shape)


def _claim(folder, config):
    claim_folder(
        folder,
        config,
        overwrite=config.overwrite,
        ignored=(
            "run_dir",
            "overwrite",
            "export_dir",
            "evaluation",
            "pretrain.accumulate_steps",
            *stage.HARDWARE_ONLY,
        ),
    )
    pretrain.claim_data(folder, config.data, init=config.init)


def shuffled_answers(chats, seed):
    """Returns the chats with their assistant contents dealt out anew.

    Example:
        >>> chats = [[{"role": "assistant", "content": text}] for text in "ab"]
        >>> sorted(c[0]["content"] for c in shuffled_answers(chats, seed=0))
        ['a', 'b']
    """
    answers = [
        message["content"]
        for chat in chats
        for message in chat
        if message["role"] == "assistant"
    ]
    random.Random(seed).shuffle(answers)
    dealt = iter(answers)
    return [
        [
            {**message, "content": next(dealt)}
            if message["role"] == "assistant"
            else message
            for message in chat
        ]
        for chat in chats
    ]


def _first_reply(chat):
    return next(
        index
        for index, message in enumerate(chat)
        if message["role"] == "assistant"
    )
