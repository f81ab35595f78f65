import dataclasses
import json

import pytest

from kerasgpt.config import Config, InputError, setting
from kerasgpt.training.run_folder import claim_folder


@dataclasses.dataclass(frozen=True)
class Part(Config):
    steps: int = setting(10, "steps")


@dataclasses.dataclass(frozen=True)
class Run(Config):
    run_dir: str = setting("", "folder")
    seed: int = setting(0, "seed")
    train: Part = setting(Part(), "the training")


def test_a_new_folder_becomes_the_runs_own(tmp_path):
    folder = claim_folder(
        tmp_path / "a" / "run", Run(), overwrite=False, ignored=("run_dir",)
    )
    assert json.loads((folder / "config.json").read_text()) == {
        "software": "kerasgpt",
        "run_dir": "",
        "seed": 0,
        "train": {"steps": 10},
    }


def test_the_same_run_may_go_on_in_its_folder(tmp_path):
    for run_dir in ("a", "b"):
        claim_folder(
            tmp_path / "run",
            Run(run_dir=run_dir),
            overwrite=False,
            ignored=("run_dir",),
        )


@pytest.mark.parametrize("ignored", ["train", "train.steps"])
def test_ignored_sections_and_settings_may_differ(tmp_path, ignored):
    claim_folder(tmp_path, Run(), overwrite=False)
    (tmp_path / "checkpoints").mkdir()
    other = Run().override(["train.steps=20"])
    claim_folder(tmp_path, other, overwrite=False, ignored=(ignored,))
    assert (tmp_path / "checkpoints").is_dir()
    # A name is ignored as a whole only.
    with pytest.raises(InputError, match=r"train\.steps=10, not 20"):
        claim_folder(tmp_path, other, overwrite=False, ignored=("train.st",))


def test_the_folder_of_another_run_is_refused_naming_the_setting(tmp_path):
    claim_folder(tmp_path, Run(), overwrite=False)
    (tmp_path / "checkpoints").mkdir()
    other = Run().override(["train.steps=20"])
    with pytest.raises(InputError) as caught:
        claim_folder(tmp_path, other, overwrite=False)
    told = str(caught.value)
    assert f"{tmp_path}: holds a run with train.steps=10, not 20" in told
    assert "overwrite=true" in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("thesis.txt", "years of work"),
        # Other programs call their settings config.json too.
        ("config.json", '{"port": 80, "users": {"steps": 3}}'),
        ("config.json", "[1, 2]"),
        # Even with the very same settings.
        ("config.json", json.dumps(Run().to_dict())),
        ("config.json", '{"software": "another"}'),
    ],
)
def test_a_folder_of_something_else_is_refused_even_to_overwrite(
    tmp_path, name, content
):
    (tmp_path / name).write_text(content)
    for overwrite in (False, True):
        with pytest.raises(InputError, match="no run of kerasgpt"):
            claim_folder(tmp_path, Run(), overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == content


def test_a_run_that_trained_nothing_makes_room_for_the_corrected_one(tmp_path):
    claim_folder(tmp_path, Run(), overwrite=False)
    for name in ("tokenizer", "data"):
        (tmp_path / name).mkdir()
    claim_folder(tmp_path, Run(seed=1), overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1


def test_overwrite_deletes_the_other_run(tmp_path):
    claim_folder(tmp_path / "run", Run(), overwrite=False)
    (tmp_path / "run" / "result.json").write_text("{}")
    claim_folder(tmp_path / "run", Run(seed=1), overwrite=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [
        "config.json"
    ]


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file.txt").write_text("x")
    folder = tmp_path / "file.txt" / "run"
    with pytest.raises(InputError, match="cannot be written: Not a directory"):
        claim_folder(folder, Run(), overwrite=False)
