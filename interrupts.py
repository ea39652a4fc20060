"""SIGINT and SIGTERM end a program at once, from its first line to its last; imported before all else.

An exception is no way out of an import or a compilation: it is lost in there, or the interpreter is taken
down around threads that go on, and crashes. So a thread of its own ends the process, which waits for no
compiler. Code with something to lose takes the signals over by handlers of its own. Then the first one is
left to them, and a second one ends the process.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_GRACE_SECONDS = 1.0

_program = ""
_succeeds = False


def heed(program: str) -> None:
    """Begins, in the main thread; a second call does nothing.

    Args:
      program: how messages call it.
    """
    global _program
    if _program:
        return
    _program = program
    for number in _SIGNALS:
        signal.signal(number, _at_the_latest)
    import socket  # takes time; Windows is woken by sockets alone

    heard, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(heard, told), daemon=True).start()
    # The first that is registered is the last that is done.
    atexit.register(_leave_out_destructors)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_as_before)


def leave(code: int) -> NoReturn:
    """Ends the program at once, and runs no destructor.

    One may crash beside threads that go on, or wait for other processes; and these may be waiting for this
    one in the middle of a step.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def will_succeed() -> None:
    """Says that the program is about to end with exit code 0: no destructor will run then either.

    What was registered with `atexit` after `heed` is done. Destructors come later, when nobody heeds
    signals any more.
    """
    global _succeeds
    _succeeds = True


def _watch(heard, told) -> None:
    """Reads the numbers of signals as they come; `told`, where they are written, lives as long."""
    left_to_others = False
    while True:
        for number in heard.recv(1):
            if number not in _SIGNALS:
                continue
            if left_to_others:
                _end(number, ", at once, since it is the second signal")
            if signal.getsignal(number) is _at_the_latest:
                _end(number)
            left_to_others = True
            _say(f"{signal.Signals(number).name}: stopping after this step; a second signal stops at once")


def _at_the_latest(number: int, frame: FrameType | None) -> None:
    """The main thread does no more, and ends the process where the other thread cannot, or not yet."""
    del frame
    time.sleep(_GRACE_SECONDS)
    _say(f"stopped by {signal.Signals(number).name}")
    os._exit(128 + number)  # flushing is what the other one may be stuck in


def _end(number: int, why: str = "") -> NoReturn:
    _say(f"stopped by {signal.Signals(number).name}{why}")
    leave(128 + number)


def _say(message: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{_program}: {message}\n".encode())


def _leave_out_destructors() -> None:
    if _succeeds:
        leave(0)


def _as_before() -> None:
    """A forked process has no such thread, and must not tell its parent's."""
    global _succeeds
    _succeeds = False
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
