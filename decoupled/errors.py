"""The errors this package raises for mistakes a person can mend."""

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """What was asked for cannot be: a wrong option, an impossible cut, a batch larger than the data.

    `train.py` prints it as one line and exits with code 2.
    """


class DataError(RuntimeError):
    """A data set is missing, damaged or not what it claims to be.

    `train.py` prints it as one line and exits with code 1.
    """


class TrainingError(RuntimeError):
    """A run cannot go on: its loss is no longer a number, or its results cannot be written.

    `train.py` prints it as one line and exits with code 1.
    """


class MissingPackage(ModuleNotFoundError):
    """A package that only some uses need is not installed; the message has the command that does so.

    `train.py` prints it as one line and exits with code 1.
    """


class Interrupted(RuntimeError):
    """A run was asked to stop, and has, with a checkpoint to go on from.

    `train.py` prints it as one line and exits with code 128 + the signal's number: 130 or 143.

    Attributes:
      signal: the number of the signal.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Says of a UsageError at which boundary it arose."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
