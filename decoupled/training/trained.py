"""Trained states of a run, on disk in orbax's format: that of its end, and the best so far."""

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from decoupled.errors import DataError, TrainingError, UsageError
from decoupled.extras import extra
from decoupled.learning.state import LearnerState
from decoupled.shapes import AnyArray
from decoupled.training.checkpoints import first_line, one_process, quiet
from decoupled.types import PyTree

with extra("train"):
    import orbax.checkpoint as ocp

_TRAINED, _BEST = "trained", "best"


def save_trained(workdir: Path, state: PyTree) -> None:
    """Writes the state at a run's end into its workdir, whole or not at all; one process does so for all.

    Args:
      state: as the learner knows it (see `Execution.whole_state`); every process holds all of it.

    Raises:
      TrainingError: it cannot be written.
    """
    _save(workdir / _TRAINED, state)


def save_best(workdir: Path, state: PyTree, step: int) -> None:
    """As `save_trained`, of the best state so far, which is that of `step`; those before it stay."""
    _save(workdir / _BEST / str(step), state)


def keep_best(workdir: Path, least: float, most: float = math.inf) -> None:
    """Removes the best states that nothing needs: of the steps up to `least` all but the last.

    Args:
      most: those of later steps are removed too.
    """
    steps = _best_steps(workdir)
    needed = max((step for step in steps if step <= least), default=0)
    for step in steps:
        if not needed <= step <= most:
            shutil.rmtree(workdir / _BEST / str(step), ignore_errors=True)


def load_trained(
    workdir: str | os.PathLike[str], like: LearnerState, which: str = "trained"
) -> LearnerState:
    """Reads a state that a run left in its workdir.

    Args:
      like: a state of the same learner, or its shapes (from `jax.eval_shape`).
      which: "trained", of a finished run; or "best", by validation accuracy, as summary.json has it.

    Raises:
      UsageError: `which` is something else.
      DataError: there is none, it is damaged, or another learner's.
    """
    if which not in (_TRAINED, _BEST):
        raise UsageError(f"there is no {which!r} network of a run: choose {_TRAINED!r} or {_BEST!r}")
    workdir = Path(workdir).expanduser().absolute()
    path = workdir / _TRAINED
    if which == _BEST:
        path = workdir / _BEST / str(max(_best_steps(workdir), default=0))
    if not path.is_dir():
        when = "at the end of a run" if which == _TRAINED else "where there are validation_examples"
        raise DataError(f"{workdir} holds no {which} network: train.py writes it {when}")
    try:
        with _checkpointer() as checkpointer:
            state = checkpointer.restore(path, args=ocp.args.StandardRestore(jax.tree.map(_shape, like)))
        jax.tree.map(_check_shape, state, like)
        return state
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged, or of another network: {first_line(error)}") from error


def _save(path: Path, state: PyTree) -> None:
    on_host = jax.device_get(state)  # No device arrays: orbax would ask the other processes for theirs.
    try:
        path.parent.mkdir(exist_ok=True)  # Not its parents: a workdir that is gone stays so.
        with _checkpointer() as checkpointer:
            # An unfinished one may be there, of a run that was killed after its last step.
            checkpointer.save(path.absolute(), args=ocp.args.StandardSave(on_host), force=True)
    except OSError as error:
        raise TrainingError(f"cannot write the trained network to {path}: {error}") from error


def _best_steps(workdir: Path) -> list[int]:
    """Of all that were written whole."""
    folder = workdir / _BEST
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@contextmanager
def _checkpointer() -> Iterator[ocp.Checkpointer]:
    alone = one_process()
    with quiet():
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            yield checkpointer


def _shape(leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _check_shape(leaf: AnyArray, like: jax.Array | jax.ShapeDtypeStruct) -> None:
    """Orbax gives what it finds."""
    if leaf.shape != like.shape or leaf.dtype != like.dtype:
        raise ValueError(f"{leaf.dtype}{list(leaf.shape)} where {like.dtype}{list(like.shape)} should be")
