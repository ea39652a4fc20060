"""Who is to be sent what: the bookkeeping of an asynchronous run, without processes, threads or clocks.

Not locked: whoever shares it holds a lock.
"""

import math
from collections.abc import Sequence
from typing import Any

from absl import logging

from decoupled.asynchronous.lane import Lane
from decoupled.asynchronous.messages import (
    Counts,
    Failed,
    Final,
    Fitted,
    Input,
    Snapshot,
    Stepped,
    Stop,
    Target,
)
from decoupled.asynchronous.report import AsyncOptions, StageEvent, StageReport, add_counts
from decoupled.errors import TrainingError
from decoupled.types import PyTree


class _Stage:
    """What is known of a stage and of its present worker."""

    def __init__(self, modules: tuple[str, ...], state: PyTree, queue_size: int):
        self.modules = modules
        self.inputs, self.targets = Lane(queue_size), Lane(queue_size)
        self.saved, self.saved_updates = state, 0  # what a worker starts from
        self.final: PyTree | None = None
        self.counts, self.earlier = Counts(), Counts()  # of this worker, and of those before it
        self.failure: Failed | None = None
        self.told_to_stop = False
        self.restarts = self.lost_updates = 0
        self.order: list[tuple[str, int]] = []


class Router:
    """Carries inputs up and targets down, and keeps what a stage would be restarted from.

    Attributes:
      error: why the run cannot go on; None while it can.
      events: workers that have died.
      losses: (minibatch, mean loss).
    """

    def __init__(
        self,
        modules: Sequence[tuple[str, ...]],
        states: Sequence[PyTree],
        first_number: int,
        options: AsyncOptions,
    ):
        """One entry a stage: its modules' names, its state; then the number of the first minibatch."""
        self.error: TrainingError | None = None
        self.events: list[StageEvent] = []
        self.losses: list[tuple[int, float]] = []
        self.next_number = first_number
        self._fed_all = False
        self._options = options
        self._stages = [
            _Stage(names, state, options.queue_size) for names, state in zip(modules, states, strict=True)
        ]

    @property
    def can_feed(self) -> bool:
        """Whether the lowest stage has room for a minibatch."""
        return not self._stages[0].inputs.full

    @property
    def draining(self) -> bool:
        """Whether no more minibatches come."""
        return self._fed_all

    @property
    def finished(self) -> bool:
        """Whether every stage has handed in its final state."""
        return all(stage.final is not None for stage in self._stages)

    def feed(self, x: PyTree, y: PyTree) -> None:
        """A minibatch for the lowest stage."""
        self._stages[0].inputs.put(Input(self.next_number, x, y))
        self.next_number += 1

    def end_feed(self) -> None:
        """No more minibatches come."""
        self._fed_all = True

    def is_final(self, i: int) -> bool:
        """Whether stage i has handed in its final state."""
        return self._stages[i].final is not None

    def start_state(self, i: int) -> PyTree:
        """What the next worker of stage i starts from."""
        return self._stages[i].saved

    def final_states(self) -> list[PyTree]:
        """Of all stages, once the run is finished."""
        return [stage.final for stage in self._stages]

    def next_for(self, i: int) -> Input | Target | Stop | None:
        """The next message for the worker of stage i; None while there is nothing for it."""
        stage = self._stages[i]
        message = stage.targets.take() or stage.inputs.take()
        if message is None and not stage.told_to_stop and self._may_stop(i):
            stage.told_to_stop = True
            return Stop()
        return message

    def _may_stop(self, i: int) -> bool:
        """Whether nothing can come any more, neither from below nor from above."""
        sources = self._stages[
            : i + 2
        ]  # what is above needs inputs too, before it has sent its last target
        return self._fed_all and self._stages[i].targets.empty and all(s.inputs.empty for s in sources)

    def take(self, i: int, message: Any) -> None:
        """What the worker of stage i says."""
        stage = self._stages[i]
        if isinstance(message, Stepped):
            stage.inputs.done(message.number)
            stage.counts = message.counts
            if message.up is not None:
                self._stages[i + 1].inputs.put(message.up)
            if message.down is not None:
                self._stages[i - 1].targets.put(message.down)
            if message.loss is not None:
                self._note_loss(i, message.number, message.loss)
        elif isinstance(message, Fitted):
            stage.targets.done(message.number)
            stage.counts = message.counts
        elif isinstance(message, Snapshot):
            stage.saved, stage.saved_updates = message.state, message.updates
        elif isinstance(message, Final):
            stage.final = message.state
        elif isinstance(message, Failed):
            stage.failure = message
        if self._options.keep_order and isinstance(message, Stepped | Fitted):
            kind = "update" if isinstance(message, Stepped) else "fit"
            stage.order.append((kind, message.number))

    def _note_loss(self, i: int, number: int, loss: float) -> None:
        self.losses.append((number, loss))
        if not math.isfinite(loss):
            self.error = self.error or TrainingError(
                f"the loss is {loss} at minibatch {number}, in {self._call(i)}: lower the learning rates,"
                " or look at the data"
            )

    def died(self, i: int, how: str) -> None:
        """The worker of stage i is no more: says so, and readies the stage for another one.

        Args:
          how: what became of the process, as far as can be seen from outside.
        """
        stage = self._stages[i]
        if stage.failure is not None:
            how = f"failed with {stage.failure.error}"
            logging.error("%s\n%s", self._call(i), stage.failure.traceback)
        stage.inputs.take_back()
        stage.targets.take_back()
        stage.earlier = add_counts(stage.earlier, stage.counts)
        lost = stage.counts.updates - stage.saved_updates
        event = StageEvent(i, stage.modules, how, stage.inputs.next_number, lost, stage.earlier.updates)
        self.events.append(event)
        stage.lost_updates += lost
        stage.counts, stage.saved_updates, stage.failure, stage.told_to_stop = Counts(), 0, None, False
        if stage.restarts == self._options.max_restarts:
            self.error = self.error or TrainingError(
                f"{self._call(i)} {how}, after {stage.restarts} restarts (max_restarts): see the log for"
                " the earlier ones, or allow more"
            )
            return
        stage.restarts += 1
        logging.warning("%s", event)

    def _call(self, i: int) -> str:
        return f"stage {i} ({' '.join(self._stages[i].modules)})"

    def reports(self) -> tuple[StageReport, ...]:
        """What the stages have done so far."""
        return tuple(
            StageReport(
                stage=i,
                modules=stage.modules,
                counts=add_counts(stage.earlier, stage.counts),
                dropped_inputs=stage.inputs.dropped,
                dropped_targets=stage.targets.dropped
                + stage.earlier.dropped_targets
                + stage.counts.dropped_targets,
                restarts=stage.restarts,
                lost_updates=stage.lost_updates,
                order=tuple(stage.order),
            )
            for i, stage in enumerate(self._stages)
        )
