"""Progress on a terminal and off it."""

import io
import sys
from logging import NOTSET, WARNING
from typing import ClassVar

import numpy as np
import pytest
from absl import logging

from decoupled import TrainingError
from decoupled.learning.state import BoundaryMetrics
from decoupled.telling import tell
from decoupled.training import Workdir, read_metrics
from decoupled.training.checkpoints import quiet
from decoupled.training.monitor import Monitor
from decoupled.training.overview import overview
from decoupled.training.progress import Progress
from decoupled.training.step import Totals


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(params=["logged", "printed"])
def told(request, monkeypatch, capsys):
    """The lines so far: in a program that logs, and in a notebook where nobody has set that up."""
    logged = []
    monkeypatch.setattr(logging, "info", lambda text, *values: logged.append(text % values))
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.INFO if request.param == "logged" else logging.WARNING)
    yield lambda: logged + capsys.readouterr().err.splitlines()
    logging.set_verbosity(verbosity)


def test_lines_when_there_is_no_terminal(told):
    with Progress(100) as progress:
        for step in (50, 60, 100):  # The second comes too soon to be shown.
            progress.show(step, {"loss": 0.12345, "examples/s": 12345.6})
        progress.say("done")
    lines = told()
    assert [line.partition("  ETA")[0] for line in lines] == [
        "step 50/100  loss 0.1235  examples/s 12346",
        "step 100/100  loss 0.1235  examples/s 12346",
        "done",
    ]
    assert lines[1].endswith("ETA 0 s")


def test_silence_that_was_chosen_is_kept(capsys):
    verbosity = logging.get_verbosity()
    try:
        for chosen in (logging.WARNING, logging.ERROR):  # the first is absl's default
            logging.set_verbosity(chosen)
            tell(f"at {chosen}")
    finally:
        logging.set_verbosity(verbosity)
    assert capsys.readouterr().err == f"at {logging.WARNING}\n"


def test_silence_for_orbax_leaves_nothing_chosen():
    logger = logging.get_absl_logger()
    level = logger.level
    logger.setLevel("NOTSET")  # as where nobody has chosen a verbosity
    try:
        with quiet():
            assert not logger.isEnabledFor(WARNING)
        assert logger.level == NOTSET
    finally:
        logger.setLevel(level)


class Notebook:
    """What a Jupyter kernel has of IPython."""

    config: ClassVar = {"IPKernelApp": {}}

    @classmethod
    def get_ipython(cls):
        return cls


@pytest.mark.parametrize("where", ["terminal", "notebook"])
def test_a_bar_where_it_can_move(where, monkeypatch):
    terminal = Terminal() if where == "terminal" else io.StringIO()
    if where == "notebook":
        monkeypatch.setitem(sys.modules, "IPython", Notebook)
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(100) as progress:
        progress.show(50, {"loss": 0.5})
        progress.say("half way")
        progress.show(100, {"loss": 0.25})
    shown = terminal.getvalue()
    assert "100/100" in shown
    assert "loss=0.25" in shown
    assert "half way" in shown


def test_overview_adds_up():
    entry = {"output": [4, 4, 2], "parameters": 1000, "estimator": "linear", "estimator_parameters": 34}
    table = overview([{"name": "first", **entry}, {"name": "second", **entry}]).splitlines()
    assert table[2].split() == ["first", "4x4x2", "1,000", "linear", "34"]
    assert table[-1].split() == ["total", "2,000", "68"]


def test_monitor_shows_every_boundary(told, tmp_path):
    with Workdir(tmp_path / "run", {}) as workdir, Progress(8) as progress:
        monitor = Monitor(workdir, progress, ["first", "second"])
        fitted = BoundaryMetrics(np.float32(1.0), np.float32(4.0))
        totals = Totals(np.float32(4.0), np.float32(6.0), np.float32(1.0), (fitted, None))
        monitor.training(4, 0.5, totals, examples_per_second=10.0)
        monitor.alignment(4, [0.25, 1.0])
        monitor.boundaries()
        with pytest.raises(
            TrainingError, match=r"^not finite: the loss \(seen at step 5; no checkpoint was made\): lower"
        ):
            monitor.evaluation("test", 5, 1, {"accuracy": 0.1, "loss": float("nan")})
        with pytest.raises(TrainingError, match="the estimator after second"):
            monitor.alignment(5, [0.5, float("nan")])
    assert told()[-1] == "boundaries first to last: estimator loss 0.25; R2 0.75; cosine 0.25 1"
    train, alignment = read_metrics(tmp_path / "run")
    assert train == {
        "kind": "train",
        "step": 4,
        "epoch": 0.5,
        "loss": 1.5,
        "accuracy": 0.25,
        "estimator_loss": [0.25, None],
        "r2": [0.75, None],
        "examples_per_second": 10.0,
    }
    assert alignment == {"kind": "alignment", "step": 4, "cosine": [0.25, 1.0]}


def test_monitor_shows_the_range_of_many_boundaries(told, tmp_path):
    with Workdir(tmp_path / "run", {}) as workdir, Progress(8) as progress:
        monitor = Monitor(workdir, progress, [f"hidden_{i}" for i in range(101)])
        monitor.alignment(4, [i / 100 for i in range(101)])
        monitor.boundaries()
    assert told()[-1] == "101 boundaries: cosine 0 to 1, median 0.5"
