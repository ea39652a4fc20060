"""The trained state of a finished run, on disk in orbax's format."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from decoupled.errors import DataError, TrainingError
from decoupled.state import LearnerState
from decoupled.training.checkpoints import first_line, one_process, quiet

_NAME = "trained"


def save_trained(workdir: Path, state: LearnerState) -> None:
    """Writes a state into a workdir, whole or not at all; one process does so for all.

    Args:
      state: as the learner knows it (see `Execution.whole_state`); every process holds all of it.

    Raises:
      TrainingError: it cannot be written.
    """
    on_host = jax.device_get(state)  # No device arrays: orbax would ask the other processes for theirs.
    try:
        with _checkpointer() as checkpointer:
            # An unfinished one may be there, of a run that was killed after its last step.
            checkpointer.save((workdir / _NAME).absolute(), args=ocp.args.StandardSave(on_host), force=True)
    except OSError as error:
        raise TrainingError(f"cannot write the trained network to {workdir}: {error}") from error


def load_trained(workdir: Path, like: LearnerState) -> LearnerState:
    """Reads the state that a finished run left in its workdir.

    Args:
      like: a state of the same learner, or its shapes (from `jax.eval_shape`).

    Raises:
      DataError: there is none, it is damaged, or another learner's.
    """
    path = (workdir / _NAME).absolute()
    if not path.is_dir():
        raise DataError(f"{workdir} holds no trained network: train.py writes it at the end of a run")
    try:
        with _checkpointer() as checkpointer:
            state = checkpointer.restore(path, args=ocp.args.StandardRestore(jax.tree.map(_shape, like)))
        jax.tree.map(_check_shape, state, like)
        return state
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged, or of another network: {first_line(error)}") from error


@contextmanager
def _checkpointer() -> Iterator[ocp.Checkpointer]:
    alone = one_process()
    with quiet():
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            yield checkpointer


def _shape(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _check_shape(leaf: jax.Array, like: jax.Array) -> None:
    """Orbax gives what it finds."""
    if leaf.shape != like.shape or leaf.dtype != like.dtype:
        raise ValueError(f"{leaf.dtype}{list(leaf.shape)} where {like.dtype}{list(like.shape)} should be")
