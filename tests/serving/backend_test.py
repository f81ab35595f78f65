import dataclasses
import inspect

import pytest

from kerasgpt.generation import SamplerSettings
from kerasgpt.serving.backend import (
    Backend,
    DeadlineExceeded,
    GenerationRequest,
    QueueFull,
    Unavailable,
)

METHODS = {"encode", "encode_chat", "decode", "generate", "score"}


def test_a_request_is_greedy_without_penalties_unless_told():
    request = GenerationRequest((2, 6), max_new_tokens=3, stop_id=8)
    settings = SamplerSettings.constant(1)
    for name in SamplerSettings._fields:
        default = getattr(settings, name)[0]
        assert getattr(request, name) == pytest.approx(float(default))
    assert request.deadline_s is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.stop_id = 3


@pytest.mark.parametrize("missing", ["token_ids", "max_new_tokens", "stop_id"])
def test_a_request_says_what_to_continue_how_far(missing):
    values = {"token_ids": (2, 6), "max_new_tokens": 3, "stop_id": 8}
    values.pop(missing)
    with pytest.raises(TypeError, match=missing):
        GenerationRequest(**values)


def test_a_full_queue_says_when_to_come_back():
    error = QueueFull(2.5)
    assert error.retry_after_s == 2.5
    assert "busy" in str(error)


def test_no_failure_is_caught_as_another():
    failures = (QueueFull, DeadlineExceeded, Unavailable)
    for failure in failures:
        others = [one for one in failures if one is not failure]
        assert not issubclass(failure, tuple(others))


def test_a_backend_is_made_with_all_of_its_methods_only():
    assert Backend.__abstractmethods__ == METHODS
    body = dict.fromkeys(METHODS, lambda self, *unused: None)
    assert type("Whole", (Backend,), body)()
    for missing in METHODS:
        partial = {name: body[name] for name in METHODS - {missing}}
        with pytest.raises(TypeError, match=missing):
            type("Partial", (Backend,), partial)()


def test_only_the_source_of_tokens_is_not_awaited():
    # `generate` returns an asynchronous generator, which is closed to cancel.
    awaited = {
        name
        for name in METHODS
        if inspect.iscoroutinefunction(getattr(Backend, name))
    }
    assert awaited == METHODS - {"generate"}
