"""Settings of every test: quiet logs, repeatable fuzzing, one dtype policy."""

import os
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


@pytest.fixture(autouse=True)
def fixed_seed_and_policy():
    """Gives every test the same seed and leaves the default policy behind."""
    policy = keras.config.dtype_policy()
    # Keras draws the seeds of initializers and dropout from Python's numbers.
    random.seed(0)
    np.random.seed(0)
    yield
    keras.config.set_dtype_policy(policy)
