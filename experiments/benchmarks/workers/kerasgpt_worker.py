"""Does what is timed of ours.

Settings: job, and what the job's function reads.
"""

import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

import keras
import numpy as np
import tensorflow as tf

from experiments.benchmarks.workers.gpt_task import (
    batches,
    first_weights,
    loss_head_inputs,
)
from experiments.benchmarks.workers.kerasgpt_model import (
    GPT2,
    build_model,
    model_config,
)
from experiments.benchmarks.workers.protocol import (
    repeat,
    repeat_with_memory,
    serve,
    timed,
    versions,
)
from kerasgpt.checkpoints import RunState, save_run_state
from kerasgpt.data.packing import pack
from kerasgpt.data.pipelines import (
    build_evaluation_dataset,
    build_training_dataset,
)
from kerasgpt.data.sources import read_text
from kerasgpt.files import BackgroundWriter
from kerasgpt.models import GPTCausalLM, ModelConfig
from kerasgpt.tokenizers import ByteTokenizer
from kerasgpt.training.losses import next_token_loss
from kerasgpt.training.optimizers import build_optimizer
from kerasgpt.training.schedules import build_schedule
from kerasgpt.training.stage import TrainConfig
from kerasgpt.training.step import TrainStep


def build_step(task):
    """Returns a compiled TrainStep, with the first weights of the task."""
    settings = {} if task["with_defaults"] else GPT2
    model = build_model(model_config(task, **settings), first_weights(task))
    step = TrainStep(model)
    step.build()
    optimizer = build_optimizer(
        "muon" if task["with_defaults"] else "adamw",
        task["learning_rate"],
        weight_decay=task["weight_decay"],
        beta_2=task["beta_2"],
    )
    optimizer.build(model.trainable_variables)
    step.compile(
        optimizer=optimizer,
        jit_compile=True,
        steps_per_execution=task["num_batches"],
    )
    return step


def build_dataset(task):
    """Returns the batches of one repetition, as the pipelines give them."""
    tokens = batches(task)
    shape = tokens[..., 1:].shape
    positions = np.arange(shape[-1], dtype=np.int32)
    inputs = {
        "token_ids": tokens[..., :-1],
        "positions": np.broadcast_to(positions, shape),
        "segment_ids": np.ones(shape, np.int32),
    }
    targets, sample_weight = tokens[..., 1:], np.ones(shape, np.float32)
    options = tf.data.Options()
    options.autotune.enabled = False
    return (
        tf.data.Dataset.from_tensor_slices((inputs, targets, sample_weight))
        .prefetch(4)
        .with_options(options)
    )


def train_step(task):
    step, dataset = build_step(task), build_dataset(task)

    def epoch():
        return step.fit(dataset, verbose=0).history["loss"][0]

    (first, loss), (second, next_loss) = timed(epoch), timed(epoch)
    config = step.model.config
    facts = {
        "parameters": config.num_parameters,
        "flops_per_token": config.training_flops_per_token,
        "losses": [loss, next_loss],
        "compile_seconds": first - second,
        "versions": versions("keras", "tensorflow"),
    }
    return facts, repeat(epoch)


def loss_head(settings):
    """Our loss of hidden states, or the plain one by whole logits."""
    hidden_states, kernel, targets = map(
        tf.constant, loss_head_inputs(settings)
    )
    hidden_states, targets = hidden_states[None], targets[None]
    sample_weight = tf.ones(targets.shape)

    @tf.function(jit_compile=True)
    def gradients(hidden_states, kernel, targets, sample_weight):
        with tf.GradientTape() as tape:
            tape.watch((hidden_states, kernel))
            if settings["plain"]:
                logits = tf.matmul(
                    hidden_states, kernel[None], transpose_b=True
                )
                loss = tf.reduce_mean(
                    keras.ops.sparse_categorical_crossentropy(
                        targets, logits, from_logits=True
                    )
                )
            else:
                loss, *_ = next_token_loss(
                    hidden_states, kernel, targets, sample_weight
                )
        return loss, tape.gradient(loss, (hidden_states, kernel))

    def call():
        loss, _ = gradients(hidden_states, kernel, targets, sample_weight)
        return float(loss)

    facts = {"losses": [call()], "versions": versions("keras", "tensorflow")}
    return facts, repeat_with_memory(call)


