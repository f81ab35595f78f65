"""Question  Does serving keep the model's answers, and at what speed?
Command   python experiments/benchmarks/serving.py \\
              folder=experiments/runs/shop_chat

Equal answers first. Then new tokens of an export without XLA against our
Generator with it; clients that each wait for an answer before they ask again,
against a server that answers one at a time, and against Hugging Face behind
FastAPI with the same weights; the first piece of a streamed answer; a cold
start. Clients share the server's cores. Models whose speed is asked are
untrained, so that every answer is as long as it may be.
"""

import dataclasses
import functools
import json
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments.benchmarks.contest import (
    Contest,
    Contestant,
    ContestConfig,
    on_cores,
    ours,
)
from experiments.benchmarks.peers import FOLDER, PeersMissing, peers_python
from experiments.benchmarks.report import (
    Answer,
    Figure,
    Spread,
    machine_line,
    run_benchmark,
    table,
)
from experiments.benchmarks.workers import serving_task
from kerasgpt.checkpoints.model_folder import find_model_folder, load_model
from kerasgpt.config import InputError, setting

PARTS = ("equal", "decode", "clients", "start")
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
# An answer of the chat model may have so many tokens.
CHAT_TOKENS = 48
XLA, EXPORT = "Generator, XLA", "SavedModel"
BATCHED, ONE_ROW = "kerasgpt", "kerasgpt, one at a time"
PEER, PEER_ALONE = "transformers", "transformers, one at a time"
# torch's threads times requests that generate at a time: both ways that a
# user may choose, 2 threads for one request and one for each of many.
PEER_WAYS = {
    PEER: {"parallel": 16, "threads": 1},
    PEER_ALONE: {"parallel": 1, "threads": 2},
}
# The shape that both have.
PEER_SHAPE = "12M"
ONE_ROW_SERVER, PEER_SERVER = "kerasgpt_server.py", "transformers_server.py"
OUR_PACKAGES = ["keras", "tensorflow", "starlette", "uvicorn"]
PEER_PACKAGES = ["torch", "transformers", "fastapi"]
DECODE_GOAL, PEER_GOAL, LATE_GOAL = 0.7, 3.0, 5.0
CLIENT_GOALS = {1: 1.0, 4: 2.0, 16: 4.0}
MOST_CLIENTS = max(CLIENT_GOALS)
WORDS = {True: "yes", False: "no", None: "–"}


@dataclasses.dataclass(frozen=True)
class ServingConfig(ContestConfig):
    """Serving, in all the ways that there are."""

    folder: str = setting(
        "", "run folder of a chat model; empty = an untrained one"
    )
    parts: str = setting(",".join(PARTS), f"of {','.join(PARTS)}")
    shapes: str = setting(
        ",".join(serving_task.SHAPES), f"of {','.join(serving_task.SHAPES)}"
    )
    questions: int = setting(1000, "half English, half Chinese", minimum=2)
    rows: str = setting("1,8", "of a decoded batch")
    new_tokens: int = setting(64, "of each answer to a client", minimum=1)
    requests_per_client: int = setting(2, "in each round", minimum=1)
    pieces: int = setting(200, "streamed answers in all", minimum=1)


CONFIG = ServingConfig(repeats=3)
QUICK = [
    "shapes=shop",
    "repeats=1",
    "questions=20",
    "requests_per_client=1",
    "pieces=10",
]


def figure_table(figures):
    """Returns the lines of a table of figures."""
    rows = [[f.name, f.goal, f.seen, WORDS[f.is_met]] for f in figures]
    return table(["figure", "goal", "seen", "met?"], rows)


def completion(prompt, new_tokens):
    """Returns the body that asks for a greedy completion of ids."""
    return {"prompt": prompt, "max_tokens": new_tokens, "temperature": 0}


def rounds_of(outcome, **wanted):
    """Returns the Outcome with only the answers that hold these values."""
    answers = [
        answer for answer in outcome.answers if wanted.items() <= answer.items()
    ]
    return dataclasses.replace(outcome, answers=answers)


def rates(outcome, tokens):
    """Returns "median [low–high]" of tokens a second."""
    return Spread.of([tokens / s for s in outcome.seconds]).show(digits=0)


def ask_equal(config, models):
    settings = {
        "model": models.model("chat"),
        "export": models.export("chat"),
        "server": models.command("chat"),
        "questions": config.questions,
        "new_tokens": CHAT_TOKENS,
    }
    asker = ours("answers", "equal_answers_worker.py", settings)
    # A round of questions is no round of a contest.
    config = dataclasses.replace(config, contestants="")
    with Contest([asker], config, with_yardsticks=False) as contest:
        outcome = contest.outcomes[0]
    if outcome.missing:
        raise InputError(f"equal answers: {outcome.missing}")
    facts = outcome.facts
    for unequal in facts["first_unequal"]:
        print("first unequal:", *unequal.items(), sep="\n  ")
    count = facts["questions"]
    model = "trained" if config.folder else "untrained"
    figures = [
        Figure(
            f"greedy answers as of {XLA}: {way} ({model} model, "
            f"{facts['distinct']:,} answers differ from each other)",
            f"{count:,}",
            f"{equal:,} of {count:,}",
            equal == count,
        )
        for way, equal in facts["equal"].items()
    ]
    return figures, contest.record


