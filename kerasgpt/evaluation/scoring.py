"""Owns asking a model and judging its answers. Not: the questions (data)."""

import dataclasses

from kerasgpt.data.questions import Question


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model replied to a question.

    Attributes:
        question: Question.
        reply: str.
        is_right: bool. The reply is the answer, but for outer white space.
    """

    question: Question
    reply: str
    is_right: bool


def ask(generator, questions, *, max_new_tokens):
    """Returns the model's greedy answers, judged by exact match.

    Questions that do not fit the context are left out.

    Args:
        generator: Generator.
        questions: list of Question.
        max_new_tokens: int.

    Returns:
        list of Answer.
    """
    longest = generator.context_length - 1
    fitting = [
        question
        for question in questions
        if len(generator.template.prompt(question.messages)) <= longest
    ]
    replies = generator.reply(
        [question.messages for question in fitting],
        max_new_tokens=max_new_tokens,
    )
    return [
        Answer(question, reply, reply.strip() == question.answer.strip())
        for question, reply in zip(fitting, replies, strict=True)
    ]


def exact_match(answers, group):
    """Returns {group value: (share of right answers, count)}.

    Args:
        answers: list of Answer.
        group: function of a Question, such as its task.

    Example:
        >>> question = Question("fact", "en", (), "Red.")
        >>> exact_match([Answer(question, "Red.", True),
        ...              Answer(question, "Blue.", False)],
        ...             lambda question: question.language)
        {'en': (0.5, 2)}
    """
    groups = {}
    for answer in answers:
        groups.setdefault(group(answer.question), []).append(answer.is_right)
    return {
        name: (sum(values) / len(values), len(values))
        for name, values in groups.items()
    }