def input_pipeline(task):
    """Steps of packed documents, of one batch again and again; no steps."""
    generator = np.random.default_rng(2)
    lengths = generator.integers(20, 60, size=task["num_documents"])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    token_ids = generator.integers(task["vocabulary_size"], size=offsets[-1])
    rows = pack(
        token_ids.astype(np.uint16),
        np.ones(offsets[-1], np.uint8),
        offsets,
        row_length=task["context_length"],
    )
    steps = task["steps"]
    pipeline = build_training_dataset(
        rows,
        batch_size=task["batch_size"],
        seed=0,
        start_step=0,
        num_steps=steps,
    )
    batch = next(iter(pipeline))
    same = tf.data.Dataset.from_tensors(batch).repeat(steps)
    same = same.with_options(pipeline.options())
    step = build_step(task)
    sources = {
        "pipeline": lambda: step.fit(pipeline, verbose=0, shuffle=False),
        "batch": lambda: step.fit(same, verbose=0, shuffle=False),
        "alone": lambda: sum(1 for _ in pipeline),
    }
    for function in sources.values():
        function()

    def run(request):
        return {
            "source": request["source"],
            "seconds": [timed(sources[request["source"]])[0]],
        }

    return {"versions": versions("keras", "tensorflow")}, run


def checkpoint(task):
    """Steps, with or without saving the state of the run before them."""
    step, dataset = build_step(task), build_dataset(task)

    def train():
        step.fit(dataset, verbose=0)

    def save():
        writer.wait()
        state = RunState.of(step.model, step.optimizer, step=0, progress={})
        writer.start(lambda: save_run_state(folder.name, state, keep_last=1))

    def run(request):
        blocked = timed(save)[0] if request["save"] else 0.0
        seconds = timed(train)[0]
        writer.wait()
        state = pathlib.Path(folder.name).rglob("*.safetensors")
        return {
            "seconds": [seconds],
            "blocked_seconds": blocked,
            "bytes": sum(file.stat().st_size for file in state),
        }

    writer = BackgroundWriter()
    # On the disk of real runs.
    folder = tempfile.TemporaryDirectory(dir=task["folder"])
    train()
    run({"save": True})
    return {"versions": versions("keras", "tensorflow")}, run


def race(settings):
    """The recipe of run_shakespeare.py, to be trained in stretches."""
    stretch = settings["stretch_steps"]
    config = TrainConfig.from_dict(settings["train"])
    tokenizer = ByteTokenizer()
    token_ids = np.array(tokenizer.encode(read_text(settings["path"])))
    model_config = ModelConfig.from_dict(settings["model"]).build_config(
        vocabulary_size=tokenizer.vocabulary_size, context_length=64
    )
    cut = int(0.9 * len(token_ids))
    train, validation = (
        pack(
            part,
            np.ones(len(part), np.uint8),
            np.array([0, len(part)]),
            row_length=model_config.context_length,
        )
        for part in (token_ids[:cut], token_ids[cut:])
    )
    model = GPTCausalLM(model_config, name="gpt")
    step = TrainStep(
        model, clip_norm=config.clip_norm, token_bytes=tokenizer.token_bytes
    )
    step.build()
    optimizer = build_optimizer(
        config.optimizer,
        build_schedule(
            config.schedule,
            config.peak_learning_rate(model_config.model_dim),
            total_steps=config.steps,
            warmup_fraction=config.warmup_fraction,
            decay_fraction=config.decay_fraction,
            final_fraction=config.final_fraction,
        ),
        weight_decay=config.weight_decay,
        muon_learning_rate_ratio=config.muon_learning_rate_ratio,
    )
    optimizer.build(model.trainable_variables)
    untouched = [variable.numpy() for variable in optimizer.variables]
    step.compile(
        optimizer=optimizer,
        jit_compile=config.jit_compile,
        steps_per_execution=min(config.log_steps, stretch),
    )
    held_out = build_evaluation_dataset(validation, batch_size=64)

    def reset(seed):
        keras.utils.set_random_seed(seed)
        fresh = GPTCausalLM(model_config, name="gpt")
        fresh.build()
        model.set_weights(fresh.get_weights())
        for variable, value in zip(optimizer.variables, untouched, strict=True):
            variable.assign(value)

    def train_stretch(seed, start):
        dataset = build_training_dataset(
            train,
            batch_size=config.batch_tokens // train.row_length,
            seed=seed,
            start_step=start,
            num_steps=min(start + stretch, config.steps),
        )
        step.fit(dataset, verbose=0, shuffle=False)

    def run(request):
        start = request["step"]
        if start == 0:
            reset(request["seed"])
        seconds, _ = timed(lambda: train_stretch(request["seed"], start))
        metrics = step.evaluate(held_out, verbose=0, return_dict=True)
        return {
            "seconds": [seconds],
            "step": min(start + stretch, config.steps),
            "loss": metrics["loss"],
        }

    (first, _), (second, _) = (timed(lambda: train_stretch(0, 0)) for _ in "12")
    facts = {
        "parameters": model_config.num_parameters,
        "validation_tokens": len(token_ids) - cut,
        "steps": config.steps,
        "compile_seconds": first - second,
        "versions": versions("keras", "tensorflow"),
    }
    return facts, run


JOBS = {
    "train_step": train_step,
    "loss_head": loss_head,
    "input_pipeline": input_pipeline,
    "checkpoint": checkpoint,
    "race": race,
}

if __name__ == "__main__":
    serve(lambda settings: JOBS[settings["job"]](settings))
