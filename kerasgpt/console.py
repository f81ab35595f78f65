"""Owns the quiet of the terminal. Not: what we write there ourselves."""

import contextlib
import os


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
