"""Question  What does each rung buy, from counting to a Transformer, on one
          text: uniform, unigram, n-grams, RNN, GRU, LSTM, GPT?
Command   python experiments/run_baselines.py [data.path=tinyshakespeare.txt]
"""

import contextlib
import dataclasses
import functools
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import keras
import numpy as np

from kerasgpt.cli import run_script
from kerasgpt.config import Config, InputError, setting
from kerasgpt.data import shop
from kerasgpt.data.packing import pack
from kerasgpt.data.prepare import split_rows
from kerasgpt.data.sources import read_text
from kerasgpt.evaluation.ladder import (
    Rung,
    steps_that_do_not_rise,
    write_ladder,
)
from kerasgpt.evaluation.likelihood import NetworkScorer, score_rows
from kerasgpt.files import read_json, write_json
from kerasgpt.generation import Generator
from kerasgpt.models import ModelConfig, NGramModel, RecurrentConfig
from kerasgpt.tokenizers import ByteTokenizer
from kerasgpt.training import pretrain, stage
from kerasgpt.training.distribution import build_strategy
from kerasgpt.training.run_folder import claim_folder

# Held-out bits a byte that others report for this text; of counted characters
# no figure was found.
SHAKESPEARE_REFERENCES = (
    (
        "nanoGPT on a CPU",
        1.88 / np.log(2),
        "README of karpathy/nanoGPT: 0.8M, 2,000 steps, 20 batches",
    ),
    (
        "torch-rnn's LSTM, 3 x 800",
        1.629 / np.log(2),
        "jcjohnson/torch-rnn, pull request 20: 3.8 epochs, its own split",
    ),
)
SAMPLE_TOKENS, PROMPT_CHARACTERS = 160, 24


@dataclasses.dataclass(frozen=True)
class TextConfig(Config):
    """What is learned from; the same splits for all."""

    path: str = setting(
        "",
        "a UTF-8 text file, its last tenth held out; empty = the embedded "
        "shop's documents",
    )
    world_seed: int = setting(0, "which shop")
    num_products: int = setting(
        100, "products of the shop", minimum=20, maximum=2000
    )
    num_documents: int = setting(8000, "documents about the shop", minimum=2)
    validation_fraction: float = setting(
        0.1, "share of the shop's documents", minimum=0.0, maximum=0.9
    )


@dataclasses.dataclass(frozen=True)
class RecurrentShape(Config):
    """Shape of the recurrent networks."""

    num_layers: int = setting(2, "recurrent layers", minimum=1)
    model_dim: int = setting(256, "width", minimum=1)
    dropout_rate: float = setting(
        0.0, "of what enters a layer", minimum=0.0, maximum=0.9
    )


@dataclasses.dataclass(frozen=True)
class BaselinesConfig(Config):
    """Models of every sort on one text."""

    run_dir: str = setting("experiments/runs/baselines", "folder of the run")
    overwrite: bool = setting(False, "delete another run's run_dir first")
    seed: int = setting(0, "of weights and of the order of the data", minimum=0)
    k: float = setting(0.01, "what add-k adds to each count", minimum=1e-9)
    data: TextConfig = setting(TextConfig(), "what is learned from")
    tokenizer: pretrain.TokenizerConfig = setting(
        pretrain.TokenizerConfig(kind="byte"), "text to tokens"
    )
    model: ModelConfig = setting(
        ModelConfig(depth=4, context_length=64), "the GPT"
    )
    recurrent: RecurrentShape = setting(RecurrentShape(), "RNN, GRU and LSTM")
    rnn_train: stage.TrainConfig = setting(
        # At the rate of the others it ends behind the 5-gram.
        stage.TrainConfig(
            steps=2000,
            learning_rate_factor=0.4,
            batch_tokens=2048,
            evaluate_steps=500,
            log_steps=100,
            # A loop over steps this small: slower with XLA.
            jit_compile=False,
        ),
        "the training of the RNN",
    )
    gru_train: stage.TrainConfig = setting(
        stage.TrainConfig(
            steps=1000,
            batch_tokens=2048,
            evaluate_steps=250,
            log_steps=50,
            jit_compile=False,
        ),
        "the training of the GRU",
    )
    lstm_train: stage.TrainConfig = setting(
        stage.TrainConfig(
            steps=1600,
            learning_rate_factor=2.0,
            batch_tokens=2048,
            evaluate_steps=400,
            log_steps=50,
        ),
        "the training of the LSTM",
    )
    train: stage.TrainConfig = setting(
        stage.TrainConfig(
            steps=1500, batch_tokens=2048, evaluate_steps=500, log_steps=100
        ),
        "the training of the GPT",
    )


