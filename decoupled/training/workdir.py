"""A run's folder: config, metrics, TensorBoard events, checkpoints, trained networks, summary, report."""

import contextlib
import itertools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeAlias

from decoupled.errors import TrainingError, UsageError
from decoupled.extras import extra
from decoupled.training.checkpoints import Checkpoints, Saved
from decoupled.training.going_on import changes_to_go_on_with
from decoupled.training.lock import locked
from decoupled.training.saved_config import CONFIG_FILE
from decoupled.training.trained import keep_best, save_best, save_trained
from decoupled.types import PyTree

with extra("train"):
    from tensorboardX import SummaryWriter

_METRICS, _SUMMARY, _DATA, _CHECKPOINTS = "metrics.jsonl", "summary.json", "data.json", "checkpoints"
_LOGGED = "metrics_bytes"

# (summary, lines of metrics) -> a page.
Render: TypeAlias = Callable[[dict[str, Any], list[dict[str, Any]]], str]


class Workdir:
    """Writes a run's results, whole files in one move, metrics line by line; or goes on where a run ended.

    A context manager: leaving it, in whatever way, puts on disk what was logged. As long as it is open, no
    other process can open the same folder.

    Attributes:
      path: of the folder.
      changes: how the config differs from that of the run that is there, field by field.
      last_checkpoint: number of its step; None where there is none.
    """

    def __init__(self, path: str | os.PathLike[str], config: dict[str, Any], accept_changes: bool = False):
        """Claims `path`. What is there of a run stays as it is until `go_on`.

        Args:
          path: a new folder, that of a run that did not finish, or of a finished one of fewer epochs.
          accept_changes: go on with a run even if its config was another.

        Raises:
          UsageError: the folder cannot be written, holds a finished run, one with another config, or is in
            use.
        """
        try:
            self.path = Path(path).expanduser().absolute()
            self.path.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as opened:
                opened.enter_context(locked(self.path))
                self._begun = _has_begun(self.path)
                self.changes: list[str] = []
                if self._begun:
                    finished = (self.path / _SUMMARY).exists()
                    self.changes = changes_to_go_on_with(self.path, config, finished, accept_changes)
                self._metrics = opened.enter_context(open(self.path / _METRICS, "ab"))
                self._close_files = opened.pop_all().close
            self._config = config
            self._events: SummaryWriter | None = None
            self._checkpoints = Checkpoints(self.path / _CHECKPOINTS)
            self._logged = 0
            self.last_checkpoint: int | None = None
        except BlockingIOError as error:
            raise UsageError(f"another run is at work in {self.path}: choose another --workdir") from error
        except FileExistsError as error:
            raise UsageError(f"{path} is a file: choose another --workdir") from error
        except (OSError, RuntimeError) as error:
            raise UsageError(f"cannot write to {path} ({error}): choose another --workdir") from error

    def resume(self, say: Callable[[str], None]) -> Saved | None:
        """Finds what an earlier run left, and changes nothing. To be called once, before `go_on`.

        Returns:
          The last good checkpoint; None for a run that begins, or made none.

        Raises:
          UsageError: a finished run has no checkpoint.
          DataError: there are checkpoints, none of them good.
        """
        saved = self._checkpoints.latest(say)
        if saved is None and (self.path / _SUMMARY).exists():
            raise UsageError(
                f"{self.path} holds a finished run, but no checkpoint of its end to train it further from:"
                " choose another --workdir"
            )
        self.last_checkpoint = saved.step if saved else None
        self._logged = saved.notes.pop(_LOGGED) if saved else 0
        return saved

    def go_on(self, say: Callable[[str], None], data: dict[str, Any] | None = None) -> None:
        """Makes the folder that of this run: with its config, and without what came after the checkpoint.

        The summary of a finished run, which is now trained further, is kept under another name.

        Args:
          data: facts about the data that are needed to use the network; plain JSON.

        Raises:
          TrainingError: the folder cannot be written.
        """
        step = self.last_checkpoint
        if self._begun:
            say("no checkpoint yet: beginning anew" if step is None else f"going on from step {step}")
        try:
            self._checkpoints.set_aside(-1 if step is None else step, say)
            keep_best(self.path, least=0, most=step or 0)
            if (summary := self.path / _SUMMARY).exists():
                summary.replace(self.path / f"summary_at_step_{step}.json")
            write_whole(self.path / CONFIG_FILE, json.dumps(self._config, indent=2) + "\n")
            if data is not None:
                write_whole(self.path / _DATA, json.dumps(data, indent=2) + "\n")
            # No further than it goes: truncating would fill it up with zeros.
            self._metrics.truncate(min(self._logged, self._metrics.tell()))
            self._metrics.seek(0, os.SEEK_END)
        except OSError as error:
            raise self._cannot_write(error) from error
        after = 0 if step is None else step + 1
        purge = after if self._begun else None
        self._events = SummaryWriter(str(self.path), flush_secs=30, purge_step=purge)

    def checkpoint(self, step: int, tree: PyTree, notes: dict[str, Any]) -> None:
        """Stores all that is needed to go on after `step`; `resume` finds it.

        Raises:
          TrainingError: it cannot be written, or the folder is gone; earlier ones are as they were.
        """
        if not (self.path / CONFIG_FILE).exists():
            raise TrainingError(f"{self.path} is gone, and with it the checkpoints of this run")
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        if self._events is not None:
            self._events.flush()
        self._checkpoints.save(step, tree, {**notes, _LOGGED: self._metrics.tell()})
        # The checkpoint before this one may yet be gone back to, and the best state of its time with it.
        keep_best(self.path, least=self.last_checkpoint or 0)
        self.last_checkpoint = step

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Appends one line of metrics and sends its numbers to TensorBoard.

        Args:
          kind: "train", "alignment", "validation" or "test".
          step: number of updates so far.
          values: numbers, or lists of one number a boundary (None where there is none).
        """
        try:
            line = json.dumps({"kind": kind, "step": step, **values}, allow_nan=False) + "\n"
            self._metrics.write(line.encode())
            self._metrics.flush()
        except OSError as error:
            raise self._cannot_write(error) from error
        for name, value in values.items():
            entries = enumerate(value) if isinstance(value, list) else [("", value)]
            for index, number in entries:
                if number is not None and self._events is not None:
                    tag = f"{kind}/{name}" + (f"/boundary_{index}" if index != "" else "")
                    self._events.add_scalar(tag, number, step)

    def save(self, state: PyTree) -> None:
        """Stores the trained network; `load_trained` reads it."""
        save_trained(self.path, state)

    def save_best(self, state: PyTree, step: int) -> None:
        """Stores the best network so far, which is that of `step`; `load_trained` reads it too."""
        save_best(self.path, state, step)

    def finish(self, summary: dict[str, Any], render: Render) -> None:
        """Stores the summary and the report; a folder with a summary.json holds a finished run.

        Of its checkpoints the last is kept, to train it further from.
        """
        self.close()
        try:
            write_whole(self.path / "report.html", render(summary, read_metrics(self.path)))
            write_whole(self.path / _SUMMARY, json.dumps(summary, indent=2) + "\n")
        except OSError as error:
            raise self._cannot_write(error) from error
        self._checkpoints.keep_last()
        keep_best(self.path, least=math.inf)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Puts everything logged so far on disk; harmless when done twice."""
        if self._events is not None:
            self._events.close()
        self._close_files()

    def _cannot_write(self, error: OSError) -> TrainingError:
        return TrainingError(f"cannot write results to {self.path}: {error.strerror}")


