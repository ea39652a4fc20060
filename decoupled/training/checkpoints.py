"""Checkpoints of a run: whole or not there, checked when read, the last good one found."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.typing import ArrayLike

from decoupled.errors import DataError, TrainingError
from decoupled.extras import extra
from decoupled.shapes import UInt8
from decoupled.types import PyTree

with extra("train"):
    import orbax.checkpoint as ocp

_KEPT = 2  # the latest, and the one before in case that is damaged


class Saved(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      step: number of updates before it was made.
      leaves: of the training state, in order, on the host.
      notes: whatever else the run must know to go on; plain JSON.
    """

    step: int
    leaves: list[np.ndarray]
    notes: dict[str, Any]


class Checkpoints:
    """Those of one run, in a folder of their own; one process writes them for all."""

    def __init__(self, folder: Path):
        self._folder = folder

    def save(self, step: int, tree: PyTree, notes: dict[str, Any]) -> None:
        """Adds a checkpoint, whole or not at all, then drops all but the last few.

        Args:
          tree: the training state; this process can read all of it.

        Raises:
          TrainingError: it cannot be written; those before it are as they were.
        """
        leaves = to_host(tree)
        arrays = [[str(leaf.dtype), list(leaf.shape)] for leaf in leaves]
        record = {"notes": notes, "arrays": arrays, "sha256": _digest(leaves, notes)}
        arguments = ocp.args.Composite(
            leaves=ocp.args.PyTreeSave([_packed(leaves)]), record=ocp.args.JsonSave(record)
        )
        try:
            self._folder.mkdir(exist_ok=True)  # Not its parents: a workdir that is gone stays so.
            with self._manager() as manager:
                manager.save(step, args=arguments)
        except Exception as error:  # Storage fails in many ways, none of them an error of its own.
            steps = self._steps()
            left = f"that of step {max(steps)} is intact" if steps else "there is none before it"
            raise TrainingError(
                f"cannot write the checkpoint of step {step} to {self._folder}: {first_line(error)}; {left}"
            ) from error

    def latest(self, say: Callable[[str], None]) -> Saved | None:
        """The last one that is whole, or None where there is none at all; says which are damaged.

        Raises:
          DataError: there are some, all of them damaged.
        """
        damaged: list[str] = []
        for step in sorted(self._steps(), reverse=True):
            try:
                saved = self._read(step)
            except Exception as error:  # Damage shows in many ways.
                damaged.append(f"checkpoint of step {step} is damaged ({first_line(error)})")
                continue
            for line in damaged:
                say(f"{line}: going back to that of step {step}")
            return saved
        if damaged:
            raise DataError(
                f"no checkpoint in {self._folder} can be read: {'; '.join(damaged)}: choose another"
                " --workdir to begin anew"
            )
        return None

    def set_aside(self, later_than: int, say: Callable[[str], None]) -> None:
        """Moves those of later steps, which are damaged, into the folder `damaged` beside this one."""
        aside = self._folder.with_name("damaged")
        for step in self._steps():
            if step > later_than:
                aside.mkdir(exist_ok=True)
                shutil.rmtree(aside / str(step), ignore_errors=True)
                (self._folder / str(step)).rename(aside / str(step))
                say(f"the checkpoint of step {step} is now in {aside}")

    def keep_last(self) -> None:
        """Removes all but the last."""
        for step in sorted(self._steps())[:-1]:
            shutil.rmtree(self._folder / str(step), ignore_errors=True)

    def _read(self, step: int) -> Saved:
        arguments = ocp.args.Composite(leaves=ocp.args.PyTreeRestore(), record=ocp.args.JsonRestore())
        with self._manager() as manager:
            found: Any = manager.restore(step, args=arguments)
        record = found.record
        leaves = _unpacked(np.asarray(found.leaves[0]), record["arrays"])
        if record["sha256"] != _digest(leaves, record["notes"]):
            raise ValueError("its content is not what was written")
        return Saved(step, leaves, record["notes"])

    def _steps(self) -> list[int]:
        """Of all that were written whole, damaged since or not."""
        if not self._folder.is_dir():
            return []
        return [int(path.name) for path in self._folder.iterdir() if path.name.isdigit()]

    @contextmanager
    def _manager(self) -> Iterator[ocp.CheckpointManager]:
        alone = one_process()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEPT,
            # What is half-written when a run is killed must not be left to a thread.
            enable_async_checkpointing=False,
            multiprocessing_options=alone,
            create=False,
        )
        with quiet():
            handlers = {
                # The other format, ocdbt, keeps some memory for every save of a process (`make soak`).
                "leaves": ocp.PyTreeCheckpointHandler(use_ocdbt=False, multiprocessing_options=alone),
                "record": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
            }
            folder = self._folder.absolute()
            with ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager:
                yield manager