def ask_decode(shape, config, models):
    counts = [int(part) for part in config.rows.split(",")]
    (version,) = pathlib.Path(models.export(shape)).iterdir()
    shared = {
        "new_tokens": serving_task.MAX_NEW_TOKENS,
        "prompts": {
            count: serving_task.prompts(shape, count=count, seed=count)
            for count in counts
        },
    }
    workers = [
        ours(name, "export_decode_worker.py", {**shared, **settings})
        for name, settings in (
            (XLA, {"model": models.model(shape)}),
            (EXPORT, {"export": str(version)}),
        )
    ]
    with Contest(workers, config, with_yardsticks=False) as contest:
        for _ in range(config.repeats):
            for count in counts:
                contest.play({"run": 2, "rows": count}, rounds=1)
    with_xla, without = contest.measured(XLA), contest.measured(EXPORT)
    figures = []
    for count in counts if with_xla and without else ():
        theirs, mine = (
            rounds_of(one, rows=count) for one in (with_xla, without)
        )
        tokens = count * serving_task.MAX_NEW_TOKENS
        share = mine.speed_against(theirs)
        is_same = (
            without.facts["ids"][str(count)]
            == with_xla.facts["ids"][str(count)]
        )
        figures.append(
            Figure(
                f"decode without XLA, {shape}, {count} rows",
                f"≥ {DECODE_GOAL} × XLA",
                f"{share.show(digits=2)} ×; {rates(mine, tokens)} tokens/s, "
                f"XLA {rates(theirs, tokens)}; "
                f"ids {'equal' if is_same else 'not equal'}",
                share.median >= DECODE_GOAL,
            )
        )
    for outcome in contest.outcomes:
        outcome.facts.pop("ids", None)
    return figures, contest.record


def client_contestants(shape, config, models):
    body = completion(
        serving_task.prompts(shape, count=1, seed=0)[0], config.new_tokens
    )

    def served(name, command, packages):
        settings = {
            "command": command,
            "path": COMPLETIONS,
            "body": body,
            "packages": packages,
        }
        return ours(name, "load_worker.py", settings)

    def script(python, worker, settings):
        path = str(FOLDER / "workers" / worker)
        return [str(python), path, json.dumps(settings)]

    one_row = {"folder": models.export(shape), "row_counts": [1]}
    contestants = [
        served(BATCHED, models.command(shape), OUR_PACKAGES),
        served(
            ONE_ROW,
            script(sys.executable, ONE_ROW_SERVER, one_row),
            OUR_PACKAGES,
        ),
    ]
    if shape != PEER_SHAPE:
        return contestants
    for name, way in PEER_WAYS.items():
        settings = {"task": serving_task.task_of(shape), **way}
        try:
            python = peers_python(config)
        except PeersMissing as error:
            contestants.append(Contestant(name, [], missing=str(error)))
        else:
            command = script(python, PEER_SERVER, settings)
            contestants.append(served(name, command, PEER_PACKAGES))
    return contestants


def ask_clients(shape, config, models):
    workers = client_contestants(shape, config, models)
    asked = [
        (number, count)
        for number in range(config.repeats)
        for count in CLIENT_GOALS
    ]
    with Contest(workers, config, with_yardsticks=False) as contest:
        for number, count in asked:
            # Other prompts each time: what was read is kept for a while.
            prompts = serving_task.prompts(
                shape,
                count=count * config.requests_per_client,
                seed=[number, count],
            )
            bodies = [completion(one, config.new_tokens) for one in prompts]
            request = {"path": COMPLETIONS, "clients": count, "bodies": bodies}

            def request_of(name, count=count, request=request):
                is_asked = name not in PEER_WAYS or count == MOST_CLIENTS
                return request if is_asked else None

            contest.play(request_of, rounds=1)
    _, tokenizer = load_model(models.model(shape))
    check_answers(contest, config, tokenizer)
    return client_figures(shape, contest, config), contest.record


def check_answers(contest, config, tokenizer):
    """Puts the share of answers that equal ours into each contestant's facts,
    and takes the answers out.

    Raises:
        InputError: if an answer is shorter than asked.
    """
    texts = {}
    for outcome in contest.outcomes:
        texts[outcome.name] = {count: [] for count in CLIENT_GOALS}
        for told in outcome.answers:
            count, answers = told["clients"], told.pop("answers")
            wanted = count * config.requests_per_client * config.new_tokens
            if told["tokens"] != wanted:
                raise InputError(
                    f"{outcome.name}: {told['tokens']} tokens instead of "
                    f"{wanted}; the comparison would mean nothing."
                )
            texts[outcome.name][count] += [
                one if isinstance(one, str) else tokenizer.decode(one)
                for one in answers
            ]
    for outcome in contest.outcomes:
        pairs = [
            (one, other)
            for count in CLIENT_GOALS
            for one, other in zip(
                texts[outcome.name][count],
                texts.get(BATCHED, {}).get(count, ()),
                strict=False,
            )
        ]
        same = sum(one == other for one, other in pairs)
        outcome.facts["equal_answers"] = f"{same:,} of {len(pairs):,}"


