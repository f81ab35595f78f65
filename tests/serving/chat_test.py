import contextlib
import threading
import time

import pytest
import uvicorn
from starlette.applications import Starlette

from kerasgpt.config import InputError
from kerasgpt.generation import Generator
from kerasgpt.models import GPTCausalLM
from kerasgpt.serving.backend import Backend, GeneratedToken, Unavailable
from kerasgpt.serving.chat import (
    RemoteGenerator,
    chat,
    fit_context,
    tell_conversation,
)
from kerasgpt.serving.client import OpenAIClient, ServerError
from kerasgpt.serving.openai import openai_routes
from kerasgpt.tokenizers import CONTROL_TOKENS, ByteTokenizer, ChatTemplate
from tests.descriptors import tiny_config

CONTEXT = 96
ROOM = 32


class Echo:
    """Stands for a Generator: repeats the user's text in pieces."""

    def __init__(self, context_length=CONTEXT):
        self.template = ChatTemplate(ByteTokenizer())
        self.context_length = context_length
        self.seen = []
        self.options = []

    def stream(self, messages, **options):
        self.seen.append([dict(message) for message in messages])
        self.options.append(options)
        yield from messages[-1]["content"].partition(" ")

    def reply(self, conversations, **options):
        return ["".join(self.stream(chat)) for chat in conversations]


class Terminal:
    """Types the given lines; an exception in their place is raised."""

    def __init__(self, *lines):
        self.lines = list(lines)
        self.written = []

    def read(self, prompt):
        self.written.append(prompt)
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    def write(self, text):
        self.written.append(text)

    @property
    def screen(self):
        return "".join(self.written)


def talk(*lines, generator=None, **options):
    generator = generator or Echo()
    terminal = Terminal(*lines)
    chat(generator, read=terminal.read, write=terminal.write, **options)
    return generator, terminal


def contents(messages):
    return [message["content"] for message in messages]


def test_replies_and_questions_build_up_one_conversation():
    generator, terminal = talk("Hi", "And you?")
    assert [contents(messages) for messages in generator.seen] == [
        ["Hi"],
        ["Hi", "Hi", "And you?"],
    ]
    roles = [message["role"] for message in generator.seen[-1]]
    assert roles == ["user", "assistant", "user"]
    assert terminal.screen.endswith("> Hi\n> And you?\n> \n")


@pytest.mark.parametrize("end", ["/quit", EOFError(), KeyboardInterrupt()])
def test_quit_end_of_input_and_interrupt_leave(end):
    generator, terminal = talk("Hi", end, "never read")
    assert len(generator.seen) == 1
    assert terminal.lines == ["never read"]


def test_new_starts_over_but_keeps_the_system_message():
    generator, _ = talk("Hi", "/new", "Yo", system="Be kind.")
    assert contents(generator.seen[-1]) == ["Be kind.", "Yo"]
    assert generator.seen[-1][0]["role"] == "system"


def test_blank_lines_are_not_sent():
    generator, _ = talk("", "   ", " Hi \n")
    assert [contents(messages) for messages in generator.seen] == [["Hi"]]


def test_sampling_options_reach_the_generator():
    generator, _ = talk("Hi", temperature=0.5, seed=3)
    assert generator.options == [{"temperature": 0.5, "seed": 3}]


def test_text_that_is_no_utf8_is_refused_and_the_chat_goes_on():
    error = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    generator, terminal = talk("caf\udce9", error, "Hi")
    assert [contents(messages) for messages in generator.seen] == [["Hi"]]
    assert terminal.screen.count("(the message is no valid UTF-8)\n") == 2


def test_the_oldest_turns_are_dropped_when_the_context_is_full():
    # Each message takes its length and 2 control ids; 20 letters three times.
    first, second, third = ("a" * 20, "b" * 20, "c" * 20)
    generator, terminal = talk(first, second, third, system="S")
    assert contents(generator.seen[0]) == ["S", first]
    assert contents(generator.seen[1]) == ["S", second]
    assert contents(generator.seen[2]) == ["S", third]
    assert terminal.screen.count("(the oldest turns no longer fit") == 2
    for messages in generator.seen:
        prompt = generator.template.prompt(messages)
        assert len(prompt) + ROOM <= generator.context_length


