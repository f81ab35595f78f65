"""Question  Does fine-tuning teach a small base model to answer the shop's
          customers, in English and Chinese, about facts it only read?
Command   python experiments/run_sft.py [key=value ...] [--dry-run] [--help]
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from kerasgpt.cli import run_script
from kerasgpt.data import shop
from kerasgpt.data.prepare import load_corpus
from kerasgpt.data.questions import questions_from_chats
from kerasgpt.evaluation.report import (
    metrics_table,
    score_table,
    write_report,
)
from kerasgpt.evaluation.scoring import ask
from kerasgpt.files import check_writable
from kerasgpt.generation import Generator
from kerasgpt.serving import chat
from kerasgpt.serving.saved_model import export_saved_model
from kerasgpt.training import sft

CONFIG = sft.SFTConfig()
TINY = CONFIG.override(
    [
        "model.depth=2",
        "model.model_dim=32",
        "model.context_length=64",
        "tokenizer.vocabulary_size=800",
        "data.num_products=20",
        "data.num_documents=300",
        "data.num_chats=300",
        "data.validation_fraction=0.1",
        "pretrain.steps=4",
        "train.steps=4",
        "pretrain.batch_tokens=512",
        "train.batch_tokens=512",
        "data.max_skipped_fraction=0.9",
        "pretrain.log_steps=2",
        "train.log_steps=2",
        "evaluation.questions_per_task=1",
        "evaluation.max_new_tokens=8",
    ]
)
# What the sample conversations ask, for the shop; {name} is a product.
CONVERSATIONS = (
    ("Hello, how much does the {name} cost?", "And what colour is it?"),
    ("你好，{name} 多少钱？", "那它是什么颜色？"),
)


def main(config):
    check_writable(config.export_folder)
    corpus = load_corpus(config.data)
    count = config.evaluation.questions_per_task
    if corpus.world:
        questions = shop.generate_questions(corpus.world, count_per_task=count)
        name = corpus.world.products[0].name
        samples = [
            [text.format(name=name) for text in texts]
            for texts in CONVERSATIONS
        ]
    result = sft.run(config, corpus)
    base, tuned = result.base, result.chat
    if not tuned.is_chief:
        return
    if not corpus.world:
        questions = questions_from_chats(
            result.corpus.held_out_chats, count=count
        )
        samples = [[q.messages[-1]["content"]] for q in questions[:2]]

    generators = {
        "base": Generator(base.model, base.tokenizer),
        "chat": Generator(tuned.model, tuned.tokenizer),
    }
    print(f"asking both models {len(questions)} held-out questions …")
    answers = {
        name: ask(
            generator,
            questions,
            max_new_tokens=config.evaluation.max_new_tokens,
        )
        for name, generator in generators.items()
    }
    metrics = {
        "base on documents": base.metrics,
        "base on conversations": tuned.metrics["before"],
        "chat on conversations": tuned.metrics,
    }
    report = write_report(
        tuned.folder,
        answers=answers,
        metrics=metrics,
        curves={
            "base": base.folder / "metrics.jsonl",
            "chat": tuned.folder / "metrics.jsonl",
        },
        facts={
            "questions that fit the context": len(answers["chat"]),
            "packed positions used": f"{result.used_fraction:.2%}",
            "skipped rows": list(map(vars, result.corpus.skipped)),
            "config": config.to_dict(),
        },
    )
    export_saved_model(tuned.model, tuned.tokenizer, config.export_folder)
    print(f"\n{score_table(report['scores'])}\n\n{metrics_table(metrics)}\n")
    for texts in samples:
        chat.tell_conversation(generators["chat"], texts)
    print(
        f"""
report          {tuned.folder}/report.md
chat            kerasgpt chat {tuned.folder}
TensorBoard     tensorboard --logdir {tuned.folder.parent}
serve           kerasgpt serve {config.export_folder}
your own data   python experiments/run_sft.py data.path=my_chats.jsonl \
run_dir=experiments/runs/mine"""
    )


if __name__ == "__main__":
    run_script(
        main,
        CONFIG,
        stages=sft.stages,
        document=__doc__,
    )
