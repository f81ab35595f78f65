"""Owns the proof that the fault table finds what is lost. Not: the table."""

import contextlib
import dataclasses
import json
import shutil

import pytest

from experiments import fault_table
from experiments.fault_table import FAULTS, Fault
from experiments.faults import damage, hostile, stops, trial
from experiments.faults.trial import ENDED, Outcome, Truth
from kerasgpt.checkpoints import list_run_states
from kerasgpt.config import InputError
from kerasgpt.files import write_manifest


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("truth")
    trial.tiny_run(folder / "run")
    (folder / "export").mkdir()
    (folder / "export" / "saved_model.pb").write_bytes(bytes(1000))
    write_manifest(folder / "export")
    return Truth(folder / "run", folder / "export", 1.0, folder, 1.0)


@pytest.mark.parametrize(
    "fault",
    [
        fault
        for fault in FAULTS
        if not fault.needs_processes and fault.name.split()[0] != "hostile"
    ],
    ids=lambda fault: fault.name,
)
def test_nothing_is_lost(fault, truth, tmp_path):
    outcome = fault.trial(0, tmp_path / "trial", truth)
    assert outcome.seed == 0
    assert outcome.fault
    assert outcome.lost == ""


@pytest.mark.parametrize("seed", range(len(hostile.HOSTILE)))
def test_hostile_files_are_refused(seed, truth, tmp_path):
    outcome = hostile.load_a_hostile_file(seed, tmp_path / "trial", truth)
    assert outcome == Outcome(seed, [*hostile.HOSTILE][seed])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [20, 22, 31])
@pytest.mark.parametrize(
    "fault",
    [fault for fault in FAULTS if fault.needs_processes],
    ids=lambda fault: fault.name,
)
def test_nothing_is_lost_by_processes_that_end(fault, seed, truth, tmp_path):
    assert fault.trial(seed, tmp_path / "trial", truth).lost == ""


def _loss_of(path, truth):
    return damage.loss_of(path, truth.folder, truth.export)


def test_what_is_not_damaged_is_loaded_which_would_be_a_loss(truth):
    for path in damage.things(truth):
        assert _loss_of(path, truth) == "loaded"


def test_a_damage_that_nobody_notices_is_a_loss(truth, monkeypatch):
    path = truth.export / "saved_model.pb"
    with damage.put_back(path) as content:
        path.write_bytes(content[1:])
        assert _loss_of(path, truth) == ""
        monkeypatch.setattr(damage, "read_manifest", lambda folder: {})
        assert _loss_of(path, truth) == "loaded"
    assert path.read_bytes() == content


def test_where_no_checkpoint_is_whole_the_run_is_lost(truth):
    states = list_run_states(truth.folder / "checkpoints")
    paths = [state / "progress.json" for state in states]
    with contextlib.ExitStack() as stack:
        for path in reversed(paths):
            stack.enter_context(damage.put_back(path))
            assert _loss_of(paths[-1], truth) in ("", "loaded")
            path.write_bytes(b"")
        assert _loss_of(paths[-1], truth).startswith("no checkpoint is used")


@pytest.mark.slow
def test_other_losses_after_another_split_are_a_loss(
    truth, tmp_path, monkeypatch
):
    monkeypatch.setattr(stops, "LOSS_TOLERANCE", -1.0)
    outcome = stops.go_on_with_another_split(0, tmp_path / "trial", truth)
    assert outcome.lost.startswith("a loss differs by")


