"""Question  Does a server outlive more than it can do, and what nobody means?
Command   python experiments/benchmarks/serving_soak.py \\
              folder=experiments/runs/shop_chat minutes=5

First more requests than it can answer, whether or not earlier ones are
answered; then bodies that were right once: cut, of other types, too deep, too
large, of bad bytes, with names twice. Clients share the server's cores.
"""

import collections
import dataclasses
import functools
import json
import pathlib
import random
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments.benchmarks.contest import ContestConfig, on_cores
from experiments.benchmarks.load import (
    Client,
    Server,
    closed_loop,
    open_loop,
)
from experiments.benchmarks.report import (
    Answer,
    Figure,
    machine_facts,
    machine_line,
    run_benchmark,
)
from experiments.benchmarks.serving import figure_table
from experiments.benchmarks.workers.protocol import versions
from experiments.benchmarks.workers.serving_task import Models, conversations
from kerasgpt.checkpoints.model_folder import load_model
from kerasgpt.config import setting
from kerasgpt.generation import Generator

CHAT = "/v1/chat/completions"
NEW_TOKENS = 48
# As many clients as the server has rows.
CLIENTS = 16
# Of mutated bodies.
BODY_CLIENTS = 8
# Every so many requests go to TF Serving's route.
PREDICT_EVERY = 4
# The only failure that a server may tell of, and "come back later".
AWAY, BUSY = 503, 429
RECOVERY_GOAL_S, GROWTH_GOAL = 5.0, 0.1
# An idle answer may take so many times the median before the load.
FAST = 2.0
# A list is made so many times longer: a batch of as many rows.
MOST_TIMES = 40
# Until memory is where it stays: allocators fill up, threads start.
WARM_UP = 0.1
NUMBERS = (
    *(-1, 0, 1, 2, 100, 0.1, 1.5, 2**31, 2**63, 10**400),
    *(1e308, -1e308, float("nan"), float("inf")),
)
TEXTS = (
    *("", " ", "a", "\x00", "\ufeff", "你好", "🙂" * 50, "x" * 5000),
    *("<|end_of_turn|>", "\U0010ffff1", "-1", "assistant", "SGVsbG8="),
)
OTHERS = (None, True, -1, "", "\ud800", [], {}, [[]], [None], {"": 0})
BAD_BYTES = (
    *(b"\xff", b"\xc3(", b"\xed\xa0\x80", b"\x00", b"\xf4\x90\x80\x80"),
    *(b'"', b"}"),
)


@dataclasses.dataclass(frozen=True)
class SoakConfig(ContestConfig):
    """Too much, for long."""

    folder: str = setting(
        "", "run folder of a chat model; empty = an untrained one"
    )
    minutes: float = setting(5.0, "of too much; 0 = none", minimum=0)
    overload: float = setting(10.0, "times what it can answer", minimum=1)
    bodies: int = setting(20_000, "that are wrong; 0 = none", minimum=0)
    capacity_seconds: float = setting(
        10.0, "of finding out what it can answer", minimum=1
    )
    seed: int = setting(0, "of what is asked and when")


CONFIG = SoakConfig()
QUICK = ["minutes=0.2", "bodies=500", "capacity_seconds=3"]


def chat_body(chat):
    """Returns the bytes that ask OpenAI's route for a greedy answer."""
    body = {"messages": chat, "max_tokens": NEW_TOKENS, "temperature": 0}
    return json.dumps(body).encode()


def predict_body(chat):
    """Returns the bytes that ask TF Serving's route for it."""
    instance = {
        "roles": [message["role"] for message in chat],
        "contents": [message["content"] for message in chat],
        "max_new_tokens": NEW_TOKENS,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "seed": 0,
    }
    body = {"signature_name": "chat", "instances": [instance]}
    return json.dumps(body).encode()


