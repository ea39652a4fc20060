"""The soak: what it reads of a process, and the line it draws."""

import os
import sys

import numpy as np
import pytest

from benchmarks.soak import Sample, sample, soak, trend

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
QUICK = ("--config=configs/digits.py", "--config.model.mlp.depth=1", "--config.model.mlp.width=16")


def test_a_sample_sees_memory_that_was_taken():
    before = sample(os.getpid(), 0.0)
    taken = np.ones(64 * 2**20, np.uint8)
    after = sample(os.getpid(), 0.0)
    assert after.resident - before.resident == pytest.approx(64, abs=8)
    assert after.anonymous - before.anonymous == pytest.approx(64, abs=8)
    del taken


def test_warm_up_is_left_out_and_a_leak_seen():
    warm_up = [Sample(float(s), 50.0 * s, 0.0) for s in range(10)]
    flat = trend([*warm_up, *(Sample(float(s), 500.0, 0.0) for s in range(10, 30))])
    assert flat == pytest.approx((500, 0, 0), abs=1e-6)
    leak = trend([*warm_up, *(Sample(float(s), 500.0 + 2 * s, 0.0) for s in range(10, 30))])
    assert leak.slope == pytest.approx(2 * 3600)
    assert leak.change > 0.04


@pytest.mark.slow
def test_a_run_is_watched_until_it_is_stopped(tmp_path):
    samples = soak((*QUICK, "--config.epochs=100000"), tmp_path / "run", minutes=0.5, every=1.0)
    assert len(samples) > 10
    assert all(0 < each.anonymous <= each.resident for each in samples)
    assert (tmp_path / "run" / "checkpoints").is_dir()


def test_a_run_that_fails_is_no_soak(tmp_path):
    with pytest.raises(SystemExit, match=r"ended with exit code 2 before its time: .*nothing\.py"):
        soak(("--config=configs/nothing.py",), tmp_path / "run", minutes=1, every=0.2)
