import os
import signal
import threading

import pytest

from kerasgpt.training.watch import StopRequest, Watch, stop_requests


class Model:
    """Stands for the compiled model that fit hands to callbacks."""

    stop_training = stop_evaluating = False


class Log:
    """Stands for the ProgressLog: where fit is, and what it tells."""

    def __init__(self):
        self.step = 0
        self.event = None
        self.notes = []

    def note(self, step, split, values):
        self.notes.append((step, split, values))


@pytest.fixture
def watch():
    return build_watch()


def build_watch(spike_rise=1.0):
    watch = Watch(
        StopRequest(),
        Log(),
        row_numbers=lambda step: [2 * step, 2 * step + 1],
        max_skipped_steps=5,
        spike_rise=spike_rise,
        check=lambda: None,
    )
    watch.set_model(Model())
    watch.on_epoch_begin(0)
    return watch


def run(watch, to, *, skipped=0, loss=None, norm=1.0):
    """Lets fit come to step `to`, with so many skipped since the event."""
    watch.log.step = to
    event = {"loss": loss, "gradient_norm": norm}
    watch.log.event = None if loss is None else event
    watch.on_train_batch_end(to - 1, {"skipped_steps": float(skipped)})


# Signals.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request_and_handlers_come_back(number):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with stop_requests() as request:
        assert not request.signal_number
        os.kill(os.getpid(), number)
        assert request.signal_number == number
    after = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert after == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize(
    ("numbers", "status"),
    [
        ([signal.SIGINT, signal.SIGINT], 130),
        ([signal.SIGTERM, signal.SIGTERM], 143),
        ([signal.SIGTERM, signal.SIGINT], 130),
        ([signal.SIGTERM], 7),
    ],
)
def test_the_second_signal_ends_the_process_at_once(numbers, status):
    child = os.fork()
    if not child:
        with stop_requests():
            for number in numbers:
                os.kill(os.getpid(), number)
            # As a long step does: without a look at what Python wants.
            threading.Event().wait(2 if len(numbers) == 1 else 60)
        os._exit(7)
    _, found = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(found) == status


def test_outside_the_main_thread_nothing_is_handled():
    found = []

    def look():
        with stop_requests() as request:
            found.append(request.signal_number)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [0]


def test_a_request_ends_training_and_validation(watch):
    run(watch, 2)
    watch.on_test_batch_end(0)
    assert not watch.model.stop_training
    assert not watch.model.stop_evaluating
    watch.request.signal_number = signal.SIGTERM
    run(watch, 4)
    watch.on_test_batch_end(1)
    assert watch.model.stop_training
    assert watch.model.stop_evaluating


def test_what_went_wrong_elsewhere_is_raised(watch):
    def check():
        raise OSError

    watch.check = check
    with pytest.raises(OSError):
        run(watch, 2)


# Bad steps.


def test_rows_of_skipped_steps_are_noted(watch):
    run(watch, 2)
    run(watch, 4, skipped=1)
    assert watch.log.notes == [
        (
            4,
            "skipped",
            {"steps": 1, "among": [2, 4], "rows": [[4, 5], [6, 7]]},
        )
    ]


def test_only_steps_in_a_row_end_training(watch):
    run(watch, 2, skipped=2)
    run(watch, 4, skipped=4)
    assert watch.skipped_in_a_row == 4
    # A good step in between; then an event, from which counting starts anew.
    run(watch, 6, skipped=5, loss=3.0)
    assert watch.skipped_in_a_row == 1
    run(watch, 8)
    assert watch.skipped_in_a_row == 0
    assert not watch.model.stop_training
    run(watch, 10, skipped=2)
    run(watch, 12, skipped=4)
    assert not watch.has_diverged
    run(watch, 13, skipped=5)
    assert watch.has_diverged
    assert watch.model.stop_training


def test_counting_goes_on_where_training_was_stopped(watch):
    run(watch, 3, skipped=3)
    other = build_watch()
    other.restore(watch.state())
    other.log.step = 3
    other.on_epoch_begin(0)
    run(other, 5, skipped=5)
    assert other.has_diverged
    assert other.log.notes[0][2]["steps"] == 2


# Spikes.


def test_a_loss_far_above_the_lowest_is_a_spike(watch):
    for step, loss in ((1, 3.0), (2, 2.0), (3, 2.9), (4, 2.5)):
        run(watch, step, loss=loss)
        assert not watch.has_spike
    run(watch, 5, loss=3.1)
    assert watch.has_spike
    assert watch.model.stop_training
    assert watch.state()["lowest_loss"] == 2.0


def test_an_event_without_a_good_step_has_no_loss(watch):
    run(watch, 1, loss=3.0)
    run(watch, 2, skipped=1, loss=0.0, norm=0.0)
    run(watch, 3, loss=3.0)
    assert not watch.has_spike


def test_without_a_limit_nothing_is_a_spike():
    watch = build_watch(spike_rise=None)
    run(watch, 1, loss=1.0)
    run(watch, 2, loss=99.0)
    assert not watch.model.stop_training
