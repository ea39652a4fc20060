"""One batch over two devices, in every way a config can choose: the run of one device is the oracle."""

import json

import chex
import jax
import numpy as np
import pytest

import decoupled
from configs import digits
from decoupled.builder import build
from decoupled.data import shuffled_batches
from decoupled.training import Workdir, read_metrics, train_and_evaluate
from decoupled.training.step import no_totals

WAYS = ("mesh", "shard_map", "pmap")
# Batch normalisation and augmentation see the whole batch, or the runs would part at the first step.
SETTINGS = {
    "model.norm": "batch",
    "model.mlp.depth": 2,
    "model.mlp.width": 8,
    "crop_padding": 1,
    "flip": True,
    "batch_size": 64,
    "epochs": 1,
    "validation_examples": 37,  # no multiple of the devices
    "log_every": 10,
    "alignment_every": 10,
    "optimizer.schedule": "constant",
}


def config(**changes):
    result = digits.get_config()
    result.update_from_flattened_dict({**SETTINGS, **changes})
    return result


def steps(mode, count, **changes):
    """A few steps taken as the loop takes them: (state, totals), read to the host."""
    job = build(config(**{"parallel.mode": mode, **changes}))
    execution, learner = job.execution, job.learner
    train, size = job.dataset.train, job.batch_size
    key = execution.place_state(jax.random.key(7))
    first = (train.images[:size], train.labels[:size])
    state = jax.jit(learner.init)(jax.random.key(0), job.preprocess.evaluate(first[0]), first[1])
    state, totals = execution.place_state(state), execution.place_state(no_totals(learner))
    rows = execution.rows(size)
    step = execution.compile_step(state, totals, *execution.place_batch(first), key)
    for _, batch in zip(range(count), shuffled_batches(train, size, 0, 1, rows), strict=False):
        before = (state, totals)
        # Anything that would have the host wait for a device raises.
        placed = execution.place_batch(batch)
        with jax.transfer_guard_device_to_host("disallow"):
            state, totals = step(state, totals, *placed, key)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    return jax.device_get((execution.whole_state(state), totals))


def same(mode, **changes):
    """Runs that differ in rounding only part slowly: after three steps of SGD-like Adam, by little."""
    expected, actual = steps("none", 3, **changes), steps(mode, 3, **changes)
    chex.assert_trees_all_close(actual, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("mode", WAYS)
def test_a_step_gives_what_one_device_gives(mode):
    same(mode)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    result = {}
    for mode in ("none", *WAYS):
        path = tmp_path_factory.mktemp("runs") / mode
        settings = config(**{"parallel.mode": mode})
        with Workdir(path, settings.to_dict()) as workdir:
            summary = train_and_evaluate(build(settings), workdir)
        result[mode] = (path, summary)
    return result


@pytest.mark.parametrize("mode", WAYS)
def test_a_whole_run_measures_what_one_device_measures(runs, mode):
    path, summary = runs[mode]
    expected_path, expected = runs["none"]
    assert summary["test_accuracy"] == pytest.approx(expected["test_accuracy"], abs=0.02)
    assert summary["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-2)
    lines, expected_lines = read_metrics(path), read_metrics(expected_path)
    assert [line["kind"] for line in lines] == [line["kind"] for line in expected_lines]
    for line, other in zip(lines, expected_lines, strict=True):
        for name in ("loss", "estimator_loss", "cosine"):
            if name in line:
                np.testing.assert_allclose(line[name], other[name], rtol=0.02, atol=0.01)
    assert json.loads((path / "summary.json").read_text())["devices"] == 2
    assert (summary["parallel"], summary["processes"]) == (mode, 1)
    assert expected["devices"] == 1


def test_one_device_of_several_can_be_chosen():
    job = build(config(**{"parallel.mode": "mesh", "parallel.devices": 1}))
    (image, *_), _ = job.execution.place_batch((np.zeros((64, 8, 8, 1), np.uint8), np.zeros(64))), 0
    assert len(image.sharding.device_set) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel.mode": "meshy"}, "config.parallel.mode is 'meshy': choose one of mesh, none, pmap"),
        (
            {"parallel.mode": "mesh", "batch_size": 63},
            "config.batch_size is 63, which 2 devices .config.parallel.devices.* a multiple of 2",
        ),
        ({"parallel.mode": "pmap", "parallel.devices": 3}, "config.parallel.devices is 3, but there are 2"),
        ({"parallel.devices": 2}, "config.parallel.devices is 2, but config.parallel.mode is none"),
        ({"parallel.devices": -1}, "config.parallel.devices is -1"),
    ],
)
def test_what_cannot_be_shared_is_refused(changes, message):
    with pytest.raises(decoupled.UsageError, match=message):
        build(config(**changes))
