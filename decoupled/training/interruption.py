"""Turns a request to stop into an end at the next step."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Within, SIGINT and SIGTERM are only noted; a second one interrupts at once.

    Signals belong to a process's main thread: in any other, nothing is changed and nothing is noted.

    Returns:
      A function: the number of the signal that has come, or 0.
    """
    noted = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        del frame
        if noted:
            raise KeyboardInterrupt
        noted = number

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield lambda: noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def agreed(number: int) -> int:
    """The largest number that any process has: all must call this at the same step."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())
