"""Training runs, one a process with one thread, one process a core; finished ones are kept."""

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from benchmarks.one_core import environment, one_thread
from decoupled.training import Workdir, train_and_evaluate
from decoupled.training.builder import build
from decoupled.training.workdir import read_metrics


class Run(NamedTuple):
    """What is kept of a run.

    Attributes:
      test_accuracy: fraction, at the end.
      test_loss, training_loss: nats; of training, the mean over the last steps that were logged together.
      validation: accuracy on held-out examples after each epoch, fractions.
      cosine: of estimates with the true gradient, mean over boundaries and looks; None without boundaries.
    """

    test_accuracy: float
    test_loss: float
    training_loss: float
    validation: list[float]
    cosine: float | None


def run_all(folder: Path, wanted: Sequence[ConfigDict], processes: int = 0) -> list[Run]:
    """Runs what is not finished in `folder`, and returns all results, in order.

    Args:
      wanted: configs.
      processes: at a time, which share an accelerator if there is one; 0: one a core.
    """
    spawn = multiprocessing.get_context("spawn")
    processes = min(len(wanted), processes or os.cpu_count() or 1)
    share = f"{0.9 / processes:.3f}"  # of an accelerator's memory
    with (
        one_thread(),
        environment(XLA_PYTHON_CLIENT_MEM_FRACTION=share),
        concurrent.futures.ProcessPoolExecutor(processes, mp_context=spawn) as pool,
    ):
        return list(pool.map(run, [folder] * len(wanted), wanted))


def run(folder: Path, config: ConfigDict) -> Run:
    """One run, unless it is finished; runs of other configs have other folders."""
    text = json.dumps(config.to_dict(), sort_keys=True)
    path = folder / hashlib.sha256(text.encode()).hexdigest()[:12]
    if not (path / "summary.json").exists():
        shutil.rmtree(path, ignore_errors=True)  # What an interrupted run left.
        with Workdir(path, config.to_dict()) as workdir:
            train_and_evaluate(build(config), workdir)
    return _read(path)


def _read(path: Path) -> Run:
    summary, lines = json.loads((path / "summary.json").read_text(encoding="utf-8")), read_metrics(path)

    def logged(kind: str, name: str) -> list[Any]:
        return [line[name] for line in lines if line["kind"] == kind]

    cosines = [value for look in logged("alignment", "cosine") for value in look]
    return Run(
        summary["test_accuracy"],
        summary["test_loss"],
        logged("train", "loss")[-1],
        logged("validation", "accuracy"),
        statistics.mean(cosines) if cosines else None,
    )
