"""Owns the proof that benchmarks time what they say. Not: any time."""

import json
import random
import runpy
import subprocess
import sys

import pytest

from experiments.benchmarks import (
    contest,
    load,
    report,
    run_all,
    serving,
    serving_soak,
    time_to_loss,
    train_step,
)
from experiments.benchmarks.workers import serving_task
from kerasgpt.config import InputError
from kerasgpt.serving.request_schema import request_schemas

BENCHMARKS = contest.FOLDER
# Answers at once with numbers that tell who said them, and chatters.
WORKER = """
import sys
sys.path.insert(0, {root!r})
from experiments.benchmarks.workers.protocol import serve

def build(settings):
    print("chatter of a library")
    rounds = iter(settings["seconds"])

    def run(request):
        print("more chatter")
        return {{"seconds": [next(rounds)] * request["run"]}}

    return {{"losses": settings["losses"]}}, run

serve(build)
"""
# Completes every prompt by its reverse; a path tells the status to answer with.
SERVER = """
import http.server, json

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = body["prompt"][::-1]
        reply = {"choices": [{"text": text}],
                 "usage": {"completion_tokens": len(text)}}
        content = json.dumps(reply).encode()
        self.send_response(int(self.path.strip("/")))
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print("chatter", flush=True)
print(f"at http://127.0.0.1:{server.server_port}/", flush=True)
server.serve_forever()
"""
SERVER_COMMAND = [sys.executable, "-c", SERVER]


def _contestant(name, seconds, losses=(1.0, 0.9)):
    program = WORKER.format(root=str(BENCHMARKS.parents[1]))
    settings = json.dumps({"seconds": seconds, "losses": losses})
    return contest.Contestant(name, [sys.executable, "-c", program, settings])


def _play(workers, **settings):
    config = contest.ContestConfig(repeats=3, **settings)
    with contest.Contest(workers, config, with_yardsticks=False) as played:
        played.play({"run": 2})
    return played


def test_every_worker_answers_every_round_whatever_it_prints():
    played = _play([_contestant("a", [1, 2, 4]), _contestant("b", [2, 2, 2])])
    assert played["a"].seconds == [1, 1, 2, 2, 4, 4]
    assert played["b"].spread == report.Spread(2, 2, 2)
    # By round: 2/1, 2/2, 2/4.
    assert played["a"].speed_against(played["b"]) == report.Spread(1, 0.5, 2)


def test_a_worker_that_dies_is_told_and_the_others_go_on():
    dies = contest.Contestant(
        "dies", [sys.executable, "-c", "raise SystemExit('out of luck')"]
    )
    played = _play([dies, _contestant("lives", [1, 2, 3])])
    assert played["dies"].missing == "exit status 1: out of luck"
    assert played.measured("dies") is None
    assert played.measured("lives").seconds == [1, 1, 2, 2, 3, 3]


def test_a_worker_that_stops_between_rounds_is_told():
    played = _play([_contestant("short", [1]), _contestant("b", [1, 1, 1])])
    assert "StopIteration" in played["short"].missing
    assert len(played["b"].answers) == 3


def test_a_python_that_is_not_there_is_one_line():
    config = contest.ContestConfig(peers_python="nowhere/python")
    with pytest.raises(InputError, match="peers_python=nowhere/python"):
        contest.peer("torch", "torch_worker.py", {}, config)


def test_a_contestant_that_is_not_there_is_one_line():
    with pytest.raises(InputError, match="contestants=nobody"):
        _play([_contestant("a", [1])], contestants="nobody")


def test_times_of_different_models_are_refused():
    same = [
        _contestant(train_step.OURS, [1, 1, 1]),
        _contestant(train_step.EAGER, [1, 1, 1], losses=(1.0, 0.901)),
    ]
    train_step.check_losses("0.8M", _play(same))
    other = _contestant(train_step.COMPILED, [1, 1, 1], losses=(1.0, 0.95))
    with pytest.raises(InputError, match="do not train the same model"):
        train_step.check_losses("0.8M", _play([*same, other]))