def client_figures(shape, contest, config):
    mine = contest.measured(BATCHED)
    figures = []

    def compare(name, count, goal):
        other = contest.measured(name)
        if not other:
            reason = next(
                (one.missing for one in contest.outcomes if one.name == name),
                "not asked",
            )
            seen, is_met = f"not measured: {reason}", None
        else:
            tokens = count * config.requests_per_client * config.new_tokens
            fast, slow = (
                rounds_of(one, clients=count) for one in (mine, other)
            )
            speed = fast.speed_against(slow)
            is_met = speed.median >= goal
            seen = (
                f"{speed.show(digits=2)} ×; {rates(fast, tokens)} tokens/s, "
                f"it {rates(slow, tokens)}; equal answers "
                f"{other.facts['equal_answers']}"
            )
        figures.append(
            Figure(
                f"{shape}, {count} clients, against {name}",
                f"≥ {goal} ×",
                seen,
                is_met,
            )
        )

    if mine:
        for count, goal in CLIENT_GOALS.items():
            compare(ONE_ROW, count, goal)
        for name in PEER_WAYS if shape == PEER_SHAPE else ():
            compare(name, MOST_CLIENTS, PEER_GOAL)
    return figures


def ask_start(config, models):
    """Starts the chat model's server afresh in each round, then streams."""
    command = models.command("chat")
    chats = serving_task.conversations(config.pieces)
    bodies = [
        {
            "messages": chat,
            "max_tokens": CHAT_TOKENS,
            "temperature": 0,
            "stream": True,
        }
        for chat in chats
    ]
    first = {"messages": chats[0], "max_tokens": 1, "temperature": 0}
    settings = {
        "command": command,
        "path": CHAT,
        "body": first,
        "packages": OUR_PACKAGES,
    }
    outcomes = []
    for number in range(config.repeats):
        fresh = ours(f"start {number + 1}", "load_worker.py", settings)
        alone = dataclasses.replace(config, contestants="")
        with Contest([fresh], alone, with_yardsticks=False) as contest:
            streams = bodies[number :: config.repeats]
            contest.play({"path": CHAT, "stream": streams}, rounds=1)
        outcome = contest.outcomes[0]
        if outcome.missing:
            raise InputError(f"{outcome.name}: {outcome.missing}")
        outcomes += contest.outcomes
    starts = [outcome.facts for outcome in outcomes]
    seconds = [one for outcome in outcomes for one in outcome.seconds]
    middle, late = (
        sorted(seconds)[int(share * (len(seconds) - 1))]
        for share in (0.5, 0.99)
    )
    is_trained = "trained" if config.folder else "untrained"
    figures = [
        Figure(
            f"first piece of a streamed answer, 1 client, {is_trained} shop "
            f"model, p99",
            f"≤ {LATE_GOAL} × p50",
            f"{1e3 * late:.1f} ms; p50 {1e3 * middle:.1f} ms, most "
            f"{1e3 * max(seconds):.1f} ms of {len(seconds):,}",
            late <= LATE_GOAL * middle,
        ),
        Figure(
            "from the command to the first answer, shop model",
            "",
            " s; ready after ".join(
                Spread.of([one[name] for one in starts]).show()
                for name in ("first_answer_seconds", "ready_seconds")
            )
            + " s",
        ),
    ]
    told = [dataclasses.asdict(outcome) for outcome in outcomes]
    return figures, {"machine": contest.facts, "outcomes": told}


def ask(config):
    parts, shapes = (
        [one for one in value.split(",") if one]
        for value in (config.parts, config.shapes)
    )
    for name, given, known in (
        ("parts", parts, PARTS),
        ("shapes", shapes, serving_task.SHAPES),
    ):
        if not given or not set(given) <= set(known):
            raise InputError(
                f"{name}={','.join(given)}: must be of {','.join(known)}."
            )
    if config.folder:
        find_model_folder(config.folder)
    with tempfile.TemporaryDirectory() as folder, on_cores(config):
        models = serving_task.Models(pathlib.Path(folder), config.folder)
        asked = {
            "equal": [("equal", ask_equal)],
            "decode": [
                (f"decode {shape}", functools.partial(ask_decode, shape))
                for shape in shapes
            ],
            "clients": [
                (f"clients {shape}", functools.partial(ask_clients, shape))
                for shape in shapes
            ],
            "start": [("start", ask_start)],
        }
        figures, data = [], {}
        questions = [one for part in parts for one in asked[part]]
        for name, question in questions:
            found, data[name] = question(config, models)
            # There is no later, if a later question fails.
            print(*(f"  {f.name}: {f.seen}" for f in found), sep="\n")
            figures += found
    machine = [record["machine"] for record in data.values()][-1]
    lines = [*figure_table(figures), "", machine_line(machine)]
    return Answer(lines, figures, data)


if __name__ == "__main__":
    run_benchmark(ask, CONFIG, quick=QUICK, document=__doc__)
