"""Owns the supervised fine-tuning stage: base model + chats -> chat model."""

import dataclasses
import hashlib
import pathlib
import random

import keras
import numpy as np

from kerasgpt.checkpoints.model_folder import load_model
from kerasgpt.config import Config, InputError, setting
from kerasgpt.data.packing import pack
from kerasgpt.data.prepare import DataConfig, held_out_chats, prepare_chats
from kerasgpt.data.sources import Skipped, check_skipped
from kerasgpt.generation.generate import Generator
from kerasgpt.models.gpt import GPTCausalLM, ModelConfig
from kerasgpt.training import pretrain, stage
from kerasgpt.training.stage import StageResult, TrainConfig


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Config):
    """How the models are asked when training is done."""

    questions_per_task: int = setting(
        50,
        "held-out questions of each task and language; of your own data, "
        "held-out conversations",
    )
    max_new_tokens: int = setting(64, "of a reply", unit="tokens")

    def __post_init__(self):
        for name in ("questions_per_task", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"evaluation.{name}={getattr(self, name)}: must be at "
                    f"least 1."
                )


@dataclasses.dataclass(frozen=True)
class SFTConfig(Config):
    """A chat model: conversations in, a model that answers out."""

    run_dir: str = setting("experiments/runs/shop_sft", "folder of the run")
    export_dir: str = setting(
        "saved_models/shop_chat", "where the SavedModel goes, as <version>/"
    )
    init: str = setting(
        "", "folder of a trained model to start from; empty = pretrain one"
    )
    overwrite: bool = setting(False, "delete another run's run_dir first")
    seed: int = setting(0, "of weights and of the order of the data")
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
    evaluation: EvaluationConfig = setting(EvaluationConfig(), "the report")

    @property
    def base(self):
        """PretrainConfig of the base model, in a folder of its own.

        Beside `run_dir` and named by the settings and the hash of your files,
        so that runs which differ in their fine-tuning only share one base
        model, and changed files make a new one.
        """
        defaults = DataConfig()
        config = pretrain.PretrainConfig(
            run_dir="",
            seed=self.seed,
            data=dataclasses.replace(
                self.data,
                replay_fraction=defaults.replay_fraction,
                max_skipped_fraction=defaults.max_skipped_fraction,
            ),
            tokenizer=self.tokenizer,
            model=self.model,
            train=self.pretrain,
        )
        parent = pathlib.Path(self.run_dir).parent
        name = f"base_{config.fingerprint()}"
        sources = pretrain.source_hashes(self.data)
        if sources:
            name += f"_{hashlib.sha256(sources.encode()).hexdigest()[:12]}"
        return dataclasses.replace(config, run_dir=str(parent / name))


def run(config, corpus, *, tell=print):
    """Fine-tunes a base model on conversations; pretrains it if need be.

    Args:
        config: SFTConfig.
        corpus: Corpus.
        tell: function of one str, prints a line.

    Returns:
        (base, chat), two StageResult.

    Raises:
        InputError: for data or settings that cannot be used.
    """
    # First what may be mistyped: a claimed folder is bound to it.
    if config.init:
        model, tokenizer = load_model(config.init)
        base = StageResult(model, tokenizer, pathlib.Path(config.init), {})
    folder = stage.claim_folder(
        config.run_dir,
        config,
        overwrite=config.overwrite,
        ignored=("run_dir", "overwrite", "export_dir", "evaluation"),
    )
    pretrain.claim_data(folder, config.data)
    if not config.init:
        base = pretrain.run(config.base, corpus, tell=tell)
    tokenizer = base.tokenizer
    chats = corpus.chats
    if config.shuffle_answers:
        chats = shuffled_answers(chats, config.seed)
    shards, manifest = prepare_chats(
        chats,
        tokenizer,
        folder / "data",
        validation_fraction=config.data.validation_fraction,
        replay=corpus.replay,
        replay_fraction=config.data.replay_fraction,
        replay_length=base.model.config.context_length,
        skipped=corpus.skipped,
    )
    context_length = base.model.config.context_length
    rows, too_long = {}, []
    for name, shard in shards.items():
        fits = np.diff(shard.offsets) <= context_length + 1
        too_long += [
            Skipped(
                f"{name} text {index + 1}",
                f"{length} tokens are longer than the context of "
                f"{context_length}",
            )
            for index, length in enumerate(np.diff(shard.offsets))
            if not fits[index]
        ]
        rows[name] = pack(
            shard.token_ids,
            shard.loss_mask,
            shard.offsets,
            row_length=context_length,
            is_kept=fits,
        )
    check_skipped(
        config.data.path or "the shop",
        too_long,
        len(chats),
        config.data.max_skipped_fraction,
    )
    if not all(len(part) for part in rows.values()):
        raise InputError(
            f"no conversation fits model.context_length={context_length}."
        )
    keras.utils.set_random_seed(config.seed)
    model = GPTCausalLM(base.model.config, name="gpt")
    model.build()
    model.set_weights(base.model.get_weights())
    tell(
        f"chat: {shards['train'].num_documents:,} conversations, "
        f"{shards['train'].num_tokens:,} tokens, "
        f"{manifest['splits']['train']['trained_tokens']:,} of them trained, "
        f"in {len(rows['train']):,} rows "
        f"({rows['train'].used_fraction:.1%} used); "
        f"{len(corpus.skipped) + len(too_long)} rows skipped."
    )
    prompts = [
        chat[: _first_reply(chat)]
        for chat in held_out_chats(chats, config.data.validation_fraction)[:2]
    ]
    generator = Generator(model, tokenizer)

    def sample(_):
        fitting = [
            chat
            for chat in prompts
            if len(generator.template.prompt(chat)) < context_length
        ]
        replies = generator.reply(fitting, max_new_tokens=32) if fitting else []
        return "\n".join(
            f"{chat[-1]['content'] if chat else ''} → {reply}"
            for chat, reply in zip(fitting, replies, strict=True)
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
        tell=tell,
    )
    skipped = [*corpus.skipped, *too_long]
    return base, dataclasses.replace(
        chat,
        metrics={
            **chat.metrics,
            "used_fraction": rows["train"].used_fraction,
            "skipped": [dataclasses.asdict(row) for row in skipped],
        },
    )


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