class NoWorkdir:
    """Reads and writes nothing: for all processes but the first, which does so for all."""

    path = "the workdir of process 0"
    changes = ()
    last_checkpoint = None

    def resume(self, say: Callable[[str], None]) -> None:
        """Nothing."""

    def go_on(self, say: Callable[[str], None], data: dict[str, Any] | None = None) -> None:
        """Nothing."""

    def checkpoint(self, step: int, tree: PyTree, notes: dict[str, Any]) -> None:
        """Nothing."""

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Nothing."""

    def save(self, state: PyTree) -> None:
        """Nothing."""

    def save_best(self, state: PyTree, step: int) -> None:
        """Nothing."""

    def finish(self, summary: dict[str, Any], render: Render) -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def new_workdir(parent: str | os.PathLike[str], name: str) -> Path:
    """Makes a folder that no one else has, called `name`, or `name-2`, `name-3`, ... where that is taken.

    Raises:
      UsageError: it cannot be made.
    """
    parent = Path(parent)
    for number in itertools.count(1):
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()  # Which of many processes makes it, the file system decides.
            return path
        except FileExistsError as error:
            if not parent.is_dir():
                raise UsageError(f"{parent} is a file: choose a --workdir") from error
        except OSError as error:
            raise UsageError(f"cannot write to {parent} ({error}): choose a --workdir") from error
    raise AssertionError("there is always a larger number")


def write_whole(path: Path, text: str) -> None:
    """Writes a file in one move: it is there whole, or as it was."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _has_begun(path: Path) -> bool:
    """Whether a folder holds more of a run than its config, with which nothing has happened yet."""
    metrics = path / _METRICS
    logged = metrics.exists() and metrics.stat().st_size > 0
    return logged or (path / _CHECKPOINTS).exists() or (path / _SUMMARY).exists()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, in order."""
    with open(Path(path) / _METRICS, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
