"""Turns a request to stop into an end at the next step."""

import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequests:
    """From `begin` on, SIGINT and SIGTERM are only noted; a context manager, after which all is as before.

    A second one does at once what it did before, or interrupts. Signals belong to a process's main thread:
    in any other, nothing is changed and nothing is noted.

    Attributes:
      noted: the number of the signal that has come, or 0.
    """

    def __init__(self, signals: Sequence[int] = _SIGNALS) -> None:
        self.noted = 0
        self._signals = signals
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def begin(self) -> None:
        """To be called as soon as there is something to lose."""
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.noted:
            self.noted = number
            return
        before = self._before[number]
        if callable(before):
            before(number, frame)
        raise KeyboardInterrupt

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def agreed(number: int) -> int:
    """The largest number that any process has: all must call this at the same step."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())