CONFIG = BaselinesConfig()
TINY = CONFIG.override(
    [
        "data.num_documents=60",
        "model.depth=1",
        "model.model_dim=32",
        "model.num_heads=2",
        "recurrent.num_layers=1",
        "recurrent.model_dim=16",
        *(
            f"{kind}_train.{name}"
            for kind in ("rnn", "gru", "lstm")
            for name in ("steps=2", "batch_tokens=512")
        ),
        "train.steps=2",
        "train.batch_tokens=512",
    ]
)


def read_splits(config, tokenizer):
    """Returns dict of split to list of int arrays, a text each."""
    if config.path:
        token_ids = np.array(tokenizer.encode(read_text(config.path)))
        cut = int(0.9 * len(token_ids))
        return {"train": [token_ids[:cut]], "validation": [token_ids[cut:]]}
    world = shop.build_world(config.world_seed, config.num_products)
    texts = list(shop.generate_documents(world, count=config.num_documents))
    begin, end = (
        [tokenizer.control_id(name)]
        for name in ("<|document|>", "<|end_of_document|>")
    )
    rows = [
        np.concatenate([begin, row, end])
        for row in tokenizer.encode_batch(texts)
    ]
    return split_rows(rows, texts, config.validation_fraction)


def pack_splits(texts, context_length):
    """Returns dict of split to PackedRows."""
    rows = {}
    for name, part in texts.items():
        if sum(map(len, part)) <= context_length:
            raise InputError(
                f"the {name} split holds too little text for one row of "
                f"model.context_length={context_length}."
            )
        token_ids = np.concatenate(part)
        rows[name] = pack(
            token_ids,
            np.ones(len(token_ids), np.uint8),
            np.cumsum([0, *map(len, part)]),
            row_length=context_length,
        )
    return rows


def counting_models(vocabulary_size, k):
    """Returns dict of name to (NGramModel, whether it is a step)."""
    build = functools.partial(NGramModel, vocabulary_size=vocabulary_size)
    return {
        "uniform": (build(0), True),
        "unigram": (build(1), True),
        "2-gram": (build(2), True),
        "3-gram": (build(3), True),
        "4-gram": (build(4), True),
        "5-gram": (build(5), True),
        "5-gram, add-k": (build(5, smoothing="add_k", k=k), False),
        "5-gram, MLE": (build(5, smoothing="mle"), False),
    }


@contextlib.contextmanager
def clock(path):
    """Adds up the seconds of a training, stops and starts included.

    Yields:
        function that returns them; a training that has ended costs no more.
    """
    before = read_json(path) if path.is_file() else {}
    spent, is_done = before.get("seconds", 0.0), before.get("is_done", False)
    # Of all threads: what a machine that others use, too, gave this run.
    worked = before.get("processor_seconds", 0.0) - time.process_time()
    begin, is_whole = time.perf_counter(), False
    try:
        yield lambda: spent
        is_whole = True
    finally:
        if not is_done:
            spent += time.perf_counter() - begin
            write_json(
                path,
                {
                    "seconds": spent,
                    "processor_seconds": worked + time.process_time(),
                    "is_done": is_whole,
                },
            )


