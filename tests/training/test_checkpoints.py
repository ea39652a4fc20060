"""Checkpoints as files: what goes in comes out, and writing many keeps no memory."""

import os
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.soak import sample
from decoupled.training.checkpoints import Checkpoints


def test_arrays_of_every_kind_come_back(tmp_path):
    leaves = [
        np.array([True, False, True]),  # three bytes: what follows is not aligned
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asarray(jnp.arange(5, dtype=jnp.bfloat16)),
        np.zeros((0, 4), np.float32),
        np.array(7, np.int64),
        np.array([np.nan, -0.0, np.inf]),
        np.asfortranarray(np.arange(4, dtype=np.int32).reshape(2, 2)),
    ]
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(3, leaves, {"a": [1, None]})
    saved = checkpoints.latest(print)
    assert (saved.step, saved.notes) == (3, {"a": [1, None]})
    for found, leaf in zip(saved.leaves, leaves, strict=True):
        assert found.dtype == leaf.dtype
        np.testing.assert_array_equal(found, leaf)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_writing_many_keeps_no_memory(tmp_path):
    """One array a file, in orbax's default format, kept 140 KB of each of these."""
    leaves = [np.ones(256, np.float32)] * 160
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    def written(steps):
        for step in steps:
            checkpoints.save(step, leaves, {})
        return sample(os.getpid(), 0.0).resident

    warm = written(range(40))
    assert written(range(40, 120)) - warm < 80 * 0.05