def test_a_record_names_files_without_the_folders_of_a_machine(tmp_path):
    config = time_to_loss.CONFIG.override(
        [f"data.path={tmp_path}/a.txt,b/c.txt", f"record={tmp_path}"]
    )
    report.write_record(config, report.Answer([], [], {}), "Question  Why?")
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["settings"]["data"]["path"] == (
        "a.txt,b/c.txt"
    )
    assert str(tmp_path) not in path.read_text()


def test_a_script_prints_its_table_and_writes_its_record(tmp_path):
    result = subprocess.run(
        [
            sys.executable,
            BENCHMARKS / "train_step.py",
            "sizes=0.8M",
            "repeats=1",
            f"contestants={train_step.OURS},{train_step.EAGER}",
            # Has no torch: the peers' rows say so.
            f"peers_python={sys.executable}",
            f"record={tmp_path}",
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "No module named 'torch'" in result.stdout
    record = json.loads((tmp_path / "train_step.json").read_text())
    outcomes = {o["name"]: o for o in record["0.8M"]["outcomes"]}
    ours = outcomes[train_step.OURS]
    # ln 65 and little else: the first weights are small.
    assert ours["facts"]["losses"][0] == pytest.approx(4.19, abs=0.03)
    assert ours["facts"]["losses"][1] < ours["facts"]["losses"][0]
    assert outcomes[train_step.EAGER]["missing"]
    assert record["settings"]["sizes"] == "0.8M"
    lines = (tmp_path / "train_step.md").read_text().splitlines()
    assert any(line.startswith("| 0.8M | kerasgpt") for line in lines)


SCRIPTS = {
    "good": """
import json, pathlib, sys
record = sys.argv[-1].removeprefix("record=")
figure = {"name": "speed", "goal": "", "seen": "9", "is_met": True}
pathlib.Path(record, "good.json").write_text(json.dumps({"figures": [figure]}))
""",
    "failing": "import sys; sys.exit('data.path: no such file')",
    "silent": "",
    "slow": "import time; time.sleep(60)",
}


def test_scripts_that_fail_are_told_and_the_others_go_on(tmp_path, monkeypatch):
    for name, program in SCRIPTS.items():
        (tmp_path / f"{name}.py").write_text(program)
    monkeypatch.setattr(run_all, "FOLDER", tmp_path)
    config = run_all.RunAllConfig(
        scripts="failing,silent,slow,good",
        record=str(tmp_path),
        script_minutes=0.02,
    )
    failing, silent, slow, good = run_all.ask(config).figures
    assert failing.seen == "not measured: data.path: no such file"
    assert silent.seen.startswith("not measured: told no figures: ")
    assert "script_minutes=0.02" in slow.seen
    assert (good.name, good.seen, good.is_met) == ("speed", "9", True)


def _body(prompt):
    return json.dumps({"prompt": prompt}).encode()


def _text(reply):
    return reply.json()["choices"][0]["text"]


def test_clients_are_answered_in_the_order_of_their_requests():
    requests = [("/200", _body(f"{n:03}")) for n in range(40)]
    requests[7] = ("/503", _body("no"))
    with load.Server(SERVER_COMMAND) as server:
        assert server.resident_bytes > 1e6
        _, replies = load.closed_loop(server.address, requests, num_clients=4)
    statuses = [reply.status for reply in replies]
    assert statuses == [200] * 7 + [503] + [200] * 32
    assert [_text(reply) for reply in replies[8:]] == [
        f"{n:03}"[::-1] for n in range(8, 40)
    ]
    assert not server.is_alive


def test_an_open_loop_tells_of_every_request_and_of_no_answer():
    told = {}
    with load.Server(SERVER_COMMAND) as server:
        # The third is no JSON: the server drops the connection.
        bodies = [_body("ab"), _body("cd"), b"{", _body("ef")]
        after, num_unsent = load.open_loop(
            server.address,
            [(0.01 * n, "/200", body) for n, body in enumerate(bodies)],
            tell=lambda number, reply: told.update({number: reply}),
            after=lambda: "sent",
        )
    assert (after, num_unsent) == ("sent", 0)
    assert [told[n].status for n in range(4)] == [200, 200, 0, 200]
    assert _text(told[3]) == "fe"


def test_a_server_that_does_not_start_says_why():
    command = [sys.executable, "-c", "raise SystemExit('no port is free')"]
    with pytest.raises(OSError, match="no port is free"):
        load.Server(command)


def test_a_load_worker_counts_tokens():
    settings = {
        "command": SERVER_COMMAND,
        "packages": ["pytest"],
        "path": "/200",
        "body": {"prompt": "first"},
    }
    worker = contest.ours("server", "load_worker.py", settings)
    config = contest.ContestConfig(repeats=1)
    with contest.Contest([worker], config, with_yardsticks=False) as played:
        bodies = [{"prompt": prompt} for prompt in ("ab", "cde")]
        played.play({"clients": 2, "path": "/200", "bodies": bodies})
    outcome = played["server"]
    assert not outcome.missing
    assert outcome.answers[0]["answers"] == ["ba", "edc"]
    assert outcome.answers[0]["tokens"] == 5
    assert outcome.facts["versions"] == {"pytest": pytest.__version__}


def _served(name, answers, tokens):
    told = {"clients": 1, "tokens": tokens, "answers": answers}
    return contest.Outcome(name, answers=[{**told, "seconds": [1.0]}])


class _Played:
    def __init__(self, *outcomes):
        self.outcomes = outcomes


def test_short_answers_are_refused_and_equal_ones_are_counted():
    config = serving.ServingConfig(requests_per_client=2, new_tokens=3)
    same = _served(serving.BATCHED, ["a", "b"], 6)
    other = _served(serving.ONE_ROW, ["a", "c"], 6)
    serving.check_answers(_Played(same, other), config, None)
    assert other.facts["equal_answers"] == "1 of 2"
    with pytest.raises(InputError, match="5 tokens instead of 6"):
        short = _served(serving.BATCHED, ["a", "b"], 5)
        serving.check_answers(_Played(short), config, None)


def test_half_of_the_questions_are_chinese():
    chats = serving_task.conversations(100)
    texts = ["".join(one["content"] for one in chat) for chat in chats]
    assert len(set(texts)) == 100
    chinese = [any("一" <= one <= "鿿" for one in text) for text in texts]
    assert chinese == [False] * 50 + [True] * 50


def test_every_route_gets_mutated_bodies():
    valid = serving_soak.valid_requests("toy")
    schemas = request_schemas(max_choices=1, max_stops=1)
    assert {path for path, _ in valid} >= set(schemas)
    config = serving_soak.SoakConfig(bodies=3000)
    mutated = list(serving_soak.mutations("toy", config))
    assert mutated == list(serving_soak.mutations("toy", config))
    assert {path for path, _ in mutated} == {path for path, _ in valid}
    bodies = [body for _, body in mutated]
    assert any(body.count(b"[") > 40_000 for body in bodies)
    assert any(b"NaN" in body for body in bodies)
    assert any(b"\xed\xa0\x80" in body for body in bodies)
    right = {json.dumps(body).encode() for _, body in valid}
    assert sum(body in right for body in bodies) < len(bodies) / 10


def test_a_mutation_leaves_the_body_itself_alone():
    body = {"a": [1, {"b": "c"}]}
    for seed in range(200):
        serving_soak.mutated(body, random.Random(seed))
    assert body == {"a": [1, {"b": "c"}]}


def test_no_answer_is_a_failure_and_being_away_is_none():
    statuses = {0: 1, 200: 9, 400: 9, 429: 9, 500: 2, 503: 9, 504: 4}
    assert serving_soak.num_failures(statuses) == 7


@pytest.mark.parametrize(
    "script",
    sorted(
        {path.stem for path in BENCHMARKS.glob("*.py")}
        - {"contest", "load", "peers", "report"}
    ),
)
def test_every_script_tells_its_question_and_settings(
    script, monkeypatch, capsys
):
    path = str(BENCHMARKS / f"{script}.py")
    monkeypatch.setattr(sys, "argv", [path, "--help"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path(path, run_name="__main__")
    told = capsys.readouterr().out
    assert told.startswith("Question")
    assert "--quick stands for" in told
    assert "repeats" in told
