"""Owns the proof that weights are kept, on average and for each document."""

import numpy as np
import pytest

from kerasgpt.config import InputError
from kerasgpt.data.mixture import (
    MixtureConfig,
    check_weights,
    num_copies,
    parse_weights,
    source_weight,
)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 2.0, 3.75])
def test_the_mean_number_of_copies_is_the_weight(weight):
    places = (np.arange(1000) + 0.5) / 1000
    copies = [num_copies(place, weight) for place in places]
    assert np.mean(copies) == pytest.approx(weight)
    assert set(copies) <= {int(weight), int(weight) + 1}


def test_a_larger_weight_loses_no_document():
    for place in (0.05, 0.5, 0.95):
        counts = [num_copies(place, w) for w in (0.1, 0.5, 0.9, 1, 1.7, 2)]
        assert counts == sorted(counts)


def test_the_end_of_a_path_names_a_source():
    config = MixtureConfig(weights="raw/a.jsonl=2, 维基.txt=0.5")
    assert source_weight("/data/raw/a.jsonl", config) == 2
    assert source_weight("raw/a.jsonl", config) == 2
    assert source_weight("/data/other/a.jsonl", config) == 1
    assert source_weight("/data/维基.txt", config) == 0.5
    assert source_weight("/data/x维基.txt", config) == 1


@pytest.mark.parametrize("text", ["wiki", "wiki=", "wiki=-1", "=2", "a=1,b=x"])
def test_what_is_no_weight_is_refused(text):
    with pytest.raises(InputError, match="must be SOURCE=NUMBER"):
        MixtureConfig(weights=text)


def test_a_source_that_is_not_there_is_refused():
    check_weights(["a/wiki", "b"], MixtureConfig(weights="wiki=2"))
    with pytest.raises(InputError, match="no input c; inputs are a/wiki, b"):
        check_weights(["a/wiki", "b"], MixtureConfig(weights="c=2"))


def test_commas_may_be_left_over():
    assert parse_weights(" , a=1,") == (("a", 1.0),)
