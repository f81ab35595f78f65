"""Owns distillation: a finished run teaches a smaller model on its own data.

Not: the arithmetic of its loss (losses.py).
"""

import dataclasses
import functools
import pathlib

import keras

from kerasgpt.checkpoints.model_folder import load_model
from kerasgpt.config import Config, InputError, setting
from kerasgpt.data.packing import pack
from kerasgpt.data.shards import load_shards
from kerasgpt.files import read_json
from kerasgpt.generation.generate import Generator
from kerasgpt.models.gpt import ModelConfig
from kerasgpt.training import pretrain, stage
from kerasgpt.training.distribution import build_strategy
from kerasgpt.training.losses import distillation_loss
from kerasgpt.training.run_folder import claim_folder
from kerasgpt.training.stage import StageResult, TrainConfig
from kerasgpt.training.step import TrainStep

# How a student is trained; the first is the control.
ALONE, DISTILLED = "alone", "distilled"


@dataclasses.dataclass(frozen=True)
class TeacherConfig(Config):
    """What is learned from the teacher."""

    run: str = setting(
        "experiments/runs/base",
        "folder of a finished run of run_pretrain.py or run_sft.py, with its "
        "data",
    )
    temperature: float = setting(
        1.0,
        "that logits are divided by; higher = unlikely tokens count more",
        minimum=0.01,
    )
    fraction: float = setting(
        0.9,
        "of the loss that is the teacher's; the rest is that of the text",
        minimum=0.0,
        maximum=1.0,
    )


@dataclasses.dataclass(frozen=True)
class DistillConfig(Config):
    """Small models that learn from a larger one, and without it."""

    run_dir: str = setting("experiments/runs/distilled", "folder of the run")
    overwrite: bool = setting(False, "delete another run's run_dir first")
    num_seeds: int = setting(3, "runs, for mean and spread", minimum=1)
    teacher: TeacherConfig = setting(TeacherConfig(), "the larger model")
    model: ModelConfig = setting(
        ModelConfig(depth=2, model_dim=64), "the small network"
    )
    train: TrainConfig = setting(
        TrainConfig(steps=300), "training of each small model"
    )

    @property
    def tokenizer(self):
        """TokenizerConfig that a preflight assumes: it reads no teacher."""
        return pretrain.TokenizerConfig()


class DistillStep(TrainStep):
    """A train step whose loss is `distillation_loss`.

    Metrics, and evaluation, are those of the text alone, as in `TrainStep`.
    The teacher's logits are computed with the step, a chunk at a time: none
    are stored.

    Args:
        model: see `TrainStep`; of the teacher's vocabulary.
        teacher: task model, which is not changed.
        temperature, teacher_fraction: see `distillation_loss`.
        **settings: see `TrainStep`.
    """

    def __init__(
        self, model, *, teacher, temperature, teacher_fraction, **settings
    ):
        super().__init__(model, **settings)
        teacher.trainable = False
        self.teacher = teacher
        self.temperature = temperature
        self.teacher_fraction = teacher_fraction

    def loss_of(self, data, total_weight=None, *, training):
        if not training:
            return super().loss_of(data, total_weight, training=False)
        inputs, targets, sample_weight = data
        return distillation_loss(
            self.model.backbone(inputs, training=True),
            self.model.output_kernel(),
            targets,
            sample_weight,
            teacher_states=self.teacher.backbone(inputs, training=False),
            teacher_kernel=self.teacher.output_kernel(),
            temperature=self.temperature,
            teacher_fraction=self.teacher_fraction,
            total_weight=total_weight,
        )


@dataclasses.dataclass(frozen=True)
class DistillResult:
    """What distillation leaves behind.

    Attributes:
        folder: pathlib.Path of the run.
        teacher: StageResult of the larger model.
        students: dict of ALONE and DISTILLED to list of StageResult, a seed
            each.
    """

    folder: pathlib.Path
    teacher: StageResult
    students: dict


def stages(config):
    """Returns dict of name to TrainConfig of what a run trains.

    Example:
        >>> list(stages(DistillConfig(num_seeds=1)))
        ['train alone 0', 'train distilled 0']
    """
    return {
        f"train {name} {seed}": config.train
        for seed in range(config.num_seeds)
        for name in (ALONE, DISTILLED)
    }


def run(config, *, tell=print):
    """Trains small models, of each seed one alone and one with the teacher.

    Both begin with the same weights and see the same batches as often.

    Args:
        config: DistillConfig.
        tell: function of one str, prints a line.

    Returns:
        DistillResult.

    Raises:
        InputError: if the teacher is no finished run with its data, or the
            settings do not fit together.
    """
    teacher, rows = load_teacher(config.teacher.run)
    tokenizer = teacher.tokenizer
    model_config = config.model.build_config(
        vocabulary_size=tokenizer.vocabulary_size,
        context_length=teacher.model.config.context_length,
    )
    folder = claim_folder(
        config.run_dir,
        config,
        overwrite=config.overwrite,
        ignored=("run_dir", "overwrite", "num_seeds", *stage.HARDWARE_ONLY),
    )
    tell(
        f"teacher: {teacher.model.config.num_parameters:,} parameters, "
        f"validation loss {teacher.metrics['loss']:.4f}; students: "
        f"{model_config.num_parameters:,} parameters, "
        f"{len(rows['train']):,} rows of {rows['train'].row_length}."
    )
    students = {ALONE: [], DISTILLED: []}
    build_step = functools.partial(
        DistillStep,
        teacher=teacher.model,
        temperature=config.teacher.temperature,
        teacher_fraction=config.teacher.fraction,
    )
    for seed in range(config.num_seeds):
        for name, build in ((ALONE, TrainStep), (DISTILLED, build_step)):
            keras.utils.set_random_seed(seed)
            model = stage.build_model(
                model_config, config.train, build_strategy("none")
            )
            students[name].append(
                stage.train(
                    model,
                    tokenizer,
                    rows,
                    config.train,
                    folder / f"{name}_{seed}",
                    name=f"{name} {seed}",
                    seed=seed,
                    sample=_sampler(tokenizer),
                    build_step=build,
                    tell=tell,
                )
            )
    return DistillResult(folder, teacher, students)


def load_teacher(folder):
    """Returns a finished run's StageResult, and the rows it was trained on.

    Args:
        folder: str or Path of a run of run_sft.py or run_pretrain.py.

    Returns:
        StageResult, and dict of "train" and "validation" PackedRows.

    Raises:
        InputError: if it is not finished, or its data are missing or another
            tokenizer's.
    """
    folder = pathlib.Path(folder)
    model, tokenizer = load_model(folder)
    for name in ("result.json", "data"):
        if not (folder / name).exists():
            raise InputError(
                f"{folder}: holds no {name}; name the folder of a finished run "
                f"of run_sft.py or run_pretrain.py."
            )
    shards, _ = load_shards(
        folder / "data", tokenizer_fingerprint=tokenizer.fingerprint()
    )
    rows = {
        name: pack(
            shard.token_ids,
            shard.loss_mask,
            shard.offsets,
            row_length=model.config.context_length,
        )
        for name, shard in shards.items()
    }
    metrics = read_json(folder / "result.json")
    return StageResult(model, tokenizer, folder, metrics), rows


def _sampler(tokenizer):
    """Returns what tells, while a student is trained, what it writes."""
    build_generator = functools.cache(lambda model: Generator(model, tokenizer))
    return lambda model: build_generator(model).complete(
        [""], max_new_tokens=32
    )[0]