def test_another_end_is_a_loss(truth, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(truth.folder, run)
    assert trial.difference(run, truth.folder) == ""
    path = run / "metrics.jsonl"
    path.write_text(path.read_text().replace("0", "1", 1))
    assert trial.difference(run, truth.folder) == "another end"
    (run / "result.json").unlink()
    assert trial.difference(run, truth.folder) == "it could not go on"


def test_a_trial_that_fails_has_lost_its_run(truth, tmp_path):
    def fail(seed, folder, truth):
        raise ZeroDivisionError

    (outcome,) = fault_table.try_all(fail, [7], tmp_path, truth)
    assert outcome.seed == 7
    assert "ZeroDivisionError" in outcome.lost


def test_the_table_tells_trials_and_losses(monkeypatch, truth, capsys):
    by_name = {fault.name: fault for fault in FAULTS}
    fault = dataclasses.replace(
        by_name["hostile file"], keras=by_name["stop within an epoch"]
    )
    monkeypatch.setattr(fault_table, "FAULTS", (fault,))
    monkeypatch.setattr(fault_table, "find_truth", lambda folder: truth)
    monkeypatch.setattr(
        fault_table,
        "try_fault",
        lambda *_, **__: [Outcome(0, "one", "loaded"), Outcome(1, ENDED)],
    )
    answer = fault_table.ask(fault_table.CONFIG)
    cells = [cell.strip() for cell in answer.lines[2].split("|")[1:-1]]
    assert cells == [
        "hostile file",
        "2",
        "1",
        "stop within an epoch",
        "2",
        "1",
    ]
    assert [figure.is_met for figure in answer.figures] == [False]
    assert (
        "hostile file: 1 came when the run had ended, and prove nothing."
        in answer.lines
    )
    assert answer.data["faults"]["hostile file"]["reasons"] == {"loaded": 1}
    capsys.readouterr()
    with pytest.raises(InputError, match="a fault was not survived"):
        fault_table.ask(fault_table.CONFIG.override(["strict=true"]))
    assert "loaded" in capsys.readouterr().out


def test_a_call_goes_on_with_the_record_of_another(
    monkeypatch, truth, tmp_path, capsys
):
    asked = []

    def try_two(fault, seeds, *_, **__):
        asked.append([*seeds])
        return [
            Outcome(seed, "one", "loaded"[: seed % 2]) for seed in seeds[:2]
        ]

    fault = Fault("fault", 5, None)
    monkeypatch.setattr(fault_table, "FAULTS", (fault,))
    monkeypatch.setattr(fault_table, "find_truth", lambda folder: truth)
    monkeypatch.setattr(fault_table, "try_fault", try_two)
    config = fault_table.CONFIG.override([f"record={tmp_path}"])
    for _ in range(4):
        answer = fault_table.ask(config)
    assert asked == [[0, 1, 2, 3, 4], [2, 3, 4], [4]]
    assert answer.data["faults"]["fault"]["trials"] == 5
    assert answer.data["faults"]["fault"]["reasons"] == {"l": 2}
    lines = (tmp_path / "fault_table.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [*range(5)]
    # Nothing more is tried once the time is over; what is known is told.
    later = config.override(["seconds=0", "share=1", "seed=1"])
    assert fault_table.ask(later).data["faults"]["fault"]["trials"] == 4
    fault_table.ask(config.override(["again=true"]))
    assert asked[-1] == [0, 1, 2, 3, 4]
    capsys.readouterr()


def test_no_trial_begins_when_the_time_is_over(truth, tmp_path):
    def fail(seed, folder, truth):
        raise AssertionError

    assert fault_table.try_all(fail, [7], tmp_path, truth, until=0.0) == []


def test_files_that_are_not_hostile_are_loaded(truth, tmp_path, monkeypatch):
    monkeypatch.setattr(hostile, "HOSTILE", {"none": lambda run, canary: None})
    outcome = hostile.load_a_hostile_file(0, tmp_path / "trial", truth)
    assert outcome == Outcome(0, "none", "it was loaded")


def test_a_file_that_is_read_outside_is_a_loss(truth, tmp_path, monkeypatch):
    def forge(run, canary):
        monkeypatch.setattr(
            hostile, "load_huggingface", lambda folder: canary.read_text()
        )

    monkeypatch.setattr(hostile, "HOSTILE", {"read": forge})
    outcome = hostile.load_a_hostile_file(0, tmp_path / "trial", truth)
    assert outcome.lost.startswith("it led to ('open',")