def to_host(tree: PyTree) -> list[np.ndarray]:
    """The leaves of a tree as arrays that can be written: keys as their bits, numbers as arrays."""
    bits = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in jax.tree.leaves(tree)]
    return [np.asarray(leaf) for leaf in jax.device_get(bits)]


def from_host(like: PyTree, leaves: Sequence[np.ndarray]) -> PyTree:
    """A tree like another, of leaves that `to_host` made of one like it.

    Raises:
      ValueError: they are of a tree unlike it.
    """
    named = jax.tree_util.tree_leaves_with_path(like)
    if len(named) != len(leaves):
        raise ValueError(f"{len(leaves)} arrays where this network has {len(named)}")
    for (path, _), place, leaf in zip(named, to_host(like), leaves, strict=True):
        if (leaf.shape, leaf.dtype) != (place.shape, place.dtype):
            raise ValueError(
                f"{jax.tree_util.keystr(path)} is {leaf.dtype}{list(leaf.shape)}, but"
                f" {place.dtype}{list(place.shape)} in this network"
            )

    def back(place: ArrayLike, leaf: np.ndarray) -> ArrayLike:
        if _is_key(place):
            return jax.random.wrap_key_data(jnp.asarray(leaf), impl=jax.random.key_impl(place))
        return int(leaf) if isinstance(place, int) else leaf

    places, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, [back(*pair) for pair in zip(places, leaves, strict=True)])


@contextmanager
def quiet() -> Iterator[None]:
    """Orbax tells every phase of its work: within, only what is wrong."""
    logger = logging.get_absl_logger()
    level = logger.level  # and not the verbosity: to set that is a choice, even of what it was
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


def one_process() -> ocp.options.MultiprocessingOptions:
    """For orbax in a run of many processes: this one reads and writes alone."""
    return ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process_{jax.process_index()}",
    )


def first_line(error: Exception) -> str:
    """What went wrong, short enough for one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _is_key(leaf: ArrayLike) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _packed(leaves: Sequence[np.ndarray]) -> UInt8[np.ndarray, " bytes"]:
    """Their bytes one after another: orbax writes, and keeps memory, for each array apart."""
    return np.frombuffer(b"".join(leaf.tobytes() for leaf in leaves), np.uint8)


def _unpacked(data: UInt8[np.ndarray, " bytes"], arrays: Sequence[Sequence[Any]]) -> list[np.ndarray]:
    """The arrays that were packed, each given by its dtype and shape.

    Raises:
      ValueError: they are not as long as the data.
    """
    sizes = [math.prod(shape) * jnp.dtype(dtype).itemsize for dtype, shape in arrays]
    if sum(sizes) != data.size:
        raise ValueError(f"{data.size} bytes where {sum(sizes)} were written")
    parts = np.split(data, np.cumsum(sizes)[:-1])
    return [
        part.view(jnp.dtype(dtype)).reshape(shape)
        for part, (dtype, shape) in zip(parts, arrays, strict=True)
    ]


def _digest(leaves: Sequence[np.ndarray], notes: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(notes, sort_keys=True).encode())
    for leaf in leaves:
        digest.update(f"{leaf.dtype}{leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
