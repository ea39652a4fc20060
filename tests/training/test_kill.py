"""train.py, stopped and killed as systems do it."""

import json
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from decoupled.training.checkpoints import Checkpoints
from tests.commands import ROOT, run, weights

QUICK = (
    "--config=configs/digits.py",
    "--config.model.mlp.depth=1",
    "--config.model.mlp.width=16",
    "--config.log_every=1",
)
FASHION_MNIST = (
    "--config=configs/fashion_mnist.py",
    "--config.epochs=3",
    "--config.log_every=5",
    "--config.checkpoint_every=10",
    "--config.update_probability=0.8",
)


def command(arguments, workdir):
    return [sys.executable, "train.py", *arguments, f"--workdir={workdir}"]


def begun(arguments, workdir, lines):
    """A process whose run has logged so many lines more."""
    process = subprocess.Popen(
        command(arguments, workdir),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        encoding="utf-8",
    )
    metrics = workdir / "metrics.jsonl"
    known = len(metrics.read_bytes().splitlines()) if metrics.exists() else 0
    while process.poll() is None:
        if metrics.exists() and len(metrics.read_bytes().splitlines()) >= known + lines:
            break
        time.sleep(0.01)
    return process


def test_sigterm_ends_at_a_step_and_the_same_command_goes_on(tmp_path):
    arguments = (*QUICK, "--config.epochs=100000", "--config.checkpoint_every=0")
    process = begun(arguments, tmp_path / "run", lines=3)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    line = said.splitlines()[-1]
    assert line.startswith("train.py: stopped by SIGTERM after step ")
    assert line.endswith(f": --workdir={tmp_path / 'run'} goes on from there")
    step = int(line.split("step ")[1].split(":")[0])
    assert Checkpoints(tmp_path / "run" / "checkpoints").latest(print).step == step

    epochs = f"--config.epochs={step // (1237 // 64) + 1}"
    done = run(command((*QUICK, epochs, "--accept_config_changes"), tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert f"going on from step {step}" in done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))["resumed_at"] == step


@pytest.mark.slow
def test_killed_twenty_times_is_as_never_killed(tmp_path):
    whole = run(command(FASHION_MNIST, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    rng, kills, steps = random.Random(0), 0, []
    while kills < 20:
        process = begun(FASHION_MNIST, tmp_path / "killed", lines=1)
        time.sleep(rng.uniform(0, 1.5))
        process.kill()
        process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
        steps.append(Checkpoints(tmp_path / "killed" / "checkpoints").latest(print))
    print("killed", kills, "times; last checkpoints at", [saved and saved.step for saved in steps])
    assert kills == 20
    done = run(command(FASHION_MNIST, tmp_path / "killed"))
    assert done.returncode == 0, done.stderr

    jax.tree.map(np.testing.assert_array_equal, weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    first, second = (
        json.loads((tmp_path / n / "summary.json").read_text(encoding="utf-8")) for n in ("killed", "whole")
    )
    assert first["test_loss"] == second["test_loss"]
