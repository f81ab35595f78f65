"""Question  How well does a chat model summarise, translate, find roles and
          answer questions, beside majority, copy, lead and nearest neighbour?
Command   python experiments/run_tasks.py [model=experiments/runs/shop_chat]
          python experiments/run_tasks.py model=experiments/runs/mine \
data.path=my_chats.jsonl task=summary
"""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from kerasgpt.checkpoints.model_folder import load_model
from kerasgpt.cli import run_script
from kerasgpt.config import Config, InputError, setting
from kerasgpt.data import shop
from kerasgpt.data.prepare import DataConfig, load_corpus
from kerasgpt.data.questions import questions_from_chats
from kerasgpt.evaluation.scoring import ask
from kerasgpt.evaluation.tasks import (
    SHOP_TASKS,
    TASK_SCORES,
    TaskResult,
    baseline_replies,
    task_table,
    write_task_report,
)
from kerasgpt.files import check_writable
from kerasgpt.generation import Generator

ALL = "all"


@dataclasses.dataclass(frozen=True)
class TasksConfig(Config):
    """A finished chat model, asked to do what a prompt states."""

    model: str = setting(
        "experiments/runs/shop_chat", "run or model folder of a chat model"
    )
    run_dir: str = setting("experiments/runs/tasks", "folder of the report")
    task: str = setting(
        ALL,
        "what is scored; with data.path, what its conversations are",
        choices=(ALL, *TASK_SCORES),
    )
    data: DataConfig = setting(DataConfig(), "what is asked")
    questions_per_task: int = setting(
        50, "held-out questions of each task and language", minimum=1
    )
    trained_per_task: int = setting(
        500,
        "training questions of each task and language that baselines learn",
        minimum=1,
    )
    max_new_tokens: int = setting(64, "of a reply", unit="tokens", minimum=1)


CONFIG = TasksConfig()
TINY = CONFIG.override(
    [
        "questions_per_task=1",
        "trained_per_task=2",
        "max_new_tokens=4",
        "data.num_products=20",
    ]
)


def load_questions(config):
    """Returns (held-out questions, training questions), tasks renamed."""
    if not config.data.path:
        world = shop.build_world(
            config.data.world_seed, config.data.num_products
        )
        return [
            [
                dataclasses.replace(question, task=SHOP_TASKS[question.task])
                for question in shop.generate_questions(
                    world, count_per_task=count, held_out=is_held_out
                )
                if question.task in SHOP_TASKS
            ]
            for count, is_held_out in (
                (config.questions_per_task, True),
                (config.trained_per_task, False),
            )
        ]
    if config.task == ALL:
        raise InputError(
            f"task={ALL}: say what {config.data.path} asks for, one of "
            f"{', '.join(TASK_SCORES)}."
        )
    # The split of run_sft.py: what is asked here was not trained there.
    corpus = load_corpus(config.data)
    trained = [
        chat
        for chat, is_held_out in zip(
            corpus.chats, corpus.is_validation, strict=True
        )
        if not is_held_out
    ]
    return [
        [
            dataclasses.replace(question, task=config.task)
            for question in questions_from_chats(chats, count=count)
        ]
        for chats, count in (
            (corpus.held_out_chats, config.questions_per_task),
            (trained, config.trained_per_task),
        )
    ]


def main(config):
    questions, trained = load_questions(config)
    generator = Generator(*load_model(config.model))
    check_writable(config.run_dir)
    results = []
    for task, language in dict.fromkeys(
        (question.task, question.language) for question in questions
    ):
        if config.task not in (ALL, task):
            continue
        chosen, learned = (
            [q for q in part if (q.task, q.language) == (task, language)]
            for part in (questions, trained)
        )
        answers = ask(generator, chosen, max_new_tokens=config.max_new_tokens)
        asked = [answer.question for answer in answers]
        if not asked:
            print(f"{task}.{language}: no question fits the context.")
            continue
        replies = baseline_replies(asked, learned)
        replies["model"] = [answer.reply for answer in answers]
        results.append(TaskResult(task, language, asked, replies))
    if not results:
        raise InputError(f"{config.model}: no question fits its context.")
    write_task_report(
        config.run_dir,
        results=results,
        facts={"model": config.model, "config": config.to_dict()},
    )
    print(
        f"""
{task_table(results)}

report          {config.run_dir}/report.md
your own data   python experiments/run_sft.py data.path=my_chats.jsonl \
run_dir=experiments/runs/mine
                python experiments/run_tasks.py model=experiments/runs/mine \
data.path=my_chats.jsonl task=summary"""
    )


if __name__ == "__main__":
    run_script(main, CONFIG, stages=None, document=__doc__)
