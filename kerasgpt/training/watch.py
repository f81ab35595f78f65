"""Owns what ends training between two steps: signals, bad steps, spikes.

Not: what is done about it (stage.py).
"""

import contextlib
import os
import signal
import threading

import keras

HANDLED = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a signal asked to stop.

    Attributes:
        signal_number: int, 0 = none came.
    """

    signal_number = 0


@contextlib.contextmanager
def stop_requests():
    """Turns the first SIGINT or SIGTERM into a request, the second into exit.

    Python's own handling would stop in the middle of an update. The second
    one ends the process at once, with status 130 or 143, also while a step is
    computed.

    Yields:
        StopRequest. Outside the main thread no signal ever reaches it.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number, frame):
        request.signal_number = request.signal_number or number

    # Python calls handlers between two lines of the main thread only; the
    # number of a signal is written here as it comes.
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    before_sender = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    before = {number: signal.signal(number, ask) for number in HANDLED}
    thread = threading.Thread(target=_exit_at_the_second, args=(receiver,))
    thread.start()
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_sender)
        os.close(sender)
        thread.join()
        os.close(receiver)


def _exit_at_the_second(receiver):
    num_signals = 0
    while numbers := os.read(receiver, 64):
        for number in numbers:
            num_signals += number in HANDLED
            if num_signals == 2:
                os._exit(128 + number)


class Watch(keras.callbacks.Callback):
    """Ends `fit` or `evaluate` early when there is a reason.

    Must stand behind the ProgressLog in the list of callbacks.

    Args:
        request: StopRequest.
        log: ProgressLog.
        row_numbers: function of a step, returns the row numbers of its batch.
        max_skipped_steps: int. So many bad steps in a row end training.
        spike_rise: float, nats. A loss so far above the lowest is a spike.
            `None` = there are none.
        check: function that raises what went wrong meanwhile, elsewhere.

    Attributes:
        skipped_in_a_row: int, steps whose loss or gradient was not finite up
            to now.
        has_spike: bool. The last event tells of one.
    """

    def __init__(
        self, request, log, *, row_numbers, max_skipped_steps, spike_rise, check
    ):
        super().__init__()
        self.request = request
        self.log = log
        self.row_numbers = row_numbers
        self.max_skipped_steps = max_skipped_steps
        self.spike_rise = spike_rise
        self.check = check
        self.restore({"skipped": 0, "skipped_in_a_row": 0, "lowest_loss": None})

    def state(self):
        """Returns what a resumed run must know, as a JSON value."""
        return {
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "lowest_loss": self.lowest_loss,
        }

    def restore(self, state):
        """Goes on from what `state` gave."""
        self.skipped = state["skipped"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
        self.lowest_loss = state["lowest_loss"]
        self.has_spike = False

    @property
    def has_diverged(self):
        """Bool. Too many steps in a row were skipped."""
        return self.skipped_in_a_row >= self.max_skipped_steps

    def on_epoch_begin(self, epoch, logs=None):
        self.last_step = self.log.step

    def on_train_batch_end(self, batch, logs=None):
        self._count_skipped(int(logs["skipped_steps"]))
        if self.log.event:
            self._look_for_a_spike(self.log.event)
        if self.request.signal_number or self.has_diverged or self.has_spike:
            self.model.stop_training = True
        self.check()

    def on_test_batch_end(self, batch, logs=None):
        if self.request.signal_number:
            self.model.stop_evaluating = True

    def _count_skipped(self, total):
        """Counts those of the last group; `total` is since the last event."""
        first, step = self.last_step, self.log.step
        skipped, self.last_step = total - self.skipped, step
        self.skipped = 0 if self.log.event else total
        if not skipped:
            self.skipped_in_a_row = 0
            return
        # Only whether all of a group were bad is known of their order.
        is_all = skipped == step - first
        self.skipped_in_a_row = (
            self.skipped_in_a_row + skipped if is_all else skipped
        )
        self.log.note(
            step,
            "skipped",
            {
                "steps": skipped,
                "among": [first, step],
                "rows": [self.row_numbers(i) for i in range(first, step)],
            },
        )

    def _look_for_a_spike(self, event):
        loss, lowest = event["loss"], self.lowest_loss
        # Without a good step there is no loss.
        if self.spike_rise is None or not event["gradient_norm"]:
            return
        self.has_spike = lowest is not None and loss > lowest + self.spike_rise
        if not self.has_spike:
            self.lowest_loss = loss if lowest is None else min(lowest, loss)
