"""Runs every stage of a chain in a process of its own, carries what they send, and replaces the dead.

Each worker has a pipe to the supervisor and nothing in common with other workers: a process that is killed
takes no lock and no queue with it. Two threads serve a worker: one starts it, reads from it, and starts the
next one when it has died; the other writes to it. They meet in the router, under one lock, which nobody
holds while waiting for a process; so a worker that is slow, stuck or dead keeps nobody else waiting.
"""

import multiprocessing
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Self

import jax.numpy as jnp
import numpy as np

from decoupled.asynchronous.messages import Begun, Ready, Start, receive, send, to_device
from decoupled.asynchronous.plan import make_plan
from decoupled.asynchronous.program import importable_main
from decoupled.asynchronous.report import AsyncOptions, AsyncResult, StageEvent
from decoupled.asynchronous.router import Router
from decoupled.asynchronous.worker import run_worker
from decoupled.errors import UsageError
from decoupled.learning.learner import Learner
from decoupled.learning.state import LearnerState
from decoupled.parallel.stages import join_states
from decoupled.types import Key, PyTree

_SPAWN = multiprocessing.get_context("spawn")
# What a process that has closed its pipe is given to end, before it is made to.
_GRACE_SECONDS = 5.0


class Supervisor:
    """A run in progress; a context manager, on whose exit no process is left."""

    def __init__(
        self,
        make_learner: Callable[[], Learner],
        state: LearnerState,
        example: tuple[PyTree, PyTree],
        key: Key,
        *,
        num_stages: int,
        options: AsyncOptions | None = None,
    ):
        """As for `run_asynchronously`; `example` is a batch (x, y), of which only shapes count."""
        options = options or AsyncOptions()
        plan = make_plan(make_learner, state, example, key, num_stages, options)
        self._jobs = [stage.job for stage in plan]
        self._router = Router(
            [stage.modules for stage in plan], [stage.state for stage in plan], int(state.step), options
        )
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # for the thread that feeds
        self._wake = [threading.Condition(self._lock) for _ in plan]  # for those that write
        self._ready = [False] * num_stages  # whether a stage's worker can be written to
        self._has_begun = [False] * num_stages  # whether one of its workers could import the program
        self._processes: list[SpawnProcess | None] = [None] * num_stages
        self._closing = False
        self._mistake: BaseException | None = None  # of a thread here, not of a worker
        self._threads = [
            threading.Thread(target=self._serve, args=(i,), daemon=True) for i in range(num_stages)
        ]

    def __enter__(self) -> Self:
        """Starts all workers, and waits until they have compiled."""
        try:
            for thread in self._threads:
                thread.start()
            with self._lock:
                self._wait(lambda: all(self._ready))
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    @property
    def pids(self) -> tuple[int | None, ...]:
        """Of the workers as they are now, lowest stage first."""
        with self._lock:
            return tuple(None if process is None else process.pid for process in self._processes)

    @property
    def ready(self) -> tuple[bool, ...]:
        """Whether each stage has a worker that has compiled."""
        with self._lock:
            return tuple(self._ready)

    @property
    def events(self) -> tuple[StageEvent, ...]:
        """Workers that have died so far."""
        with self._lock:
            return tuple(self._router.events)

    def feed(self, x: PyTree, y: PyTree) -> None:
        """Gives the lowest stage its next minibatch; waits while its queue is full.

        Raises:
          TrainingError: the run has failed.
        """
        with self._lock:
            self._wait(lambda: self._router.can_feed)
            self._router.feed(np.asarray(x), np.asarray(y))
            self._wake[0].notify()

    def finish(self) -> AsyncResult:
        """Lets everything on its way arrive, and collects what has become of the stages.

        Raises:
          TrainingError: the run has failed.
        """
        with self._lock:
            self._router.end_feed()
            self._wake_all()
            self._wait(lambda: self._router.finished)
            router = self._router
            states = [to_device(state) for state in router.final_states()]
            state = join_states(jnp.asarray(router.next_number, jnp.int32), states)
            return AsyncResult(state, router.reports(), tuple(router.events), tuple(router.losses))

    def _wait(self, condition: Callable[[], bool]) -> None:
        """Until the condition holds or the run has failed; the lock is held."""
        while True:
            error = self._router.error or self._mistake
            if error is not None:
                raise error
            if condition():
                return
            self._changed.wait()

    def _wake_all(self) -> None:
        for condition in (*self._wake, self._changed):
            condition.notify_all()

    def _close(self) -> None:
        with self._lock:
            self._closing = True
            self._wake_all()
            for process in self._processes:
                if process is not None:
                    process.terminate()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _serve(self, i: int) -> None:
        """Has a worker at work on stage i until it is finished, or the run has failed."""
        try:
            while True:
                exit_code = self._run_worker(i)
                with self._lock:
                    if self._closing or self._router.is_final(i):
                        return
                    self._router.died(i, _describe_end(exit_code))
                    self._wake_all()
                    if self._router.error is not None:
                        return
        except BaseException as error:
            with self._lock:
                self._mistake = error
                self._wake_all()

    def _run_worker(self, i: int) -> int | None:
        """A worker's life; returns its exit code.

        Raises:
          UsageError: it could not even begin, and nor could another.
        """
        ours, theirs = _SPAWN.Pipe()
        arguments = (theirs, self._jobs[i])
        process = _SPAWN.Process(target=run_worker, args=arguments, name=f"stage {i}", daemon=True)
        writer = threading.Thread(target=self._write, args=(i, ours), daemon=True)
        try:
            try:
                with importable_main():
                    process.start()
            finally:
                theirs.close()
            with self._lock:
                self._processes[i] = process
                if self._closing:
                    process.terminate()
                state = self._router.start_state(i)
            send(ours, Start(state))
            while True:
                message = receive(ours)
                with self._lock:
                    if isinstance(message, Begun):
                        self._has_begun[i] = True
                    if isinstance(message, Ready):
                        self._ready[i] = True
                        writer.start()
                    self._router.take(i, message)
                    self._wake_around(i)
        except (EOFError, OSError):
            pass  # Its end of the pipe is closed; how it ended is seen from its exit code.
        finally:
            exit_code = _end_of(process)
            with self._lock:
                self._processes[i] = None
                self._ready[i] = False
                self._wake[i].notify_all()
            if writer.ident is not None:
                writer.join()
            ours.close()
        if exit_code is not None and exit_code > 0 and not self._has_begun[i]:
            raise UsageError(
                f"the process of stage {i} could not begin (its own message is above). It imports the"
                " program that starts it: what that does belongs under"
                ' `if __name__ == "__main__":`, make_learner above that'
            )
        return exit_code

    def _wake_around(self, i: int) -> None:
        """Wakes those who may have something to do after a message from stage i."""
        if self._router.draining or self._router.error is not None:
            self._wake_all()
            return
        for condition in self._wake[max(i - 1, 0) : i + 2]:
            condition.notify()
        self._changed.notify()

    def _write(self, i: int, connection: Connection) -> None:
        """Sends one worker what there is for it, as long as it lives."""
        while True:
            with self._lock:
                while self._ready[i] and (message := self._router.next_for(i)) is None:
                    self._wake[i].wait()
                if not self._ready[i]:
                    return
                self._changed.notify()  # there may be room in the lowest queue
            try:
                send(connection, message)
            except OSError:
                return  # It has died: the thread that reads from it sees that too.


def _end_of(process: SpawnProcess) -> int | None:
    """Waits for a process that has closed its pipe; returns its exit code, None if it never began."""
    if process.pid is None:
        return None
    process.join(_GRACE_SECONDS)
    while process.exitcode is None:
        process.kill()
        process.join(_GRACE_SECONDS)
    return process.exitcode


def _describe_end(exit_code: int | None) -> str:
    if exit_code is None:
        return "could not be started"
    if exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code}"
