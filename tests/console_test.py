"""Tests of kerasgpt.console."""

import os

import pytest

from kerasgpt.console import quiet_libraries


def test_native_notes_are_dropped_and_later_ones_are_not(capfd):
    with quiet_libraries():
        os.write(2, b"a note")
    os.write(2, b"ours")
    assert capfd.readouterr().err == "ours"


def test_errors_pass_and_standard_error_comes_back(capfd):
    with pytest.raises(ValueError), quiet_libraries():
        raise ValueError("a real error")
    os.write(2, b"ours")
    assert capfd.readouterr().err == "ours"