class Questions:
    """Requests with the answers that our Generator gives, in this process.

    Args:
        model_folder: str.
        name: str, of the served model.
        count: int.
    """

    def __init__(self, model_folder, name, *, count=200):
        chats = conversations(count)
        generator = Generator(*load_model(model_folder))
        self.texts = generator.reply(chats, max_new_tokens=NEW_TOKENS)
        predict = f"/v1/models/{name}:predict"
        self._requests = [
            (predict, predict_body(chat))
            if number % PREDICT_EVERY == PREDICT_EVERY - 1
            else (CHAT, chat_body(chat))
            for number, chat in enumerate(chats)
        ]

    def request(self, number):
        """Returns (path, body)."""
        return self._requests[number % len(self._requests)]

    def is_right(self, number, reply):
        """Returns whether a reply of status 200 says what it must."""
        told = reply.json()
        text = (
            told["choices"][0]["message"]["content"]
            if "choices" in told
            else told["predictions"][0]["text"]
        )
        return text == self.texts[number % len(self.texts)]


def capacity(server, questions, seconds):
    """Returns the requests that are answered a second when all rows are full.

    Args:
        seconds: float. About so long is asked.
    """
    count, rate = CLIENTS, 0.0
    for _ in range(2):
        taken, replies = closed_loop(
            server.address,
            [questions.request(number) for number in range(count)],
            num_clients=CLIENTS,
        )
        require_right(questions, replies)
        rate = count / taken
        count = max(CLIENTS, int(rate * seconds))
    return rate


def require_right(questions, replies):
    for number, reply in enumerate(replies):
        if reply.status != 200 or not questions.is_right(number, reply):
            raise ValueError(f"an idle server answered {reply}")


def idle_seconds(server, questions, *, count=20):
    """Returns the median seconds of answers to one client."""
    with Client(server.address) as client:
        replies = [client.post(*questions.request(n)) for n in range(count)]
    require_right(questions, replies)
    return statistics.median(reply.seconds for reply in replies)


def recovery_seconds(server, questions, fast_seconds):
    """Returns seconds until an answer is right and fast again."""
    started = time.perf_counter()
    with Client(server.address) as client:
        for number in range(1000):
            reply = client.post(*questions.request(number))
            if (
                reply.status == 200
                and reply.seconds <= fast_seconds
                and questions.is_right(number, reply)
            ):
                return time.perf_counter() - started
            time.sleep(0.05)
    return float("inf")


def overloaded(server, questions, config):
    """Returns the figures of a server that is asked far too much."""
    rate = capacity(server, questions, config.capacity_seconds)
    fast_seconds = FAST * idle_seconds(server, questions)
    generator = random.Random(config.seed)

    def arrivals():
        due = 0.0
        while due < 60 * config.minutes:
            number = generator.randrange(len(questions.texts))
            numbers.append(number)
            yield due, *questions.request(number)
            due += generator.expovariate(config.overload * rate)

    numbers, statuses, seconds = [], collections.Counter(), []
    num_wrong = 0

    def tell(index, reply):
        nonlocal num_wrong
        statuses[reply.status] += 1
        if reply.status == 200:
            seconds.append(reply.seconds)
            num_wrong += not questions.is_right(numbers[index], reply)

    before = server.resident_bytes
    recovered, num_unsent = open_loop(
        server.address,
        arrivals(),
        tell=tell,
        after=lambda: recovery_seconds(server, questions, fast_seconds),
    )
    after = server.resident_bytes
    seconds.sort()
    late = seconds[int(0.99 * (len(seconds) - 1))] if seconds else 0.0
    asked = sum(statuses.values())
    name = f"{config.minutes:g} minutes at {config.overload:g} × capacity"
    return [
        Figure(
            f"{name}: alive",
            "no crash",
            f"{'yes' if server.is_alive else 'no'}; {rate:,.0f} answers/s are "
            f"its capacity; sent {asked:,}, not sent as too many clients "
            f"waited {num_unsent:,}",
            server.is_alive,
        ),
        Figure(
            f"{name}: failures",
            f"0 but {AWAY}",
            f"{num_failures(statuses):,}; {told(statuses)}",
            num_failures(statuses) == 0,
        ),
        Figure(
            f"{name}: wrong answers",
            "0",
            f"{num_wrong:,} of {statuses[200]:,}",
            num_wrong == 0 and statuses[200] > 0,
        ),
        Figure(
            f"{name}: seconds of an accepted request, p99",
            "",
            f"{late:.2f} s; median {statistics.median(seconds or [0]):.2f} s",
        ),
        Figure(
            f"{name}: until an answer takes {1e3 * fast_seconds:.0f} ms again",
            f"≤ {RECOVERY_GOAL_S:g} s",
            f"{recovered:.2f} s",
            recovered <= RECOVERY_GOAL_S,
        ),
        growth_figure(name, before, after),
    ]


