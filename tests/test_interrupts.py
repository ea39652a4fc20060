"""train.py, asked to stop at any moment from its first line to its last."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.commands import ROOT, run, weights

SHORT = (
    "--config=configs/digits.py",
    "--config.model.mlp.depth=1",
    "--config.model.mlp.width=16",
    "--config.epochs=60",
    "--config.log_every=5",
    "--config.checkpoint_every=0",
    "--config.update_probability=0.8",
)

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def command(workdir):
    return [sys.executable, "train.py", *SHORT, f"--workdir={workdir}"]


def heeding(workdir):
    """A process that has come to its first line, where it begins to catch SIGTERM."""
    process = subprocess.Popen(
        command(workdir), cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, encoding="utf-8"
    )
    wait(lambda: catches(process.pid, signal.SIGTERM) or process.poll() is not None)
    return process


def catches(pid, number):
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return bool(int(fields.get("SigCgt", "0"), 16) >> (number - 1) & 1)


def wait(condition):
    while not condition():
        time.sleep(0.001)


def ended(process, number):
    """What it said, and its exit code, after a signal."""
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert "Traceback" not in said
    assert "Fatal Python error" not in said
    return said, process.returncode


@needs_proc
def test_a_signal_during_an_import(tmp_path):
    started = time.monotonic()
    said, code = ended(heeding(tmp_path / "run"), signal.SIGINT)
    assert (said, code) == ("train.py: stopped by SIGINT\n", 130)
    assert time.monotonic() - started < 5  # long before the imports are over
    assert not (tmp_path / "run").exists()


@needs_proc
def test_a_signal_during_a_compilation(tmp_path):
    process = heeding(tmp_path / "run")
    # The folder is claimed, then the network is made and its step compiled.
    wait(lambda: (tmp_path / "run" / "lock").exists() or process.poll() is not None)
    time.sleep(0.2)
    said, code = ended(process, signal.SIGTERM)
    assert (said.splitlines()[-1], code) == ("train.py: stopped by SIGTERM", 143)
    assert not (tmp_path / "run" / "config.json").exists()  # so it had not begun


@needs_proc
@pytest.mark.slow
def test_forty_signals_at_random_moments(tmp_path):
    """A run is stopped again and again, and goes on each time until it ends; then the next one begins."""
    started = time.monotonic()
    done = run(command(tmp_path / "whole"))
    assert done.returncode == 0, done.stderr
    length = time.monotonic() - started
    rng, told = random.Random(int(os.environ.get("SEED", "0"))), []
    runs = [tmp_path / "0"]
    while sum(code != 0 for _, _, code, *_ in told) < 40:
        started = time.monotonic()
        process = heeding(runs[-1])
        moment, number = rng.uniform(0, length), rng.choice((signal.SIGINT, signal.SIGTERM))
        until = time.monotonic() + moment
        wait(lambda until=until, process=process: time.monotonic() > until or process.poll() is not None)
        before = process.poll()
        said, code = ended(process, number)
        finished = (runs[-1] / "summary.json").exists()
        told.append((round(moment, 2), number.name, code, finished, said.splitlines()[-1]))
        print(*told[-1], flush=True)
        assert code == 128 + number or (code == 0 and "results in" in said), said
        if before is not None:
            length = time.monotonic() - started  # it takes less than was thought
        if finished:
            runs.append(tmp_path / str(len(runs)))
    assert run(command(runs[-1])).returncode == 0
    for path in runs:
        jax.tree.map(np.testing.assert_array_equal, weights(path), weights(tmp_path / "whole"))
        first, second = (json.loads((p / "summary.json").read_bytes()) for p in (path, tmp_path / "whole"))
        assert first["test_loss"] == second["test_loss"]