def test_a_message_that_never_fits_is_refused_and_forgotten():
    generator, terminal = talk("Hi", "a" * CONTEXT, "Yo")
    assert f"(too long: a message of this model has at most {CONTEXT}" in (
        terminal.screen
    )
    assert contents(generator.seen[-1]) == ["Hi", "Hi", "Yo"]


def test_an_interrupted_reply_is_kept_as_far_as_it_was_told():
    class Interrupted(Echo):
        def stream(self, messages, **options):
            pieces = super().stream(messages, **options)
            yield next(pieces)
            if len(self.seen) == 1:
                raise KeyboardInterrupt
            yield from pieces

    generator, terminal = talk("one two", "go on", generator=Interrupted())
    assert "> one (stopped)\n> go on\n" in terminal.screen
    assert contents(generator.seen[-1]) == ["one two", "one", "go on"]


def messages_of(*lengths):
    roles = ("user", "assistant")
    return [
        {"role": roles[index % 2], "content": "a" * length}
        for index, length in enumerate(lengths)
    ]


def test_what_fits_is_left_as_it_is():
    messages = messages_of(5, 5, 5)
    assert fit_context(Echo(), messages) == messages
    assert len(messages) == 3


def test_the_kept_part_begins_with_a_turn_of_the_user():
    messages = messages_of(20, 20, 20, 20, 5)
    kept = fit_context(Echo(), messages)
    assert kept == messages[4:] or kept == messages[2:]
    assert kept[0]["role"] == "user"
    longer = messages[len(messages) - len(kept) - 2 :]
    prompt = Echo().template.prompt(longer)
    assert len(prompt) + ROOM > CONTEXT


def test_fixed_messages_always_stay():
    system = {"role": "system", "content": "a" * 10}
    messages = [system, *messages_of(30, 30, 10)]
    assert fit_context(Echo(), messages, num_fixed=1) == [system, messages[-1]]
    system = {"role": "system", "content": "a" * CONTEXT}
    assert fit_context(Echo(), [system, *messages_of(1)], num_fixed=1) is None


def test_the_limit_is_exact():
    # <|document|> <|user|> text <|end_of_turn|> <|assistant|>, and the room.
    longest = CONTEXT - ROOM - 4
    assert fit_context(Echo(), messages_of(longest)) is not None
    assert fit_context(Echo(), messages_of(longest + 1)) is None
    assert fit_context(Echo(), messages_of(longest + 9), room=23) is not None


def test_a_told_conversation_shows_both_sides():
    terminal = Terminal()
    generator = Echo()
    tell_conversation(generator, ["Hi", "Yo"], write=terminal.write)
    assert terminal.screen == "  > Hi\n    Hi\n  > Yo\n    Yo\n"
    assert contents(generator.seen[-1]) == ["Hi", "Hi", "Yo"]


def test_a_conversation_is_told_on_standard_output(capsys):
    tell_conversation(Echo(), ["Hi"])
    assert capsys.readouterr() == ("  > Hi\n    Hi\n", "")
    chat(Echo(), read=Terminal("Yo", "/quit").read)
    assert capsys.readouterr().out.endswith("Yo\n")


def test_a_told_conversation_ends_with_a_text_that_does_not_fit():
    terminal = Terminal()
    texts = ["Hi", "a" * CONTEXT, "Yo"]
    tell_conversation(Echo(), texts, write=terminal.write)
    assert terminal.screen.startswith("  > Hi\n    Hi\n  > aaa")
    assert terminal.screen.endswith("(too long for the model's context)\n")


def test_streamed_pieces_join_to_the_reply_of_the_model():
    config = tiny_config(vocabulary_size=265, context_length=CONTEXT)
    model = GPTCausalLM(config, name="gpt")
    model.build()
    generator = Generator(model, ByteTokenizer(), jit_compile=False)
    options = {"max_new_tokens": 24, "temperature": 1.5, "seed": 4}
    _, terminal = talk("你好 Hi", generator=generator, **options)
    (reply,) = generator.reply(
        [[{"role": "user", "content": "你好 Hi"}]], **options
    )
    assert reply
    _, _, shown = terminal.screen.partition("> ")
    assert shown == f"{reply}\n> \n"


