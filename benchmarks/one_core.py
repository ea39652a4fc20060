"""One device of one core, in a process of its own: its XLA has a pool of one thread.

Confining a process that has more threads than cores would slow it down, and flatter its rivals.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection
from typing import Any

import jax

THREADS = "NPROC"  # how many threads XLA:CPU makes


class OneCore:
    """A step that runs elsewhere; called like a compiled one, but the state stays where it runs.

    Args:
      make: () -> (update, state, x, y, key), at the top level of a file, or a `functools.partial` of such.
    """

    def __init__(self, make: Callable[[], tuple[Any, ...]]):
        self._pipe = _started(_serve, make)
        self._pipe.recv()  # compiled

    def __call__(self, state: Any, *arguments: Any) -> tuple[Any]:
        self._pipe.send(None)
        self.cores = self._pipe.recv()
        return (state,)


def on_one_core(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function at the top level of a file returns there; all must be picklable."""
    return _started(_answer, function, *arguments).recv()


def _started(target: Callable, *arguments: Any) -> Connection:
    """A process that runs `target(*arguments, pipe)`; returns the pipe's other end."""
    context = multiprocessing.get_context("spawn")
    own, other = context.Pipe()
    process = context.Process(target=target, args=(*arguments, other), daemon=True)
    with one_thread():
        process.start()
    other.close()  # So that the death of the process is the end of the pipe.
    return own


def _answer(function: Callable[..., Any], *rest: Any) -> None:
    *arguments, pipe = rest
    pipe.send(function(*arguments))


def _serve(make: Callable[[], tuple[Any, ...]], pipe: Connection) -> None:
    update, state, *arguments = make()
    step = jax.jit(update, donate_argnums=0).lower(state, *arguments).compile()
    pipe.send(None)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        wall, processor = time.perf_counter(), time.process_time()
        state, *_ = jax.block_until_ready(step(state, *arguments))
        pipe.send((time.process_time() - processor) / (time.perf_counter() - wall))


def one_thread() -> AbstractContextManager[None]:
    """Processes started within it have a pool of one thread, and one device."""
    return environment(**{THREADS: "1", "XLA_FLAGS": ""})


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Processes started within it have these variables; after it all are as they were."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
