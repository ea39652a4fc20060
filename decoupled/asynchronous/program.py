"""The program that workers are started from: each imports it, where it is a file, under another name."""

import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from decoupled.errors import UsageError

_HIDING = threading.Lock()


def check_importable(make_learner: Callable[[], Any]) -> None:
    """That another process can be sent this function, and finds it.

    Raises:
      UsageError: it cannot.
    """
    pickler = _Pickler(BytesIO())
    try:
        pickler.dump(make_learner)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            f"make_learner cannot be sent to another process ({error}): give a function at the top level"
            " of a file, or a functools.partial of one"
        ) from error
    if pickler.from_main and not _main_is_a_file():
        raise UsageError(
            f"workers cannot import {pickler.from_main[0]}, which was defined in a notebook, on standard"
            " input or the like: write it into a file, such as my_learner.py, and import it from there"
        )


@contextmanager
def importable_main() -> Iterator[None]:
    """Within, a process can be started though `__main__` says it is a file that is none, like `<stdin>`."""
    main = sys.modules["__main__"]
    with _HIDING:
        file = getattr(main, "__file__", None)
        if file is None or _main_is_a_file():
            yield
            return
        del main.__file__
        try:
            yield
        finally:
            main.__file__ = file


def _main_is_a_file() -> bool:
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None:  # `python -m`
        return True
    file = getattr(main, "__file__", None)
    return file is not None and os.path.isfile(file)


class _Pickler(pickle.Pickler):
    """Notes which functions and classes of `__main__` it meets."""

    def __init__(self, file: BytesIO):
        super().__init__(file, protocol=5)
        self.from_main: list[str] = []

    def reducer_override(self, obj: Any) -> Any:
        name = getattr(obj, "__qualname__", None)
        if name is not None and getattr(obj, "__module__", None) == "__main__":
            self.from_main.append(name)
        return NotImplemented
