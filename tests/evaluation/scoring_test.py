import dataclasses

import pytest

from kerasgpt.data.questions import Question
from kerasgpt.evaluation.scoring import Answer, ask, exact_match
from kerasgpt.tokenizers import ByteTokenizer, ChatTemplate


class Parrot:
    """Stands for a Generator: replies what `replies` says to the last turn."""

    context_length = 40

    def __init__(self, replies):
        self.template = ChatTemplate(ByteTokenizer())
        self.replies = replies
        self.options = None

    def reply(self, conversations, **options):
        self.options = options
        return [self.replies[chat[-1]["content"]] for chat in conversations]


def question(text, answer, **changes):
    fields = {
        "task": "fact",
        "language": "en",
        "messages": ({"role": "user", "content": text},),
        "answer": answer,
    }
    return Question(**{**fields, **changes})


@pytest.mark.parametrize(
    ("reply", "is_right"),
    [
        ("Red.", True),
        (" Red.\n", True),
        ("red.", False),
        ("Red", False),
        ("Red. Or blue.", False),
        ("", False),
    ],
)
def test_only_the_answer_itself_is_right(reply, is_right):
    asked = question("Which colour?", "Red.")
    answers = ask(Parrot({"Which colour?": reply}), [asked], max_new_tokens=8)
    assert answers == [Answer(asked, reply, is_right)]


def test_answers_keep_the_order_of_the_questions():
    questions = [question(text, text.upper()) for text in "cab"]
    parrot = Parrot({"a": "A", "b": "x", "c": "C"})
    answers = ask(parrot, questions, max_new_tokens=8)
    assert [answer.question for answer in answers] == questions
    assert [answer.is_right for answer in answers] == [True, True, False]
    assert parrot.options == {"max_new_tokens": 8}


def test_questions_that_do_not_fit_the_context_are_left_out():
    # A prompt is <|document|> <|user|> text <|end_of_turn|> <|assistant|>;
    # one position is needed to answer in.
    fitting = question("a" * (Parrot.context_length - 5), "b")
    too_long = question("a" * (Parrot.context_length - 4), "b")
    parrot = Parrot({fitting.messages[0]["content"]: "b"})
    (answer,) = ask(parrot, [too_long, fitting], max_new_tokens=8)
    assert answer.question is fitting
    assert ask(parrot, [too_long], max_new_tokens=8) == []


def test_exact_match_counts_each_group_of_its_own():
    answers = [
        Answer(question("a", "b", task="fact"), "b", True),
        Answer(question("a", "b", task="fact"), "c", False),
        Answer(question("a", "b", task="fact"), "b", True),
        Answer(question("a", "b", task="email", wording="seen"), "", False),
    ]
    assert exact_match(answers, lambda q: q.task) == {
        "fact": (2 / 3, 3),
        "email": (0.0, 1),
    }
    assert exact_match(answers, lambda q: q.wording) == {
        "new": (2 / 3, 3),
        "seen": (0.0, 1),
    }
    assert exact_match([], lambda q: q.task) == {}


def test_an_answer_cannot_be_changed_afterwards():
    answer = Answer(question("a", "b"), "c", False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        answer.is_right = True