class EchoBackend(Backend):
    """Repeats the user's text; "fail" in it makes the server fail."""

    context_length = CONTEXT
    max_new_tokens = 64
    vocabulary_size = 265
    control_ids = {name: index for index, name in enumerate(CONTROL_TOKENS)}

    def __init__(self):
        self.tokenizer = ByteTokenizer()
        self.landmarks = ChatTemplate(self.tokenizer).landmarks
        self.requests = []

    async def encode(self, texts):
        return [self.tokenizer.encode(text) for text in texts]

    async def encode_chat(self, messages):
        return ChatTemplate(self.tokenizer).prompt(messages)

    async def decode(self, rows):
        return [self.tokenizer.decode(row) for row in rows]

    async def generate(self, request):
        self.requests.append(request)
        user = self.control_ids["<|user|>"]
        start = len(request.token_ids) - request.token_ids[::-1].index(user)
        token_ids = request.token_ids[start:-2]
        for token_id in token_ids[: request.max_new_tokens]:
            yield [GeneratedToken(token_id, -1.0, (), None)]
        if self.tokenizer.decode(token_ids) == "fail":
            raise Unavailable("the model was retired")
        yield [GeneratedToken(request.stop_id, -1.0, (), "stop")]

    async def score(self, rows):
        raise NotImplementedError


@contextlib.contextmanager
def serving(backend):
    """Gives the URL of a server of OpenAI's routes."""
    routes = openai_routes(
        lambda name: backend, lambda: [("echo", 0)] if backend else []
    )
    config = uvicorn.Config(
        Starlette(routes=routes), port=0, log_level="critical", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def remote():
    """A backend, and a generator of the server in front of it."""
    backend = EchoBackend()
    with serving(backend) as url, OpenAIClient(url) as client:
        yield backend, RemoteGenerator(client)


def test_a_server_stands_in_for_the_generator(remote):
    backend, generator = remote
    assert generator.context_length == CONTEXT
    backend.requests.clear()
    options = {
        "max_new_tokens": 50,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.1,
        "repetition_penalty": 1.5,
        "seed": 7,
    }
    _, terminal = talk("你好", "And?", generator=generator, **options)
    assert "> 你好\n> And?\n> \n" in terminal.screen
    first, second = backend.requests
    template = ChatTemplate(ByteTokenizer())
    turns = [
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "你好"},
        {"role": "user", "content": "And?"},
    ]
    assert list(first.token_ids) == template.prompt(turns[:1])
    assert list(second.token_ids) == template.prompt(turns)
    for request in backend.requests:
        for name, value in options.items():
            assert getattr(request, name) == value


def test_a_server_is_asked_for_no_more_than_fits(remote):
    backend, generator = remote
    backend.requests.clear()
    talk("a" * 40, "b" * 40, generator=generator, max_new_tokens=60)
    # The first turns are gone; 40 letters and 4 control ids leave 52.
    assert [len(one.token_ids) for one in backend.requests] == [44, 44]
    assert [one.max_new_tokens for one in backend.requests] == [52, 52]


def test_what_a_server_refuses_is_told_and_the_chat_goes_on(remote):
    backend, generator = remote
    backend.requests.clear()
    _, terminal = talk("Hi", "fail", "Yo", generator=generator)
    assert "> Hi\n> fail\n(http" in terminal.screen
    assert ": the model was retired)\n> Yo\n> \n" in terminal.screen
    template = ChatTemplate(ByteTokenizer())
    assert list(backend.requests[-1].token_ids) == template.prompt(
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": "Yo"},
        ]
    )
    _, terminal = talk("Hi", generator=generator, max_new_tokens=65)
    assert "400: max_tokens: at most 64 tokens" in terminal.screen
    assert terminal.screen.endswith(")\n> \n")


def test_a_server_that_is_away_is_told_at_once(remote):
    with (
        serving(None) as url,
        OpenAIClient(url) as client,
        pytest.raises(InputError, match=f"{url}: serves no model"),
    ):
        RemoteGenerator(client)
    with OpenAIClient(url) as client, pytest.raises(ServerError, match=url):
        RemoteGenerator(client, model="echo")
