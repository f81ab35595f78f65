"""Owns the terminal: quiet libraries, help, errors in one line.

Not: commands (cli.py).
"""

import contextlib
import logging
import os
import signal
import sys

from kerasgpt.config import InputError


class Interrupted(Exception):
    """Training was stopped by a signal, after its state was saved."""

    def __init__(self, signal_number, message):
        super().__init__(message)
        self.signal_number = signal_number


@contextlib.contextmanager
def quiet_libraries():
    """Drops what native libraries write to standard error in the block.

    TensorFlow 2.21's start-up notes and the SentencePiece inside TF Text heed
    no log level; a dozen such lines would bury our own. Python errors are
    raised as ever.

    Example:
        >>> with quiet_libraries():
        ...     _ = os.write(2, b"a note nobody needs")
    """
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(null)
        os.close(saved)


def guard(function, *, interrupted="interrupted."):
    """Calls a function and returns the exit status.

    An `InputError`, or an error of the file system, is printed as one line,
    status 2. An interruption says how to go on, status 130 (SIGINT) or 143
    (SIGTERM).
    """
    # Decoding compiles a few shapes on purpose; each would draw a warning. By
    # its name, since there need be no TensorFlow.
    logging.getLogger("tensorflow").setLevel("ERROR")
    try:
        function()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output, such as head, has left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A full disk, a folder without permission: no fault of the program.
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def settings_table(config):
    """Returns one line a setting: key, type, default, meaning with unit."""
    rows = config.describe()
    width = max(len(key) for key, *_ in rows)
    lines = []
    for key, kind, unit, default, description in rows:
        shown = "none" if default is None else str(default) or '""'
        meaning = f"{description} [{unit}]" if unit else description
        lines.append(
            f"  {key:{width}}  {kind}, default {shown}\n"
            f"  {'':{width}}    {meaning}"
        )
    return "\n".join(lines)
