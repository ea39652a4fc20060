"""A run's folder: config, metrics, TensorBoard events, checkpoints, trained network, summary, report."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self, TypeAlias

from tensorboardX import SummaryWriter

from decoupled.errors import TrainingError, UsageError
from decoupled.state import LearnerState
from decoupled.training.checkpoints import Checkpoints, Saved
from decoupled.training.trained import save_trained
from decoupled.types import PyTree

_CONFIG, _METRICS, _SUMMARY = "config.json", "metrics.jsonl", "summary.json"
_LOGGED = "metrics_bytes"
# They say where data are found, not what is in them.
_HARMLESS = ("data_dir", "download")

# (summary, lines of metrics) -> a page.
Render: TypeAlias = Callable[[dict[str, Any], list[dict[str, Any]]], str]


class Workdir:
    """Writes a run's results, whole files in one move, metrics line by line; or goes on where a run ended.

    A context manager: leaving it, in whatever way, puts on disk what was logged. As long as it is open, no
    other process can open the same folder.

    Attributes:
      path: of the folder.
      last_checkpoint: number of its step; None where there is none.
    """

    def __init__(self, path: Path, config: dict[str, Any], accept_changes: bool = False):
        """Claims `path` and stores the run's config.

        Args:
          path: a new folder, or that of a run that did not finish.
          accept_changes: go on with an unfinished run even if its config was another.

        Raises:
          UsageError: the folder cannot be written, holds a finished run, one with another config, or is in
            use.
        """
        try:
            self.path = path.expanduser().absolute()
            self.path.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as opened:
                opened.enter_context(_locked(self.path))
                _check_unfinished(self.path, config, accept_changes)
                write_whole(self.path / _CONFIG, json.dumps(config, indent=2) + "\n")
                self._metrics = opened.enter_context(open(self.path / _METRICS, "ab"))
                self._close_files = opened.pop_all().close
            self._events: SummaryWriter | None = None
            self._checkpoints = Checkpoints(self.path / "checkpoints")
            self.last_checkpoint: int | None = None
        except FileExistsError as error:
            raise UsageError(f"{path} is a file: choose another --workdir") from error
        except (OSError, RuntimeError) as error:
            raise UsageError(f"cannot write to {path} ({error}): choose another --workdir") from error

    def resume(self, say: Callable[[str], None]) -> Saved | None:
        """Finds what an unfinished run left, and forgets what it logged after that. To be called once.

        Returns:
          The last good checkpoint; None for a run that begins, or made none.

        Raises:
          DataError: there are checkpoints, none of them good.
        """
        begun = self._metrics.tell() > 0
        saved = self._checkpoints.latest(say)
        self.last_checkpoint = saved.step if saved else None
        if begun:
            say(f"going on from step {saved.step}" if saved else "no checkpoint yet: beginning anew")
        self._metrics.truncate(saved.notes.pop(_LOGGED) if saved else 0)
        self._metrics.seek(0, os.SEEK_END)
        after = saved.step + 1 if saved else 0
        self._events = SummaryWriter(str(self.path), flush_secs=30, purge_step=after if begun else None)
        return saved

    def checkpoint(self, step: int, tree: PyTree, notes: dict[str, Any]) -> None:
        """Stores all that is needed to go on after `step`; `resume` finds it.

        Raises:
          TrainingError: it cannot be written, or the folder is gone; earlier ones are as they were.
        """
        if not (self.path / _CONFIG).exists():
            raise TrainingError(f"{self.path} is gone, and with it the checkpoints of this run")
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        if self._events is not None:
            self._events.flush()
        self._checkpoints.save(step, tree, {**notes, _LOGGED: self._metrics.tell()})
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

    def save(self, state: LearnerState) -> None:
        """Stores the trained network; `load_trained` reads it."""
        save_trained(self.path, state)

    def finish(self, summary: dict[str, Any], render: Render) -> None:
        """Stores the summary and the report; a folder with a summary.json holds a finished run.

        Its checkpoints, which nothing will go on from, are removed.
        """
        self.close()
        try:
            write_whole(self.path / "report.html", render(summary, read_metrics(self.path)))
            write_whole(self.path / _SUMMARY, json.dumps(summary, indent=2) + "\n")
        except OSError as error:
            raise self._cannot_write(error) from error
        self._checkpoints.remove()

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
    last_checkpoint = None

    def resume(self, say: Callable[[str], None]) -> None:
        """Nothing."""

    def checkpoint(self, step: int, tree: PyTree, notes: dict[str, Any]) -> None:
        """Nothing."""

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Nothing."""

    def save(self, state: LearnerState) -> None:
        """Nothing."""

    def finish(self, summary: dict[str, Any], render: Render) -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def write_whole(path: Path, text: str) -> None:
    """Writes a file in one move: it is there whole, or as it was."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def changed_fields(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """How two configs differ, field by field, but for where the data are found."""
    flat_old, flat_new = (flat(json.loads(json.dumps(config))) for config in (old, new))
    return [
        f"config.{field} was {flat_old.get(field, 'absent')!r}, is {flat_new.get(field, 'absent')!r}"
        for field in sorted(flat_old.keys() | flat_new.keys())
        if field not in _HARMLESS and flat_old.get(field) != flat_new.get(field)
    ]


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields under dotted names."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, dict)
        fields |= flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return fields


def _locked(path: Path) -> IO[bytes]:
    """An open file whose lock the system gives up when this process ends, in whatever way."""
    file = open(path / "lock", "ab")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UsageError(f"another run is at work in {path}: choose another --workdir") from error
    return file


def _check_unfinished(path: Path, config: dict[str, Any], accept_changes: bool) -> None:
    if (path / _SUMMARY).exists():
        raise UsageError(f"{path} already holds a finished run: choose another --workdir")
    if not (path / _CONFIG).exists():
        if (path / _METRICS).exists():
            raise UsageError(f"{path} already holds a run, but not its config: choose another --workdir")
        return
    changes = changed_fields(json.loads((path / _CONFIG).read_text(encoding="utf-8")), config)
    if changes and not accept_changes:
        raise UsageError(
            f"{path} holds an unfinished run with another config ({'; '.join(changes)}): choose another"
            " --workdir, or go on with --accept_config_changes"
        )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, in order."""
    with open(path / _METRICS, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
