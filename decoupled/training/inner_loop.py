"""The one loop that takes steps, for train.py and `fit` alike; what is done between steps is theirs."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax

from decoupled.training.clock import Clock
from decoupled.training.step import Totals
from decoupled.types import PyTree


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
      look: (done, state, batch, measured, epoch_ends), where the network is measured or an epoch ends.
        True: this was the last step.
      keep: (done, state, totals): makes a checkpoint.
      show: (done, state), after that; not where the run stops.
    """

    asked_to_stop: Callable[[], int]
    check: Callable[[int, PyTree], None]
    report: Callable[[int, Totals], None]
    look: Callable[[int, PyTree, PyTree, bool, bool], bool]
    keep: Callable[[int, PyTree, PyTree], None]
    show: Callable[[int, PyTree], None] = lambda done, state: None


def take_steps(
    position: Position,
    batches: Iterable[PyTree],
    step: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]],
    new_totals: Callable[[], PyTree],
    pace: Pace,
    clock: Clock,
    between: Between,
) -> Position:
    """Takes a step a batch, and returns where that has led.

    The host waits for the device at reports alone, and where it looks at the network or keeps it.

    Args:
      position: from where; its state and totals are destroyed.
      batches: of the steps that are left, placed.
      step: (state, totals, batch) -> (state, totals), which destroys the first two.
      new_totals: () -> those of no step.
      clock: stands still between steps, but for reports.
    """
    state, totals, done, _ = position
    for batch in batches:
        state, totals = step(state, totals, batch)
        done += 1
        epoch_ends = done % pace.per_epoch == 0
        reported = epoch_ends or _is_due(done, pace.reports)
        stop = between.asked_to_stop() if reported or jax.process_count() == 1 else 0
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
            ended = (measured or epoch_ends) and between.look(done, state, batch, measured, epoch_ends)
            if keep or ended:
                between.keep(done, state, totals)
            if not stop:
                between.show(done, state)
        if stop or ended:
            return Position(state, totals, done, stop)
    return Position(state, totals, done)


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
