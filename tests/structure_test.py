"""Checks the shape of the house: imports, names, docstrings, tree, mirrors."""

import ast
import functools
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "kerasgpt"
EXPERIMENTS = ROOT / "experiments"
# From the lowest floor to the highest; rooms of one floor are strangers.
FLOORS = (
    ("config",),
    ("files", "console"),
    ("tokenizers", "layers"),
    ("data", "models"),
    ("checkpoints", "generation"),
    ("evaluation",),
    ("training", "serving"),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
DRAWERS = {"utils", "util", "common", "misc", "helpers", "core"}
# Folders whose files are read together and tested by one file.
ONE_MIRROR = {"data/shop": "data/shop_test.py"}


def _modules():
    return sorted(LIBRARY.rglob("*.py"))


@functools.cache
def _tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def _name(path):
    return path.relative_to(ROOT).as_posix()


def _room(path):
    return path.relative_to(LIBRARY).with_suffix("").parts[0]


def _imported(node):
    """Returns the dotted names that an import statement loads."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.level:
            return ["kerasgpt.relative_import"]
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def _of_library(node):
    return [
        name for name in _imported(node) if name.split(".")[0] == "kerasgpt"
    ]


def _found(paths, faults):
    return [
        f"{_name(path)}: {fault}" for path in paths for fault in faults(path)
    ]


def test_every_room_has_a_floor():
    rooms = {_room(path) for path in _modules()} - {"__init__"}
    assert rooms <= set(FLOOR), "a new room must be given its floor above"


def test_rooms_import_only_from_floors_below():
    def faults(path):
        room = _room(path)
        if room == "__init__":
            return
        for node in ast.walk(_tree(path)):
            for name in _of_library(node):
                parts = name.split(".")
                other = parts[1] if len(parts) > 1 else ""
                if other == room:
                    continue
                if other not in FLOOR or FLOOR[other] >= FLOOR[room]:
                    yield f"line {node.lineno} imports {name}"

    assert not _found(_modules(), faults)


def test_no_function_imports_the_library():
    def faults(path):
        for function in ast.walk(_tree(path)):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                # The lazy names of the package are the one exception.
                if path == LIBRARY / "__init__.py":
                    continue
                for node in ast.walk(function):
                    for name in _of_library(node):
                        yield f"line {node.lineno} imports {name}"

    assert not _found(_modules(), faults)


def test_no_module_is_a_drawer():
    folders = [path for path in LIBRARY.rglob("*") if path.is_dir()]
    names = {path.stem for path in [*_modules(), *folders]}
    assert not names & DRAWERS


def test_init_files_only_re_export():
    def faults(path):
        for index, node in enumerate(_tree(path).body):
            is_docstring = (
                index == 0
                and isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
            )
            is_names = isinstance(node, ast.Assign) and [
                target.id
                for target in node.targets
                if isinstance(target, ast.Name)
            ] == ["__all__"]
            is_import = isinstance(node, (ast.Import, ast.ImportFrom))
            # The package itself resolves its public names when asked for one.
            is_lazy = path == LIBRARY / "__init__.py" and isinstance(
                node, (ast.Assign, ast.FunctionDef)
            )
            if not (is_docstring or is_names or is_import or is_lazy):
                yield f"line {node.lineno} is more than a re-export"

    assert not _found([p for p in _modules() if p.stem == "__init__"], faults)


def test_every_module_says_what_it_owns():
    def faults(path):
        is_empty = not path.read_text(encoding="utf-8").strip()
        if path.stem == "__init__" and (is_empty or path.parent == LIBRARY):
            return
        header = ast.get_docstring(_tree(path)) or ""
        if not header.startswith("Owns"):
            yield 'its docstring does not begin with "Owns"'

    assert not _found(_modules(), faults)


def test_every_public_class_and_function_has_a_docstring():
    def faults(path):
        for node in _tree(path).body:
            is_definition = isinstance(
                node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            )
            if not is_definition or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                yield f"{node.name} has no docstring"

    assert not _found(_modules(), faults)


def _listed_in_readme(text):
    """Returns the paths of the tree's *.py names, or None without a tree."""
    block = re.search(r"<!-- tree -->(.*?)<!-- /tree -->", text, re.DOTALL)
    if not block:
        return None
    paths = set()
    folders = []
    for line in block[1].splitlines():
        if not line.strip() or line.strip().startswith("```"):
            continue
        depth = len(line) - len(line.lstrip())
        folders = [entry for entry in folders if entry[0] < depth]
        prefix = "".join(name for _, name in folders)
        first = line.split()[0]
        if first.endswith("/"):
            folders.append((depth, first))
        paths |= {prefix + word for word in re.findall(r"[\w/]+\.py\b", line)}
    return paths


def test_the_reader_of_the_tree_reads_nested_folders():
    text = """<!-- tree -->
```
kerasgpt/           the library
  config.py         settings; see x
  data/             rows
    shop/           the world
      world.py      facts
    pretrain.py sft.py   two stages
experiments/
  run_sft.py
```
<!-- /tree -->"""
    assert _listed_in_readme(text) == {
        "kerasgpt/config.py",
        "kerasgpt/data/shop/world.py",
        "kerasgpt/data/pretrain.py",
        "kerasgpt/data/sft.py",
        "experiments/run_sft.py",
    }
    assert _listed_in_readme("no tree") is None


def test_the_tree_in_the_readme_is_the_tree_on_disk():
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    listed = _listed_in_readme(text)
    if listed is None:
        pytest.skip("README.md has no tree between <!-- tree --> comments")
    on_disk = {
        _name(path)
        for path in [*_modules(), *EXPERIMENTS.rglob("*.py")]
        if path.stem != "__init__" and "runs" not in path.parts
    }
    assert listed - on_disk == set(), "in README.md, not on disk"
    assert on_disk - listed == set(), "on disk, not in README.md"


def test_every_library_file_has_its_mirror_test():
    missing = []
    for path in _modules():
        relative = path.relative_to(LIBRARY)
        if path.stem == "__init__":
            continue
        mirror = ONE_MIRROR.get(
            relative.parent.as_posix(),
            relative.with_name(f"{path.stem}_test.py").as_posix(),
        )
        if not (ROOT / "tests" / mirror).exists():
            missing.append(f"{_name(path)}: no tests/{mirror}")
    assert not missing


def test_experiments_use_public_names_only():
    def faults(path):
        for node in ast.walk(_tree(path)):
            for name in _of_library(node):
                if any(part.startswith("_") for part in name.split(".")):
                    yield f"line {node.lineno} imports {name}"
        for node in ast.walk(_tree(path)):
            if (
                isinstance(node, ast.Attribute)
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
                and not (
                    isinstance(node.value, ast.Name) and node.value.id == "self"
                )
            ):
                yield f"line {node.lineno} uses {node.attr}"

    scripts = [p for p in EXPERIMENTS.rglob("*.py") if "runs" not in p.parts]
    assert not _found(sorted(scripts), faults)


def test_the_import_linter_agrees():
    command = pathlib.Path(sys.executable).with_name("lint-imports")
    command = command if command.exists() else shutil.which("lint-imports")
    if not command:
        pytest.skip("import-linter is not installed")
    result = subprocess.run(
        [command, "--config", ROOT / "setup.cfg", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_records_hold_no_path_of_a_machine():
    path = re.compile(r"""(^|[\s"'`=,(])/(home|root|tmp|work|Users)/""", re.M)
    files = [p for p in EXPERIMENTS.glob("records/**/*") if p.is_file()]
    assert files
    for file in files:
        if file.suffix in (".json", ".jsonl", ".md"):
            assert not path.search(file.read_text(encoding="utf-8")), file


def test_the_longest_files_are_told(record_property):
    lengths = sorted(
        (len(path.read_text(encoding="utf-8").splitlines()), _name(path))
        for path in _modules()
    )
    for length, name in lengths[:-6:-1]:
        record_property("long file", f"{length:5} {name}")
