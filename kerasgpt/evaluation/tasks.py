"""Owns tasks that a prompt states, how each is scored, and what must be beaten.

Not: the scores themselves (text_scores.py), or asking (scoring.py).
"""

import dataclasses
import pathlib
import re

from kerasgpt.evaluation.baselines import NearestAnswers, most_frequent
from kerasgpt.evaluation.plots import load_pyplot, save_figure
from kerasgpt.evaluation.text_scores import (
    normalised_match,
    role_f1,
    rouge,
    token_f1,
)
from kerasgpt.evaluation.translation import score_translations
from kerasgpt.files import write_json, write_text

# What each task is scored by, the first of them in plots.
TASK_SCORES = {
    "summary": ("rougeL", "rouge1", "rouge2", "exact"),
    "translation": ("bleu", "chrf", "exact"),
    "roles": ("role_f1", "exact"),
    "qa": ("token_f1", "match", "exact"),
}
# Tasks of the shop -> one of these.
SHOP_TASKS = {
    "summary": "summary",
    "translation": "translation",
    "roles": "roles",
    "fact": "qa",
    "follow_up": "qa",
    "policy": "qa",
}
SENTENCE = re.compile(r".*?(?:[。！？]|[.!?](?=\s)|$)", re.DOTALL)
CHINESE = re.compile(r"[\u3400-\u9fff]")
SHOWN_REPLIES = 3


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """What was replied to the questions of one task and language.

    Attributes:
        task: str, of TASK_SCORES.
        language: str, for the report.
        questions: list of Question.
        replies: dict of a predictor's name to list of str, one a question;
            the last is the model.
    """

    task: str
    language: str
    questions: list
    replies: dict

    def scores(self):
        """Returns dict of a predictor's name to dict of score to share."""
        answers = [question.answer for question in self.questions]
        return {
            name: task_scores(self.task, answers, replies)
            for name, replies in self.replies.items()
        }


def task_scores(task, answers, replies):
    """Returns dict of score to mean share, of TASK_SCORES.

    Args:
        task: str.
        answers, replies: lists of str, not empty.

    Example:
        >>> task_scores("qa", ["Red.", "Blue."], ["red", "Green."])
        {'token_f1': 0.5, 'match': 0.5, 'exact': 0.0}
    """
    pairs = list(zip(answers, replies, strict=True))

    def mean(score):
        return sum(score(*pair) for pair in pairs) / len(pairs)

    found = {"exact": mean(lambda one, other: one.strip() == other.strip())}
    if task == "summary":
        rows = [rouge(*pair) for pair in pairs]
        for name in rows[0]:
            found[name] = sum(row[name] for row in rows) / len(rows)
    elif task == "translation":
        # By what is written: "any" may be either.
        is_chinese = sum(bool(CHINESE.search(answer)) for answer in answers)
        language = "zh" if 2 * is_chinese > len(answers) else "en"
        scores = score_translations(replies, answers, language=language)
        # Their last digits are those of sums of logarithms.
        found |= {
            name: round(scores[name] / 100, 8) for name in ("bleu", "chrf")
        }
    elif task == "roles":
        found["role_f1"] = mean(role_f1)
    else:
        found |= {"token_f1": mean(token_f1), "match": mean(normalised_match)}
    return {name: found[name] for name in TASK_SCORES[task]}


def baseline_replies(questions, trained):
    """Returns what predictors without a network reply.

    - majority: the most frequent answer of training;
    - copy: the text that the question is about;
    - lead: the first sentence of that text;
    - nearest: the answer to the training prompt that shares most words.

    Args:
        questions: list of Question.
        trained: list of Question, of training.

    Returns:
        dict of name to list of str, one a question.
    """
    sources = [question.source or _prompt(question) for question in questions]
    nearest = NearestAnswers(
        [_prompt(question) for question in trained],
        [question.answer for question in trained],
    )
    majority = most_frequent(question.answer for question in trained)
    return {
        "majority": [majority] * len(questions),
        "copy": sources,
        "lead": [first_sentence(source) for source in sources],
        "nearest": nearest.predict([_prompt(one) for one in questions]),
    }


def first_sentence(text):
    """Returns the first sentence of a text.

    Example:
        >>> first_sentence("It costs 1.5 yuan. Buy it.")
        'It costs 1.5 yuan.'
    """
    return SENTENCE.match(text.strip())[0]


def task_table(results):
    """Returns a Markdown table: a row a task and score, a column a predictor.

    Args:
        results: list of TaskResult.
    """
    names = list(results[0].replies)
    lines = [
        f"| held out | {' | '.join(names)} | questions |",
        f"|---|{'---|' * (len(names) + 1)}",
    ]
    for result in results:
        scores = result.scores()
        for score in TASK_SCORES[result.task]:
            cells = [f"{scores[name][score]:.1%}" for name in names]
            lines.append(
                f"| {result.task}.{result.language} {score} | "
                f"{' | '.join(cells)} | {len(result.questions)} |"
            )
    return "\n".join(lines)


def write_task_report(folder, *, results, facts):
    """Writes report.md, report.json and tasks.png into a folder.

    Args:
        folder: str or Path.
        results: list of TaskResult.
        facts: dict of further JSON values.

    Returns:
        dict, the content of report.json.
    """
    folder = pathlib.Path(folder)
    scores = {
        f"{result.task}.{result.language}": result.scores()
        for result in results
    }
    report = {"scores": scores, **facts}
    lines = ["# Tasks", "", task_table(results), ""]
    lines += [f"![tasks]({_plot(folder, results)})", ""]
    lines += [
        f"- {key}: {value}"
        for key, value in facts.items()
        if not isinstance(value, dict)
    ]
    for result in results:
        *_, replies = result.replies.values()
        lines += ["", f"## {result.task}.{result.language}", ""]
        pairs = list(zip(result.questions, replies, strict=True))
        # First what went wrong, which is what a reader looks for.
        pairs.sort(key=lambda pair: pair[0].answer.strip() == pair[1].strip())
        for question, reply in pairs[:SHOWN_REPLIES]:
            lines.append(
                f"- {_prompt(question)!r} → {reply!r}, right: "
                f"{question.answer!r}"
            )
    write_text(folder / "report.md", "\n".join(lines) + "\n")
    write_json(folder / "report.json", report)
    return report


def _prompt(question):
    return question.messages[-1]["content"]


def _plot(folder, results):
    pyplot = load_pyplot()
    names = list(results[0].replies)
    height = 0.8 / len(names)
    figure, axes = pyplot.subplots(figsize=(8, 0.8 * len(results) + 1.5))
    labels = []
    for index, name in enumerate(names):
        shares, labels = [], []
        for result in results:
            score = TASK_SCORES[result.task][0]
            shares.append(result.scores()[name][score])
            labels.append(f"{result.task}.{result.language} {score}")
        places = [place + index * height for place in range(len(results))]
        axes.barh(places, shares, height=height, label=name)
    axes.set_yticks(
        [place + 0.4 - height / 2 for place in range(len(results))], labels
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("held out")
    # Above the bars: a full bar would be hidden behind it.
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=len(names))
    return save_figure(figure, folder / "tasks.png")
