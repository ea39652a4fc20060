"""One batch over two devices, in every way a config can choose: the run of one device is the oracle."""

from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import pytest

import decoupled
from configs import digits
from decoupled.data import shuffled_batches
from decoupled.training import Workdir, read_metrics, train_and_evaluate
from decoupled.training.builder import build
from decoupled.training.step import alignment_step, evaluator, no_totals
from tests.helpers import gate

pytestmark = pytest.mark.usefixtures("undrawn")

WAYS = ("mesh", "shard_map", "pmap")
# Batch normalisation and augmentation see the whole batch, or the runs would part at the first step.
SETTINGS = {
    "model.norm": "batch",
    "model.mlp.depth": 2,
    "model.mlp.width": 8,
    "crop_padding": 1,
    "cutout": 3,
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


class Taken(NamedTuple):
    """What some steps did, read to the host."""

    state: Any
    totals: Any
    cosines: Any
    evaluation: Any


def take_steps(mode, count=7):
    """A few steps as the loop takes them, and its two ways to measure the result."""
    job = build(config(**{"parallel.mode": mode}))
    execution, learner, preprocess = job.execution, job.learner, job.preprocess
    train, size = job.dataset.train, job.batch_size
    key, rows = execution.place_state(jax.random.key(7)), execution.rows(size)
    first = (train.images[:size], train.labels[:size])
    state = learner.init(jax.random.key(0), preprocess.evaluate(first[0]), first[1])
    state, totals = execution.place_state(state), execution.place_state(no_totals(learner))
    step = execution.compile_step(state, totals, *execution.place_batch(first), key)
    for _, batch in zip(range(count), shuffled_batches(train, size, 0, 1, rows), strict=False):
        batch, before = execution.place_batch(batch), (state, totals)
        # Compiled for one kind of argument: what a step returns must be of the kind that it takes.
        state, totals = step(state, totals, *batch, key)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    whole = execution.whole_state(state)
    cosines = execution.measure(alignment_step(learner, preprocess))(whole, *batch, key)
    # 99 is no multiple of the devices, and the test set none of 100.
    evaluation = evaluator(learner, preprocess, 99, execution)(whole, job.dataset.test)
    return Taken(*jax.device_get((whole, totals, cosines)), evaluation)


@pytest.fixture(scope="module")
def of_one_device():
    return take_steps("none")


@pytest.mark.parametrize("mode", gate(WAYS, "mesh", "pmap"))
def test_steps_and_measurements_are_those_of_one_device(mode, of_one_device):
    taken = take_steps(mode)
    chex.assert_trees_all_close(taken, of_one_device, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
def test_a_whole_run_measures_what_one_device_measures(tmp_path):
    summaries, metrics = [], []
    for mode in ("none", "pmap"):
        settings = config(**{"parallel.mode": mode, "model.mlp.depth": 1})
        with Workdir(tmp_path / mode, settings.to_dict()) as workdir:
            summaries.append(train_and_evaluate(build(settings), workdir))
        metrics.append(read_metrics(tmp_path / mode))
    (expected, actual), (expected_lines, lines) = summaries, metrics
    assert actual["test_accuracy"] == pytest.approx(expected["test_accuracy"], abs=0.02)
    assert actual["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-2)
    assert [line["kind"] for line in lines] == [line["kind"] for line in expected_lines]
    for line, other in zip(lines, expected_lines, strict=True):
        for name in ("loss", "estimator_loss", "cosine"):
            if name in line:
                np.testing.assert_allclose(line[name], other[name], rtol=0.02, atol=0.01)
    assert (actual["parallel"], actual["devices"], actual["processes"]) == ("pmap", 2, 1)
    assert expected["devices"] == 1


def test_one_device_of_several_can_be_chosen():
    job = build(config(**{"parallel.mode": "mesh", "parallel.devices": 1}))
    (images,) = job.execution.place_batch((np.zeros((64, 8, 8, 1), np.uint8),))
    assert len(images.sharding.device_set) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"parallel.mode": "meshy"},
            "config.parallel.mode is 'meshy': choose one of mesh, none, pipeline, pmap",
        ),
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
