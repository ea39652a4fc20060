"""The folder that `fit` keeps its checkpoints in, and goes on from."""

import os
from pathlib import Path
from typing import Any, Self

import jax

from decoupled.errors import UsageError
from decoupled.telling import tell
from decoupled.training.checkpoints import Checkpoints, Saved, from_host
from decoupled.training.lock import locked
from decoupled.types import PyTree


class FitFolder:
    """A context manager; within, no one else can open the same folder.

    Args:
      path: new, or as an earlier call has left it.
      facts: what must not change between calls, by name; plain JSON.

    Raises:
      UsageError: it cannot be written, is in use, or holds something else.
    """

    def __init__(self, path: str | os.PathLike[str], facts: dict[str, Any]):
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
            raise UsageError(f"workdir is {path!r}, but must be the path of a folder")
        self.path = Path(path).expanduser().absolute()
        self._facts = facts
        if (self.path / "config.json").exists():
            raise UsageError(f"{self.path} holds a run of train.py: choose another workdir")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = locked(self.path)
        except BlockingIOError as error:
            raise UsageError(f"another fit is at work in {self.path}: choose another workdir") from error
        except OSError as error:
            raise UsageError(
                f"cannot write to {self.path} ({error.strerror}): choose another workdir"
            ) from error
        self._checkpoints = Checkpoints(self.path / "checkpoints")

    def latest(self) -> Saved | None:
        """The last good checkpoint of an earlier call; None where there was none.

        Raises:
          UsageError: the call was another.
          DataError: there are checkpoints, none of them good.
        """
        saved = self._checkpoints.latest(tell)
        if saved is None:
            return None
        for name, value in self._facts.items():
            before = saved.notes.get("facts", {}).get(name)
            if before != value:
                told = f"other {name}" if len(str(value)) > 20 else f"{name} {before}, not {value}"
                raise UsageError(f"{self.path} holds a fit with {told}: choose another workdir")
        return saved

    def restored(self, saved: Saved, like: PyTree) -> PyTree:
        """What was saved, as a tree like another.

        Raises:
          UsageError: it is of another network.
        """
        try:
            tree = jax.device_put(from_host(like, saved.leaves))
        except ValueError as error:
            raise UsageError(
                f"{self.path} holds a fit of another network, or with other optimizers ({error}): choose"
                " another workdir"
            ) from error
        self._checkpoints.set_aside(saved.step, tell)
        return tree

    def save(self, step: int, tree: PyTree, notes: dict[str, Any]) -> None:
        """Stores all that is needed to go on after `step`.

        Raises:
          TrainingError: it cannot be written; earlier ones are as they were.
        """
        self._checkpoints.save(step, tree, {**notes, "facts": self._facts})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.close()
