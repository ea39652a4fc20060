"""`train.py` as several real processes on this machine; one process with as many devices is the oracle."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import decoupled
from configs import digits
from decoupled.parallel import distributed
from decoupled.parallel.distributed import check_address
from decoupled.training import Workdir, read_metrics, train_and_evaluate
from decoupled.training.builder import build
from decoupled.training.checkpoints import Checkpoints
from tests.commands import ROOT, run, weights

pytestmark = pytest.mark.usefixtures("undrawn")

CHANGES = {
    "parallel.mode": "mesh",
    "epochs": 1,
    "model.mlp.depth": 1,
    "model.mlp.width": 8,
    "validation_examples": 37,
    "crop_padding": 1,
    "log_every": 10,
    "alignment_every": 10,
}


def environment():
    """This run's, but with one device a process."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=2", "device_count=1")
    return {**os.environ, "XLA_FLAGS": flags}


def command(process, port, *arguments):
    changes = [f"--config.{name}={value}" for name, value in CHANGES.items()]
    address = [f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2", f"--process_id={process}"]
    return [sys.executable, "train.py", "--config=configs/digits.py", *changes, *address, *arguments]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def two_processes(*arguments):
    port = free_port()
    return [
        subprocess.Popen(
            command(i, port, *arguments),
            cwd=ROOT,
            env=environment(),
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        for i in range(2)
    ]


def as_two_processes(*arguments):
    """(exit code, stderr) of both, once both have ended."""
    processes = two_processes(*arguments)
    try:
        said = [process.communicate(timeout=200)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return list(zip([process.returncode for process in processes], said, strict=True))


def test_two_processes_are_one_with_two_devices(tmp_path):
    (first_code, first), (second_code, second) = as_two_processes(f"--workdir={tmp_path / 'two'}")
    assert (first_code, second_code) == (0, 0), first + second

    config = digits.get_config()
    config.update_from_flattened_dict(CHANGES)
    with Workdir(tmp_path / "one", config.to_dict()) as workdir:
        expected = train_and_evaluate(build(config), workdir)
    summary = json.loads((tmp_path / "two" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["processes"], summary["devices"]) == (2, 2)
    assert summary["test_accuracy"] == pytest.approx(expected["test_accuracy"], abs=0.01)
    assert summary["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-3)
    lines, expected_lines = read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one")
    assert [line["kind"] for line in lines] == [line["kind"] for line in expected_lines]
    for line, other in zip(lines, expected_lines, strict=True):
        for name in ("loss", "accuracy", "cosine"):
            if name in line:
                assert line[name] == pytest.approx(other[name], rel=1e-2, abs=1e-2)

    # The second wrote nothing, and said nothing of how it went.
    assert len(list((tmp_path / "two").glob("events.*"))) == 1
    assert "gradient from" in first
    assert "gradient from" not in second
    assert "results in" not in second


@pytest.mark.slow
def test_killed_processes_go_on_together(tmp_path):
    """Of which only the first has the checkpoint."""
    arguments = ("--config.epochs=30", "--config.checkpoint_every=20")
    whole = as_two_processes(*arguments, f"--workdir={tmp_path / 'whole'}")
    assert [code for code, _ in whole] == [0, 0], whole

    killed = tmp_path / "killed"
    processes = two_processes(*arguments, f"--workdir={killed}")
    until = time.monotonic() + 100
    while time.monotonic() < until and Checkpoints(killed / "checkpoints").latest(print) is None:
        time.sleep(0.05)
    for process in processes:
        process.kill()
        process.communicate()
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2

    resumed = as_two_processes(*arguments, f"--workdir={killed}")
    assert [code for code, _ in resumed] == [0, 0], resumed
    assert "going on from step" in resumed[0][1]
    first, second = (
        json.loads((tmp_path / n / "summary.json").read_text(encoding="utf-8")) for n in ("killed", "whole")
    )
    assert first["resumed_at"] >= 20
    assert first["test_loss"] == second["test_loss"]
    jax.tree.map(np.testing.assert_array_equal, weights(killed), weights(tmp_path / "whole"))


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others(tmp_path):
    """The first finds the workdir taken, while the second already waits for it in a step."""
    (tmp_path / "metrics.jsonl").write_text("mine", encoding="utf-8")
    (code, said), (other_code, _) = as_two_processes(f"--workdir={tmp_path}")
    assert code == 2
    assert "already holds a run" in said.splitlines()[-1]
    assert other_code != 0


def test_a_process_alone_does_not_wait_for_ever():
    failed = run(command(1, free_port(), "--coordinator_timeout=1"), env=environment())
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("train.py: ")]
    assert "process 1 has waited 1 s for all 2 processes" in line


@pytest.mark.skipif(sys.platform == "win32", reason="there the runtime takes no signal")
def test_sigterm_is_heard_though_the_runtime_takes_it(monkeypatch):
    """As `jax.distributed.initialize` does, below Python."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        ignore = ctypes.c_void_p(1)
        taken = lambda *_: ctypes.CDLL(None).signal(signal.SIGTERM, ignore)  # noqa: E731
        monkeypatch.setattr(distributed, "_initialize", taken)
        monkeypatch.setattr(jax.config, "update", lambda *_: None)
        with distributed.joined("127.0.0.1:1", 2, 1):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_a_mistake_in_the_flags_gets_one_line():
    failed = run([sys.executable, "train.py", "--config=configs/digits.py", "--num_processes=2"])
    assert failed.returncode == 2
    assert failed.stderr.splitlines() == [
        "train.py: --coordinator_address and --process_id missing: give all of --coordinator_address,"
        " --num_processes, --process_id, or none of them"
    ]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ((None, 2, 0), "--coordinator_address missing"),
        (("here:1", None, 0), "--num_processes missing"),
        (("here:1", 2, None), "--process_id missing"),
        (("here", 2, 0), "--coordinator_address is 'here'"),
        (("here:0", 2, 0), "--coordinator_address is 'here:0'"),
        (("here:1", 2, 2), "--process_id is 2: with --num_processes=2 choose from 0 to 1"),
        (("here:1", 2, -1), "--process_id is -1"),
        (("here:1", 0, 0), "--num_processes is 0: choose at least 1"),
    ],
)
def test_addresses_are_checked(address, message):
    with pytest.raises(decoupled.UsageError, match=message):
        check_address(*address)
    check_address(None, None, None)
    check_address("here:1", 2, 1)