def num_failures(statuses):
    """Returns how many requests have failed, those without answer included."""
    return sum(
        count
        for status, count in statuses.items()
        if status == 0 or (status >= 500 and status != AWAY)
    )


def told(statuses):
    """Returns counts by status in one line."""
    return ", ".join(
        f"{status or 'no answer'}: {count:,}"
        for status, count in sorted(statuses.items())
    )


def growth_figure(name, before, after):
    growth = after / before - 1
    return Figure(
        f"{name}: growth of memory",
        f"< {GROWTH_GOAL:.0%}",
        f"{growth:.1%}, from {before / 1e6:,.0f} to {after / 1e6:,.0f} MB",
        growth < GROWTH_GOAL,
    )


def valid_requests(name):
    """Returns (path, body as an object) of every route that takes one."""
    chat = [
        {"role": "system", "content": "Be brief. 简短。"},
        {"role": "user", "content": "How much is it? 多少钱？"},
    ]
    sampling = {
        "max_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 1,
        "n": 2,
        "stop": ["\n"],
    }
    vectors = {
        "max_new_tokens": [2],
        "temperature": [0.5],
        "top_k": [3],
        "top_p": [0.9],
        "seed": [1],
    }
    ids = {"token_ids": [[20, 21, 22]], "length": [3]}
    turns = {"roles": [["user"]], "contents": [["Hello"]]}
    columns = {
        "chat": {**turns, **vectors},
        "generate": {"prompt": ["The"], **vectors},
        "generate_ids": {**ids, **vectors},
        "score": {"text": ["Hello"]},
        "score_ids": ids,
        "tokenize": {"text": ["Hello"]},
        "tokenize_chat": turns,
        "detokenize": ids,
        "describe": {"key": ["context_length"]},
    }
    predict = f"/v1/models/{name}:predict"
    examples = {"examples": [{"prompt": "Hello"}]}
    return [
        (CHAT, {"messages": chat, **sampling}),
        (CHAT, {"messages": chat, "stream": True, **sampling}),
        ("/v1/completions", {"prompt": "The", "logprobs": 2, **sampling}),
        ("/v1/completions", {"prompt": [[20, 21]], "echo": True, **sampling}),
        ("/tokenize", {"prompt": "Hello", "add_special_tokens": False}),
        ("/detokenize", {"tokens": [20, 21]}),
        (predict, {"instances": ["Hello", "Hi"]}),
        (predict, {"instances": [{"b64": "SGVsbG8="}]}),
        *(
            (predict, {"signature_name": signature, "inputs": inputs})
            for signature, inputs in columns.items()
        ),
        (
            f"/v1/models/{name}/versions/1:predict",
            {"signature_name": "score", "instances": [{"text": "Hello"}]},
        ),
        (f"/v1/models/{name}:classify", examples),
        (f"/v1/models/{name}:regress", examples),
    ]


def places(value, path=()):
    """Yields the path of keys and indices to every value within a value."""
    yield path
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    else:
        return
    for key, one in inner:
        yield from places(one, (*path, key))


def replaced(value, path, change):
    """Returns a value in which `change` was applied at a path."""
    if not path:
        return change(value)
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], change)
    return copy


def mutated(body, generator):
    """Returns the bytes of a body that was right, wrong in a random way.

    Args:
        body: JSON value.
        generator: random.Random.
    """
    pick = generator.choice
    place = functools.partial(pick, list(places(body)))
    kind = generator.randrange(7)
    if kind == 0:
        other = replaced(body, place(), lambda _: pick(OTHERS))
        return json.dumps(other).encode()
    if kind in (1, 2):
        own = functools.partial(of_its_kind, pick=pick)
        return json.dumps(replaced(body, place(), own)).encode()
    if kind == 3:
        depth = pick((2, 7, 8, 9, 100, 50_000))
        opening, closing = pick((("[", "]"), ('{"a":', "}")))
        text = json.dumps(replaced(body, place(), lambda _: "@DEEP@"))
        deep = opening * depth + "0" + closing * depth
        return text.replace('"@DEEP@"', deep).encode()
    if kind == 4:
        text, key = json.dumps(body), pick(list(body))
        again = json.dumps({key: pick((body[key], *OTHERS))})
        return (text[:-1] + "," + again[1:]).encode()
    text = bytearray(json.dumps(body, ensure_ascii=False).encode())
    at = generator.randrange(len(text))
    if kind == 5:
        return bytes(text[:at])
    text[at : at + pick((0, 1))] = pick(BAD_BYTES)
    return bytes(text)


