"""Settings of every test: quiet logs, repeatable fuzzing, one dtype policy."""

import json
import os
import pathlib
import random

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import hypothesis
import keras
import numpy as np
import pytest

# The same examples in every run, and none stored in the working tree.
hypothesis.settings.register_profile(
    "kerasgpt", derandomize=True, database=None, deadline=None, max_examples=100
)
hypothesis.settings.load_profile("kerasgpt")

GOLDENS = pathlib.Path(__file__).parent / "goldens"
# Programs that made them with other people's libraries.
collect_ignore_glob = ["goldens/*"]


def pytest_addoption(parser):
    parser.addoption(
        "--update-goldens",
        action="store_true",
        help="write the expected values in tests/goldens/ anew",
    )


def pytest_terminal_summary(terminalreporter):
    """Writes what tests told, in whichever process they ran."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture
def golden(request):
    """Returns a function that compares a JSON value with the stored one."""

    def check(name, value):
        path = GOLDENS / f"{name}.json"
        if request.config.getoption("--update-goldens"):
            origin = f"pytest --update-goldens {request.node.nodeid}"
            text = json.dumps({"origin": origin, "value": value}, indent=2)
            path.parent.mkdir(exist_ok=True)
            path.write_text(text + "\n")
        assert path.is_file(), "run pytest --update-goldens"
        expected = json.loads(path.read_text())["value"]
        assert value == expected, "if meant, run pytest --update-goldens"

    return check


@pytest.fixture(autouse=True)
def fixed_seed_and_policy():
    """Gives every test the same seed and leaves the default policy behind."""
    policy = keras.config.dtype_policy()
    # Keras draws the seeds of initializers and dropout from Python's numbers.
    random.seed(0)
    np.random.seed(0)
    yield
    keras.config.set_dtype_policy(policy)
