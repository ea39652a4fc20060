"""A lock on a folder, which the system gives up when the process ends, in whatever way."""

import importlib
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl: Any = None


def locked(folder: Path) -> IO[bytes]:
    """An open file, whose lock is held until it is closed.

    Raises:
      BlockingIOError: another process, or another part of this one, holds it.
      OSError: the folder cannot be written.
    """
    file = open(folder / "lock", "ab")  # noqa: SIM115
    try:
        _lock(file)
    except OSError:
        file.close()
        raise
    return file


def _lock(file: IO[bytes]) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    msvcrt: Any = importlib.import_module("msvcrt")
    file.seek(0)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except PermissionError as error:
        raise BlockingIOError(error.errno, "the folder is in use") from error