def of_its_kind(value, *, pick):
    """Returns another value of the same JSON type.

    Args:
        value: JSON value.
        pick: function that takes one of a sequence.
    """
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return pick(NUMBERS)
    if isinstance(value, str):
        return pick(TEXTS)
    if isinstance(value, list):
        return pick((value * 2, value * MOST_TIMES, value[:-1], value[::-1]))
    return {key: one for key, one in value.items() if pick((True, False))}


def mutations(name, config):
    """Yields (path, body) of `config.bodies` requests, the same each time."""
    generator = random.Random(config.seed)
    requests = valid_requests(name)
    for _ in range(config.bodies):
        path, body = generator.choice(requests)
        yield path, mutated(body, generator)


def misused(server, questions, name, config):
    """Returns the figures of a server that gets bodies nobody means."""
    require_valid(server, name)
    requests = list(mutations(name, config))
    cut = int(WARM_UP * len(requests))
    # Memory that the largest batches took is kept.
    path, body = next(
        one for one in valid_requests(name) if "instances" in one[1]
    )
    rows = {"instances": body["instances"] * MOST_TIMES}
    large = (path, json.dumps(rows).encode())
    closed_loop(
        server.address, [large] * BODY_CLIENTS, num_clients=BODY_CLIENTS
    )
    statuses = collections.Counter()
    failed = []
    sizes = []
    for some in (requests[:cut], requests[cut:]):
        _, replies = closed_loop(server.address, some, num_clients=BODY_CLIENTS)
        statuses.update(reply.status for reply in replies)
        failed += [
            (request, reply)
            for request, reply in zip(some, replies, strict=True)
            if num_failures({reply.status: 1})
        ]
        sizes.append(server.resident_bytes)
    for (path, body), reply in failed[:5]:
        print("  failed:", path, body[:300], reply.status, reply.content[:300])
    title = f"{len(requests):,} mutated bodies"
    return [
        Figure(
            f"{title}: failures",
            f"0 but {AWAY}",
            f"{num_failures(statuses):,}; {told(statuses)}",
            num_failures(statuses) == 0 and server.is_alive,
        ),
        growth_figure(f"{title}, after the first {cut:,}", *sizes),
        served_figure(title, server, questions),
    ]


def served_figure(title, server, questions):
    with Client(server.address) as client:
        reply = client.post(*questions.request(0))
    is_right = reply.status == 200 and questions.is_right(0, reply)
    return Figure(
        f"{title}: the next request is answered right",
        "yes",
        "yes" if is_right else f"no: status {reply.status}",
        is_right,
    )


def require_valid(server, name):
    """Makes sure that what is mutated was right."""
    with Client(server.address) as client:
        for path, body in valid_requests(name):
            reply = client.post(path, json.dumps(body).encode())
            # Of these the model has no signature.
            is_example = path.endswith((":classify", ":regress"))
            if reply.status != (400 if is_example else 200):
                raise ValueError(f"{path}: {body} is answered {reply}")


def ask(config):
    with tempfile.TemporaryDirectory() as folder, on_cores(config) as cores:
        models = Models(pathlib.Path(folder), config.folder)
        name = pathlib.Path(models.export("chat")).name
        questions = Questions(models.model("chat"), name)
        figures = []
        with Server(models.command("chat")) as server:
            if config.minutes:
                figures += overloaded(server, questions, config)
            if config.bodies:
                figures += misused(server, questions, name, config)
            tracebacks = sum(
                line.startswith("Traceback") for line in server.log_lines()
            )
    figures.append(
        Figure("tracebacks in its log", "0", f"{tracebacks:,}", not tracebacks)
    )
    facts = {
        **machine_facts(),
        "cores": cores,
        "threads": config.threads,
        "versions": versions("keras", "tensorflow"),
    }
    lines = [*figure_table(figures), "", machine_line(facts)]
    return Answer(lines, figures, {"machine": facts})


if __name__ == "__main__":
    run_benchmark(ask, CONFIG, quick=QUICK, document=__doc__)
