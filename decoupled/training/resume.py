"""Puts a run back to where its checkpoint was made, in every process that takes part."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from decoupled.errors import DataError, UsageError
from decoupled.training.checkpoints import Saved, from_host, to_host
from decoupled.training.execution import Execution
from decoupled.types import PyTree


def check_data(fingerprint: str, source: str, saved: Saved | None) -> None:
    """That all processes have the same data, and a run that goes on those that it began with.

    Args:
      fingerprint: of the data, hexadecimal.
      source: where they are from.
      saved: what the first process has found.

    Raises:
      DataError: they are others.
    """
    own = np.frombuffer(bytes.fromhex(fingerprint), np.uint8)
    if not np.array_equal(_from_first_process(own), own):
        raise DataError(
            f"process {jax.process_index()} has other data, from {source}, than process 0: give every"
            " process the same"
        )
    if saved is not None and saved.notes.get("data", fingerprint) != fingerprint:
        raise DataError(
            f"the checkpoint of step {saved.step} is of a run on other data than those from {source}:"
            " give it the same (config.data_dir), or choose another --workdir"
        )


def resume(
    execution: Execution,
    saved: Saved | None,
    changes: Sequence[str],
    last: int,
    warm_up: Callable[[int, PyTree, PyTree], tuple[PyTree, PyTree]],
    state: PyTree,
    totals: PyTree,
) -> tuple[PyTree, PyTree, int]:
    """The (state, totals, number of steps done) to go on from.

    Args:
      saved: what the first process has found; it is sent to the others.
      changes: of the config since then, field by field.
      last: number of the run's last step.
      warm_up: (number of steps, state, totals) -> (state, totals); see `Execution`.
      state, totals: of a run that begins; destroyed.

    Raises:
      UsageError: the run is past its last step, or the config was changed so that what was saved does not
        fit.
      DataError: what was saved is of another network.
    """
    steps = int(_from_first_process(np.int64(-1 if saved is None else saved.step)))
    if steps < 0:
        return state, totals, 0
    if steps > last:
        raise UsageError(
            f"the run has done {steps} steps, but this config ends it after {last}: choose more"
            " config.epochs, or another --workdir"
        )
    like = execution.snapshot(*warm_up(steps, state, totals))
    leaves = to_host(like) if saved is None else saved.leaves
    try:
        from_host(like, leaves)
    except ValueError as error:
        if changes:
            raise UsageError(
                f"the checkpoint of step {steps} does not fit the changed config ({'; '.join(changes)}):"
                " set back what changes the network, or how its state is laid out (in a pipeline, or with"
                " step=stacked, it is another)"
            ) from error
        raise DataError(f"the checkpoint of step {steps} is of another network: {error}") from error
    restored = from_host(like, _from_first_process(leaves))
    if execution.place_snapshot is not None:
        return *execution.place_snapshot(like, restored), steps
    return *execution.place_state(restored), steps


def _from_first_process(tree: PyTree) -> PyTree:
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)
