"""A run's folder: config, metrics, TensorBoard events, the trained network, summary and report."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeAlias

from tensorboardX import SummaryWriter

from decoupled.errors import TrainingError, UsageError
from decoupled.state import LearnerState
from decoupled.training.trained import save_trained

# (summary, lines of metrics) -> a page.
Render: TypeAlias = Callable[[dict[str, Any], list[dict[str, Any]]], str]


class Workdir:
    """Writes a run's results, whole files in one move, metrics line by line.

    A context manager: leaving it, in whatever way, puts on disk what was logged.
    """

    def __init__(self, path: Path, config: dict[str, Any]):
        """Claims `path` for a new run and stores its config.

        Raises:
          UsageError: the folder cannot be written, or already holds a run.
        """
        try:
            self.path = path.expanduser().absolute()
            self.path.mkdir(parents=True, exist_ok=True)
            self._metrics = open(self.path / "metrics.jsonl", "x")  # noqa: SIM115
            self._events = SummaryWriter(str(self.path), flush_secs=30)
            write_whole(self.path / "config.json", json.dumps(config, indent=2) + "\n")
        except FileExistsError as error:
            raise UsageError(
                f"{path} already holds a run, or is a file: choose another --workdir"
            ) from error
        except (OSError, RuntimeError) as error:
            raise UsageError(f"cannot write to {path} ({error}): choose another --workdir") from error

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Appends one line of metrics and sends its numbers to TensorBoard.

        Args:
          kind: "train", "alignment", "validation" or "test".
          step: number of updates so far.
          values: numbers, or lists of one number a boundary (None where there is none).
        """
        try:
            self._metrics.write(json.dumps({"kind": kind, "step": step, **values}, allow_nan=False) + "\n")
            self._metrics.flush()
        except OSError as error:
            raise self._cannot_write(error) from error
        for name, value in values.items():
            entries = enumerate(value) if isinstance(value, list) else [("", value)]
            for index, number in entries:
                if number is not None:
                    tag = f"{kind}/{name}" + (f"/boundary_{index}" if index != "" else "")
                    self._events.add_scalar(tag, number, step)

    def save(self, state: LearnerState) -> None:
        """Stores the trained network; `load_trained` reads it."""
        save_trained(self.path, state)

    def finish(self, summary: dict[str, Any], render: Render) -> None:
        """Stores the summary and the report; a folder with a summary.json holds a finished run."""
        self.close()
        try:
            write_whole(self.path / "report.html", render(summary, read_metrics(self.path)))
            write_whole(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")
        except OSError as error:
            raise self._cannot_write(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Puts everything logged so far on disk; harmless when done twice."""
        self._metrics.close()
        self._events.close()

    def _cannot_write(self, error: OSError) -> TrainingError:
        return TrainingError(f"cannot write results to {self.path}: {error.strerror}")


class NoWorkdir:
    """Writes nothing: for all processes but the first, which writes for all."""

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
    partial.write_text(text)
    os.replace(partial, path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, in order."""
    with open(path / "metrics.jsonl") as lines:
        return [json.loads(line) for line in lines]
