"""Owns the proof that Beam gives what this machine gives, to the byte."""

import functools
import json
import sys

import pytest

from kerasgpt.config import InputError
from kerasgpt.data.beam_runner import stage_by_beam, stage_element
from kerasgpt.data.preparation import PreparationConfig, prepare_files


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in "abcd":
        rows = [{"text": f"{name} 第{n}页，on page {n}."} for n in range(20)]
        rows += [{"text": "In all of them."}, {"text": "Lorem ipsum."}]
        content = "\n".join(map(json.dumps, rows)) + "\n{broken\n"
        (folder / f"{name}.jsonl").write_text(content)
    return folder


def run(raw, output, **options):
    config = PreparationConfig(num_workers=2)
    prepare_files([str(raw)], output, config, tell=str, **options)
    return {
        path.name: path.read_bytes()
        for path in output.iterdir()
        if path.is_file()
    }


def test_beam_gives_the_same_files(raw, tmp_path):
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed")
    here = run(raw, tmp_path / "here")
    beam = run(
        raw,
        tmp_path / "beam",
        # Not multi_processing: its workers import the main module anew.
        stage_all=functools.partial(
            stage_by_beam, options=["--runner=DirectRunner"]
        ),
    )
    assert beam == here
    # And the same again, of what is there.
    assert run(raw, tmp_path / "beam") == here


def test_what_a_worker_runs_needs_no_beam(raw, tmp_path):
    def one_by_one(missing, config, num_workers, tell):
        for one, folder in reversed(missing):
            element = (vars(one), str(folder))
            # As it is after a way over the network.
            stage_element(
                json.loads(json.dumps(element)), settings=config.to_dict()
            )

    assert run(raw, tmp_path / "a", stage_all=one_by_one) == run(
        raw, tmp_path / "b"
    )


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(InputError, match=r"pip install 'kerasgpt\[beam\]'"):
        stage_by_beam([], None, 1, print)
