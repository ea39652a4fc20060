"""Progress on a terminal and off it."""

import io
import sys

from absl import logging

from decoupled.training.overview import overview
from decoupled.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_when_there_is_no_terminal(monkeypatch):
    lines = []
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(logging, "info", lambda text, *values: lines.append(text % values))
    progress = Progress(100)
    for step in (50, 60, 100):  # The second comes too soon to be shown.
        progress.show(step, {"loss": 0.12345, "examples/s": 12345.6})
    progress.say("done")
    progress.close()
    assert [line.partition("  ETA")[0] for line in lines] == [
        "step 50/100  loss 0.1235  examples/s 12346",
        "step 100/100  loss 0.1235  examples/s 12346",
        "done",
    ]
    assert lines[1].endswith("ETA 0 s")


def test_a_bar_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress(100)
    progress.show(50, {"loss": 0.5})
    progress.say("half way")
    progress.show(100, {"loss": 0.25})
    progress.close()
    shown = terminal.getvalue()
    assert "100/100" in shown
    assert "loss=0.25" in shown
    assert "half way" in shown


def test_overview_adds_up():
    entry = {"output": [4, 4, 2], "parameters": 1000, "estimator": "linear", "estimator_parameters": 34}
    table = overview([{"name": "first", **entry}, {"name": "second", **entry}]).splitlines()
    assert table[2].split() == ["first", "4x4x2", "1,000", "linear", "34"]
    assert table[-1].split() == ["total", "2,000", "68"]
