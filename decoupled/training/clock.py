"""Time spent in training steps: stands still while the network is looked at, goes on in a later process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Times(NamedTuple):
    """Seconds of training, as a checkpoint keeps them.

    Attributes:
      trained: of steps that have been reported.
      unreported: of steps since.
      reported_at: number of the last step that was reported.
    """

    trained: float = 0.0
    unreported: float = 0.0
    reported_at: int = 0


class Clock:
    """Runs from the moment it is made, on from given times."""

    def __init__(self, times: Times | None = None):
        self._times = times or Times()
        self._since = time.monotonic()

    def report(self, step: int) -> float:
        """Steps a second since the last report."""
        self._take()
        trained, unreported, reported_at = self._times
        self._times = Times(trained + unreported, 0.0, step)
        return (step - reported_at) / unreported

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, it stands still."""
        self._take()
        yield
        self._since = time.monotonic()

    def times(self) -> Times:
        """Up to now, or to where it was paused."""
        return self._times

    def _take(self) -> None:
        now = time.monotonic()
        self._times = self._times._replace(unreported=self._times.unreported + now - self._since)
        self._since = now
