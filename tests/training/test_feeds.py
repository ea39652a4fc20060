"""Steps taken many in one call, on a data set that lies on the device: steps one by one are the oracle."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from decoupled.data import Stream, batches_from
from decoupled.training import Workdir, feeds, read_metrics, train_and_evaluate
from decoupled.training.builder import build
from decoupled.training.feeds import Run, brought, compiled, fits_on_device, read_ahead
from decoupled.training.step import no_totals
from tests.helpers import gate

pytestmark = pytest.mark.usefixtures("undrawn")

SETTINGS = {
    "model.mlp.depth": 2,
    "model.mlp.width": 8,
    "crop_padding": 1,
    "batch_size": 64,
    "validation_examples": 37,
    "optimizer.schedule": "constant",
}


def config(**changes):
    result = digits.get_config()
    result.update_from_flattened_dict({**SETTINGS, **changes})
    return result


def taken(mode, done, calls):
    """State and totals after steps, and the batch of the last; each call takes so many."""
    job = build(config(**{"parallel.mode": mode}))
    execution, train = job.execution, job.dataset.train
    key = execution.place_state(jax.random.key(7))
    first = (train.images[:64], train.labels[:64])
    state = job.learner.init(jax.random.key(0), job.preprocess.evaluate(first[0]), first[1])
    state, totals = execution.place_state(state), execution.place_state(no_totals(job.learner))
    feed = compiled(execution, Run(train, 64, 3, 3), state, totals, key).begin(done)
    for count in calls:
        before = state, totals
        state, totals = feed.take(state, totals, done, count)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
        done += count
    return jax.device_get((state, totals, feed.last_batch()))


@pytest.fixture(scope="module")
def one_by_one():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeds, "fits_on_device", lambda arrays: False)
        return taken("none", 22, [1] * 5)  # in the second epoch


@pytest.mark.parametrize("mode", gate(["none", "mesh", "shard_map"], "none", "shard_map"))
def test_a_loop_takes_the_same_steps(mode, one_by_one):
    chex.assert_trees_all_close(taken(mode, 22, [5]), one_by_one, rtol=2e-3, atol=2e-4)


def test_numbers_do_not_depend_on_how_steps_are_cut_into_calls():
    whole = taken("none", 0, [18])
    chex.assert_trees_all_equal(taken("none", 0, [1, 11, 6]), whole)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "mesh"])
def test_a_run_is_the_same_as_from_batches_that_are_brought(mode, tmp_path, monkeypatch):
    lines = []
    for name, fits in (("brought", False), ("lies", True)):
        monkeypatch.setattr(feeds, "fits_on_device", lambda arrays, fits=fits: fits)
        settings = config(epochs=2, log_every=7, alignment_every=5, **{"parallel.mode": mode})
        with Workdir(tmp_path / name, settings.to_dict()) as workdir:
            train_and_evaluate(build(settings), workdir)
        lines.append(read_metrics(tmp_path / name))
    for line, expected in zip(*lines, strict=True):
        assert (line["kind"], line["step"]) == (expected["kind"], expected["step"])
        for name in ("loss", "cosine", "estimator_loss"):
            if name in expected:
                np.testing.assert_allclose(line[name], expected[name], rtol=1e-2, atol=1e-3)


def test_batches_are_on_their_way_before_they_are_asked_for():
    placed = []
    batches = brought(lambda batch: placed.append(batch) or batch, iter(range(6)))
    assert list(itertools.islice(batches, 3)) == [0, 1, 2]
    assert placed == [0, 1, 2, 3, 4]
    assert list(batches) == [3, 4, 5]


def test_a_device_does_not_wait_for_batches_from_the_host(monkeypatch):
    split = (np.arange(20.0).reshape(10, 2), np.arange(10), np.ones(10, np.float32))
    assert read_ahead(split) is split  # the CPU has to make them itself
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    run = (3, 1, 2, np.array([0, 2]))  # batch size, seed, epochs, rows of this process
    found, expected = ([*batches_from(2, each, *run)] for each in (read_ahead(split), split))
    chex.assert_trees_all_equal(found, expected)
    assert isinstance(read_ahead(split), Stream)


def test_what_fits(monkeypatch):
    class Image:
        nbytes = 1001

    on_device = {"x": jnp.zeros((4, 3)), "y": None}
    assert fits_on_device(on_device)
    for memory, fits in ((8 * 1001, True), (8 * 1001 - 1, False)):
        monkeypatch.setattr(feeds, "_memory", lambda memory=memory: memory)
        assert fits_on_device((on_device, Image())) is fits


def test_a_step_with_convolutions_is_taken_by_itself_on_a_cpu():
    settings = config(**{"model.name": "cnn", "model.cnn.features": (2,)})
    job = build(settings)
    images, labels = (part[:64] for part in job.dataset.train)
    state = job.learner.init(jax.random.key(0), job.preprocess.evaluate(images), labels)
    order = jnp.zeros((1, 64), jnp.int32)
    arguments = (state, no_totals(job.learner), (images, labels), order, jax.random.key(0))
    assert job.execution.compile_loop(*arguments) is None
