"""Owns the proof that benchmarks time what they say. Not: any time."""

import json
import subprocess
import sys

import pytest

from experiments.benchmarks import contest, report, train_step
from kerasgpt.config import InputError

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


@pytest.mark.parametrize(
    "script",
    sorted(
        {path.stem for path in BENCHMARKS.glob("*.py")}
        - {"contest", "peers", "report"}
    ),
)
def test_every_script_tells_its_question_and_settings(script):
    result = subprocess.run(
        [sys.executable, BENCHMARKS / f"{script}.py", "--help"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Question")
    assert "--quick stands for" in result.stdout
    assert "repeats" in result.stdout
