import pytest

from kerasgpt.data.questions import questions_from_chats


def talk(*contents):
    roles = ("user", "assistant")
    return [
        {"role": roles[index % 2], "content": content}
        for index, content in enumerate(contents)
    ]


def test_the_last_answer_is_asked_for_after_all_that_came_before():
    chat = talk("Hi", "Hello.", "How much?", "Three euros.")
    (question,) = questions_from_chats([chat], count=1)
    assert list(question.messages) == chat[:3]
    assert question.answer == "Three euros."
    assert (question.task, question.language) == ("chat", "any")


def test_what_follows_the_last_answer_is_left_out():
    chat = talk("Hi", "Hello.", "Thanks!", "")
    (question,) = questions_from_chats([chat], count=1)
    assert list(question.messages) == chat[:1]
    assert question.answer == "Hello."


def test_a_chat_that_only_the_assistant_opens_has_no_question():
    chat = [{"role": "assistant", "content": "Hello."}]
    assert questions_from_chats([chat], count=1) == []


@pytest.mark.parametrize("count", [1, 7, 10, 30, 100])
def test_questions_are_spread_over_the_list(count):
    chats = [talk(str(number), "a") for number in range(100)]
    questions = questions_from_chats(chats, count=count)
    numbers = [int(one.messages[0]["content"]) for one in questions]
    assert len(numbers) == count
    assert numbers == sorted(set(numbers))
    assert numbers[-1] >= (count - 1) * (100 // count)


def test_few_chats_give_few_questions():
    chats = [talk("a", "b"), talk("c", "d")]
    assert len(questions_from_chats(chats, count=10)) == 2
    assert questions_from_chats([], count=10) == []
