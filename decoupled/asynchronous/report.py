"""What an asynchronous run can be told, and what it tells."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from decoupled.asynchronous.messages import Counts
from decoupled.errors import UsageError
from decoupled.learning.state import LearnerState


class AsyncOptions(NamedTuple):
    """How stages run beside one another.

    Attributes:
      queue_size: packets that wait for a stage, of each kind; from a full queue the oldest is dropped. A
        stage that is k times slower than its feeder sees inputs that are about k * queue_size minibatches
        old, so keep it small, and well below max_staleness / k.
      max_staleness: a target more than so many minibatches late is dropped; so much is remembered.
      snapshot_every: updates of a stage between copies of its state, from which it would be restarted.
      max_restarts: of one stage; one more death ends the run.
      gpus: numbers of the GPUs that stages are spread over, in turn; without any, each has a CPU device.
      delays: stage -> seconds that it sleeps in every update, to see what a slow one does to the others.
      keep_order: report in what order each stage dealt with inputs and targets.
    """

    queue_size: int = 4
    max_staleness: int = 64
    snapshot_every: int = 100
    max_restarts: int = 3
    gpus: tuple[int, ...] = ()
    delays: Mapping[int, float] = MappingProxyType({})
    keep_order: bool = False


class StageEvent(NamedTuple):
    """A worker that died.

    Attributes:
      stage, modules: whose it was.
      cause: what became of it: a signal, an exit code or an exception.
      restarted_at: the minibatch that its successor starts with; None: the next one to come.
      lost_updates: updates that went with it, made since its last snapshot.
      updates: that the stage had made in all by then, those that were lost included.
    """

    stage: int
    modules: tuple[str, ...]
    cause: str
    restarted_at: int | None
    lost_updates: int
    updates: int

    def __str__(self) -> str:
        at = "the next minibatch" if self.restarted_at is None else f"minibatch {self.restarted_at}"
        return (
            f"stage {self.stage} ({' '.join(self.modules)}) {self.cause} after {self.updates} updates;"
            f" its last snapshot goes on at {at}, without its latest {self.lost_updates} updates"
        )


class StageReport(NamedTuple):
    """What a stage did, all its workers together.

    Attributes:
      stage, modules: which it is.
      counts: of its updates, those that were lost included.
      dropped_inputs: minibatches that it never saw, since its queue was full.
      dropped_targets: targets that came too late, or were pushed out of its queue.
      restarts: workers that died.
      lost_updates: that died with them.
      order: ("update" or "fit", minibatch) in the order in which they were done; see `keep_order`.
    """

    stage: int
    modules: tuple[str, ...]
    counts: Counts
    dropped_inputs: int
    dropped_targets: int
    restarts: int
    lost_updates: int
    order: tuple[tuple[str, int], ...]

    @property
    def updates_per_second(self) -> float:
        """From the first minibatch to the last; a worker's start does not count."""
        return self.counts.updates / self.counts.seconds if self.counts.seconds else 0.0

    @property
    def mean_staleness(self) -> float:
        """Minibatches that came between one and the target for it, on average."""
        return self.counts.staleness_sum / self.counts.fits if self.counts.fits else 0.0


class AsyncResult(NamedTuple):
    """What a run comes to.

    Attributes:
      state: of the whole chain; its step counts the minibatches that were fed.
      reports: one a stage, lowest first.
      events: workers that died, in order.
      losses: (minibatch, mean loss), of those that reached the highest stage.
    """

    state: LearnerState
    reports: tuple[StageReport, ...]
    events: tuple[StageEvent, ...]
    losses: tuple[tuple[int, float], ...]


def check_options(options: AsyncOptions, num_stages: int) -> None:
    """Refuses numbers that cannot be.

    Raises:
      UsageError: one is out of range.
    """
    for field, least in (
        ("queue_size", 1),
        ("max_staleness", 0),
        ("snapshot_every", 1),
        ("max_restarts", 0),
    ):
        if getattr(options, field) < least:
            raise UsageError(f"{field} is {getattr(options, field)}: choose at least {least}")
    for stage, seconds in options.delays.items():
        if not 0 <= stage < num_stages or seconds < 0:
            raise UsageError(
                f"delays say {seconds} s for stage {stage}: there are stages 0 to {num_stages - 1}, and"
                " no time is negative"
            )


def add_counts(one: Counts, other: Counts) -> Counts:
    """Of two workers of a stage together."""
    sums: dict[str, Any] = {name: a + b for name, a, b in zip(one._fields, one, other, strict=True)}
    return Counts(**{**sums, "staleness_max": max(one.staleness_max, other.staleness_max)})