def main(config):
    if config.tokenizer.kind != "byte":
        raise InputError(
            f"tokenizer.kind={config.tokenizer.kind}: the rungs are compared "
            f"on bytes; leave it at byte."
        )
    tokenizer = ByteTokenizer()
    model_config = config.model.build_config(
        vocabulary_size=tokenizer.vocabulary_size,
        context_length=pretrain.DEFAULT_CONTEXT,
    )
    texts = read_splits(config.data, tokenizer)
    rows = pack_splits(texts, model_config.context_length)
    folder = claim_folder(
        config.run_dir,
        config,
        overwrite=config.overwrite,
        ignored=("run_dir", "overwrite"),
    )
    # All begin the same text, which none of them has read.
    prompt = texts["validation"][0][:PROMPT_CHARACTERS].tolist()
    stop = "<|end_of_document|>"
    stop_id = tokenizer.control_id(stop)
    num_tokens = sum(map(len, texts["train"]))
    rungs = []

    def add(name, model, scorer, flops, seconds, sample, is_step=True):
        score = score_rows(scorer, rows["validation"], tokenizer.token_bytes)
        rungs.append(
            Rung(
                name,
                score["bits_per_byte"],
                score["loss"],
                model.num_parameters,
                flops,
                seconds,
                tokenizer.decode([*prompt, *sample]),
                is_step,
            )
        )
        print(
            f"{name}: {score['bits_per_byte']:.3f} bits a byte, "
            f"{seconds:.1f} seconds"
        )

    for name, (model, is_step) in counting_models(
        tokenizer.vocabulary_size, config.k
    ).items():
        begin = time.perf_counter()
        model.count(texts["train"])
        seconds = time.perf_counter() - begin
        try:
            sample = model.sample(
                prompt,
                max_new_tokens=SAMPLE_TOKENS,
                temperature=0.8,
                stop=stop_id,
                seed=config.seed,
            )
        except ValueError:
            # What MLE never saw it cannot go on with.
            sample = []
        flops = model.training_flops_per_token * num_tokens
        add(name, model, model, flops, seconds, sample, is_step)

    configs = {
        kind.upper(): RecurrentConfig(
            kind=kind,
            vocabulary_size=tokenizer.vocabulary_size,
            context_length=model_config.context_length,
            **config.recurrent.to_dict(),
        )
        for kind in ("rnn", "gru", "lstm")
    }
    trains = {
        "RNN": config.rnn_train,
        "GRU": config.gru_train,
        "LSTM": config.lstm_train,
        "GPT": config.train,
    }
    for name, shape in {**configs, "GPT": model_config}.items():
        train = trains[name]
        keras.utils.set_random_seed(config.seed)
        with clock(folder / f"{name.lower()}_seconds.json") as clocked:
            result = stage.train(
                stage.build_model(shape, train, build_strategy("none")),
                tokenizer,
                rows,
                train,
                folder / name.lower(),
                name=name,
                seed=config.seed,
                sample=lambda _: "",
            )
        seconds = clocked()
        sample = Generator(result.model, tokenizer).generate_ids(
            [prompt[-shape.context_length // 2 :]],
            shape.context_length // 2,
            stop_token=stop,
            temperature=0.8,
            seed=config.seed,
        )[0]
        steps = result.metrics["step"]
        flops = shape.training_flops_per_token * train.batch_tokens * steps
        scorer = NetworkScorer(result.model)
        add(name, shape, scorer, flops, seconds, sample)

    title = config.data.path or "the shop's documents"
    is_shakespeare = "shakespeare" in config.data.path
    references = SHAKESPEARE_REFERENCES if is_shakespeare else ()
    print()
    print(
        write_ladder(
            folder,
            rungs,
            title=f"Models of {pathlib.Path(title).name}",
            references=references,
        )
    )
    worse = steps_that_do_not_rise(rungs)
    print(
        f"\nno better than the rung below: {', '.join(worse) or 'none'}\n"
        f"table, plot and samples: {folder}/ladder.md"
    )


if __name__ == "__main__":
    run_script(
        main,
        CONFIG,
        stages=lambda config: {"train": config.train},
        document=__doc__,
    )
