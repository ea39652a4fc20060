"""Puts a run back to where its checkpoint was made, in every process that takes part."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from decoupled.errors import DataError
from decoupled.training.checkpoints import Saved, from_host, to_host
from decoupled.training.execution import Execution


def resume(
    execution: Execution, saved: Saved | None, step: Callable, state: Any, totals: Any, *arguments: Any
) -> tuple[Any, Any, int]:
    """The (state, totals, number of steps done) to go on from.

    Args:
      saved: what the first process has found; it is sent to the others.
      step: compiled.
      state, totals: of a run that begins; destroyed.
      arguments: of a first step, all the same.

    Raises:
      DataError: what was saved is of another network.
    """
    steps = int(_from_first_process(np.int64(-1 if saved is None else saved.step)))
    if steps < 0:
        return state, totals, 0
    like = execution.snapshot(*execution.warm_up(steps, step, state, totals, *arguments))
    leaves = to_host(like) if saved is None else saved.leaves
    try:
        from_host(like, leaves)
    except ValueError as error:
        raise DataError(f"the checkpoint of step {steps} is of another network: {error}") from error
    restored = from_host(like, _from_first_process(leaves))
    if execution.place_snapshot is not None:
        return *execution.place_snapshot(like, restored), steps
    return *execution.place_state(restored), steps


def _from_first_process(tree: Any) -> Any:
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)
