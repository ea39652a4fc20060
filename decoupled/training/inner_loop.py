"""The one loop that takes steps, for train.py and `fit` alike; what is done between steps is theirs."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax

from decoupled.training.clock import Clock
from decoupled.training.feeds import Feed
from decoupled.training.step import Totals
from decoupled.types import PyTree

_SECONDS_A_CALL = 0.5


class Pace(NamedTuple):
    """How many steps there are.

    Attributes:
      per_epoch: in an epoch.
      last: in all.
      reports: between two reports, of which there is one at each epoch's end besides; 0: no others.
      measurements: between two measurements, of which the first step has one besides; 0: none at all.
      checkpoints: between two checkpoints, of which there is one at the end besides; 0: no others.
    """

    per_epoch: int
    last: int
    reports: int = 0
    measurements: int = 0
    checkpoints: int = 0


class Position(NamedTuple):
    """Where a run is.

    Attributes:
      state: as steps leave it.
      totals: of the steps since the last report.
      done: number of steps so far.
      stopped: the number of the signal that it stopped at before its end, or 0.
    """

    state: PyTree
    totals: PyTree
    done: int
    stopped: int = 0


class Between(NamedTuple):
    """What is done between two steps, in this order; `done` is the number of the one before.

    Attributes:
      asked_to_stop: () -> number of a signal, or 0; called at the same steps in all processes.
      check: (done, state), before anything is reported or kept.
      report: (done, totals), those of the steps since the last report, on the host.
      look: (done, state, batch, epoch_ends), where the network is measured, on the batch of that step, or
        an epoch ends; the batch is None where it is not. True: this was the last step.
      keep: (done, state, totals): makes a checkpoint.
      show: (done, state), after that; not where the run stops.
    """

    asked_to_stop: Callable[[], int]
    check: Callable[[int, PyTree], None]
    report: Callable[[int, Totals], None]
    look: Callable[[int, PyTree, PyTree | None, bool], bool]
    keep: Callable[[int, PyTree, PyTree], None]
    show: Callable[[int, PyTree], None] = lambda done, state: None


def take_steps(
    position: Position,
    feed: Feed,
    new_totals: Callable[[], PyTree],
    pace: Pace,
    clock: Clock,
    between: Between,
    moved: Callable[[int], None] = lambda done: None,
) -> Position:
    """Takes the steps of a run that are left, and returns where that has led.

    Steps up to the next at which there is something to do are taken in one call, as long as this lasts no
    more than half a second: so the device does not wait for the host, and the host can be stopped.

    Args:
      position: from where; its state and totals are destroyed.
      feed: of the steps that are left.
      new_totals: () -> those of no step.
      clock: stands still between steps, but for reports.
      moved: is told the number of steps done, after each call.
    """
    state, totals, done, _ = position
    # What several processes do must depend on the number of steps alone.
    together = jax.process_count() > 1
    at_a_time = pace.last if together else 1
    while done < pace.last:
        started, before = time.monotonic(), done
        if not together and between.asked_to_stop():  # since the last call
            at_a_time = 1
        done = min(_next_pause(done, pace), done + at_a_time)
        state, totals = feed.take(state, totals, before, done - before)
        if not together:
            jax.block_until_ready(totals)
            at_a_time = _within(_SECONDS_A_CALL, time.monotonic() - started, done - before)
        moved(done)
        epoch_ends = done % pace.per_epoch == 0
        reported = epoch_ends or _is_due(done, pace.reports)
        stop = between.asked_to_stop() if reported or not together else 0
        keep = stop or done == pace.last or _is_due(done, pace.checkpoints)
        measured = pace.measurements > 0 and (done == 1 or _is_due(done, pace.measurements))
        if reported or keep:
            between.check(done, state)
        if reported:
            between.report(done, jax.device_get(totals))  # waits for the device
            totals = new_totals()
        if not (epoch_ends or keep or measured):
            continue
        jax.block_until_ready(totals)  # or training would go on during the pause
        with clock.paused():
            batch = feed.last_batch() if measured else None
            ended = (measured or epoch_ends) and between.look(done, state, batch, epoch_ends)
            if keep or ended:
                between.keep(done, state, totals)
            if not stop:
                between.show(done, state)
        if stop or ended:
            return Position(state, totals, done, stop)
    return Position(state, totals, done)


def _next_pause(done: int, pace: Pace) -> int:
    """The number of the next step after which there is something to do."""
    intervals = (pace.per_epoch, pace.reports, pace.measurements, pace.checkpoints)
    pauses = [(done // every + 1) * every for every in intervals if every > 0]
    return min([1] if done == 0 and pace.measurements > 0 else [*pauses, pace.last])


def _within(seconds: float, taken: float, steps: int) -> int:
    """How many steps can be taken in so many seconds, where `steps` have taken so many."""
    return max(1, int(seconds * steps / max(taken, 1e-6)))


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
