"""Owns a question with its one right answer. Not: asking a model (scoring)."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Question:
    """A conversation that ends with the user's turn, and its right answer.

    Attributes:
        task: str, for the report.
        language: str, for the report: "en", "zh" or "any".
        messages: tuple of {"role", "content"} dicts, the last one not the
            assistant's.
        answer: str. The only reply that counts as right.
        key: tuple. What is asked about; the shop's split is made by it.
        wording: "seen" in training or "new", of the last turn.
        source: str. The text that the question is about, without the request;
            "" = the last turn.
    """

    task: str
    language: str
    messages: tuple
    answer: str
    key: tuple = ()
    wording: str = "new"
    source: str = ""


def questions_from_chats(chats, *, count):
    """Returns the last assistant turn of conversations as questions.

    Args:
        chats: list of conversations that training does not see.
        count: int. At most so many, spread over the list.

    Example:
        >>> chat = [{"role": "user", "content": "1+1?"},
        ...         {"role": "assistant", "content": "2"}]
        >>> questions_from_chats([chat], count=5)[0].answer
        '2'
    """
    stride = max(1, len(chats) // count)
    questions = []
    for chat in chats[::stride][:count]:
        last = max(
            index
            for index, message in enumerate(chat)
            if message["role"] == "assistant" and message["content"]
        )
        if last > 0:
            questions.append(
                Question(
                    "chat", "any", tuple(chat[:last]), chat[last]["content"]
                )
            )
    return questions
