"""What docs/ says is what the code does."""

import os
import pathlib
import re
import runpy
import subprocess
import textwrap

import pytest

from kerasgpt.data.preparation import PreparationConfig
from kerasgpt.training.distribution import read_cluster
from kerasgpt.training.sft import SFTConfig

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def block(file, name):
    """Returns what stands between two comments of a document."""
    text = (DOCS / file).read_text(encoding="utf-8")
    return re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.S)[1]


def run_script(script, folder, **variables):
    """Returns the cluster that a start script leaves to Python."""
    commands = {
        "python": 'printf "%s" "$TF_CONFIG"',
        "scontrol": '[ "$*" = "show hostnames node[1-3]" ] && '
        "printf 'node%s\\n' 1 2 3",
    }
    for name, body in commands.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    result = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": f"{folder}:{os.environ['PATH']}", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return read_cluster(result.stdout)


@pytest.mark.parametrize("number", [0, 2])
def test_the_slurm_script_names_all_nodes(tmp_path, number):
    script = block("many_devices.md", "slurm worker")
    script = script.removeprefix("```bash\n").removesuffix("```\n")
    cluster = run_script(
        script,
        tmp_path,
        SLURM_JOB_ID="1234567",
        SLURM_JOB_NODELIST="node[1-3]",
        SLURM_NODEID=str(number),
    )
    assert cluster == {
        "addresses": ["node1:24567", "node2:24567", "node3:24567"],
        "number": number,
    }


def test_the_kubernetes_script_names_all_pods(tmp_path):
    text = block("many_devices.md", "kubernetes worker")
    script = re.search(r"- \|\n(.*?)\n {6}volumes:", text, re.S)[1]
    cluster = run_script(
        textwrap.dedent(script),
        tmp_path,
        WORKERS="2",
        JOB_COMPLETION_INDEX="1",
    )
    assert cluster == {
        "addresses": ["kerasgpt-0.kerasgpt:2222", "kerasgpt-1.kerasgpt:2222"],
        "number": 1,
    }
    # One number, in three places.
    counts = re.findall(r'(?:completions|parallelism|value): "?(\d+)', text)
    assert counts == ["2"] * 3


def test_the_tables_of_scaling_are_those_that_the_script_prints(capsys):
    path = ROOT / "experiments" / "scaling_table.py"
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.strip() == block("scaling.md", "scaling table").strip()


def test_settings_of_data_are_those_there_are():
    known = [key for key, *_ in PreparationConfig().describe()]
    named = re.findall(
        r"`((?:source|cleaning|near|remove_near_duplicates|contamination|split|"
        r"mixture|augmentation)\b[a-z_.]*)",
        (DOCS / "data.md").read_text(encoding="utf-8"),
    )
    assert len(named) > 10
    for name in named:
        assert any(key == name or key.startswith(name) for key in known), name


def test_documents_name_files_that_exist():
    for document in DOCS.glob("*.md"):
        text = document.read_text(encoding="utf-8")
        for name in re.findall(
            r"(?:kerasgpt|experiments|tests|docs)/\S+\.\w+", text
        ):
            assert (ROOT / name).is_file(), f"{document.name}: {name}"


def test_the_settings_that_are_told_are_there():
    known = {key for key, *_ in SFTConfig().describe()}
    text = (DOCS / "training_settings.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if "|" in line][2:]
    assert len(rows) > 20
    for _, _, ours, *_ in rows:
        assert set(re.findall(r"`([\w.]+)`", ours)) <= known, ours
