"""An asynchronous run from its first minibatch to its last."""

import itertools
from collections.abc import Callable, Iterable

from decoupled.asynchronous.report import AsyncOptions, AsyncResult
from decoupled.asynchronous.supervisor import Supervisor
from decoupled.errors import UsageError
from decoupled.learning.learner import Learner
from decoupled.learning.state import LearnerState
from decoupled.types import Key, PyTree


def run_asynchronously(
    make_learner: Callable[[], Learner],
    state: LearnerState,
    batches: Iterable[tuple[PyTree, PyTree]],
    key: Key,
    *,
    num_stages: int,
    options: AsyncOptions | None = None,
) -> AsyncResult:
    """Trains every stage of a chain in a process of its own, as fast as its input comes.

    Programs that call this need the usual `if __name__ == "__main__":`, since workers import them too. From
    a notebook or standard input, make_learner has to be imported from a file.

    Args:
      make_learner: () -> Learner. It is called in every worker, so it must be picklable: a function at the
        top level of a file, or a `functools.partial` of one.
      state: to start from.
      batches: (x, y), preprocessed, all of one shape; taken one after another as the lowest stage has room.
      key: of the run. Minibatch n, counted from `state.step`, has the randomness of the fused step n.
      num_stages: into which the chain is cut.
      options: sizes, limits and test hooks.

    Raises:
      UsageError: there are no batches, the chain cannot be cut so, an update probability is below 1, an
        option is out of range, or workers cannot import make_learner or the program.
      TrainingError: a stage died too often, or the loss is no longer finite.
    """
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise UsageError("an asynchronous run was given no batches: give it at least one")
    with Supervisor(make_learner, state, first, key, num_stages=num_stages, options=options) as run:
        for x, y in itertools.chain([first], iterator):
            run.feed(x, y)
        return run.finish()
