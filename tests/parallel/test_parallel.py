"""Oracle 7: one update, the same under jit, on a mesh, in shard_map and in pmap."""

from functools import partial

import chex
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests import helpers

KEY = jax.random.key(3)
METHODS = helpers.every_method()
SYNTHETIC = helpers.synthetic_gradients()
# Noise hangs on every bit of an activation; the similarity loss compares the examples of one device.
SAME_EVERYWHERE = sorted(METHODS.keys() - {"noise", "similarity"})


IN_GATE = ("linear", "recursive_least_squares", "bp_lambda", "mean_teacher", "direct_feedback_alignment")


@pytest.fixture(params=helpers.gate(SAME_EVERYWHERE, *IN_GATE), scope="module")
def case(request):
    """(make_learner(axis_name), state, x, y), and the update of one device on its own."""
    estimator = METHODS[request.param]

    def make(axis_name=None):
        return helpers.make_learner(
            helpers.mlp_modules(), estimator, rate=0.1, est_rate=0.1, axis_name=axis_name
        )

    x, y = helpers.batch(size=8)
    state = helpers.noisy(make().init(jax.random.key(0), x, y))
    return make, state, x, y, jax.jit(make().update)(state, x, y, KEY)


def assert_same(actual, expected):
    (state, metrics), (expected_state, expected_metrics) = actual, expected
    chex.assert_trees_all_close(state, expected_state, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(metrics.boundaries, expected_metrics.boundaries, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics.loss, expected_metrics.loss, rtol=1e-5)


def test_jit_on_a_mesh(case):
    make, state, x, y, expected = case
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    x, y = (jax.device_put(a, NamedSharding(mesh, P("data"))) for a in (x, y))
    state = jax.device_put(state, NamedSharding(mesh, P()))
    assert_same(jax.jit(make().update)(state, x, y, KEY), expected)


def test_shard_map(case):
    make, state, x, y, expected = case
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data"), P("data"), P()), out_specs=(P(), P(), P()))
    def update(state, x, y, key):
        state, metrics = make("data").update(state, x, y, key)
        return state, metrics.loss, metrics.boundaries

    new, loss, boundaries = update(state, x, y, KEY)
    assert_same((new, expected[1]._replace(loss=loss, boundaries=boundaries)), expected)


def test_pmap(case):
    make, state, x, y, expected = case
    update = jax.pmap(make("data").update, axis_name="data", in_axes=(None, 0, 0, None))
    result = update(state, x.reshape(2, 4, 5), y.reshape(2, 4), KEY)
    for device in range(2):
        assert_same(jax.tree.map(lambda leaf, d=device: leaf[d], result), expected)


@pytest.mark.parametrize("name", ["linear", "recursive_least_squares"])
def test_weights_are_added_up_over_devices(name):
    """Those of one device may all be 0, and what is there no numbers."""
    x, y = helpers.batch(size=8)
    weight = jax.numpy.asarray([1.0, 0, 3, 2, 0, 0, 0, 0])
    x = jax.numpy.where(weight[:, None] == 0, jax.numpy.nan, x)
    learner = helpers.make_learner(helpers.mlp_modules(), METHODS[name], est_rate=0.1, axis_name="data")
    alone = helpers.make_learner(helpers.mlp_modules(), METHODS[name], est_rate=0.1)
    state = helpers.noisy(alone.init(jax.random.key(0), *helpers.batch(size=8)))
    expected = jax.jit(alone.update)(state, x, y, KEY, weight)
    update = jax.pmap(learner.update, axis_name="data", in_axes=(None, 0, 0, None, 0))
    result = update(state, x.reshape(2, 4, 5), y.reshape(2, 4), KEY, weight.reshape(2, 4))
    for device in range(2):
        assert_same(jax.tree.map(lambda leaf, d=device: leaf[d], result), expected)


def test_update_coins_fall_alike_on_all_devices():
    """Were they drawn per device, replicas would drift apart."""
    x, y = helpers.batch(size=8)
    learner = helpers.make_learner(
        helpers.mlp_modules(dropout=0.2), SYNTHETIC["linear"], update_probability=0.5, axis_name="data"
    )
    state = helpers.noisy(learner.init(jax.random.key(0), x, y))
    update = jax.pmap(learner.update, axis_name="data", in_axes=(None, 0, 0, None))
    for i in range(6):
        new, _ = update(state, x.reshape(2, 4, 5), y.reshape(2, 4), jax.random.key(i))
        for leaf in jax.tree.leaves(new):
            np.testing.assert_array_equal(leaf[0], leaf[1])


def test_batch_statistics_are_averaged_and_dropout_is_not_shared():
    x, y = helpers.batch(size=8)
    learner = helpers.make_learner(
        helpers.mlp_modules(norm="batch", dropout=0.5), SYNTHETIC["linear"], axis_name="data"
    )
    state = helpers.noisy(learner.init(jax.random.key(0), x, y))
    update = jax.pmap(learner.update, axis_name="data", in_axes=(None, 0, 0, None))
    new, _ = update(state, x.reshape(2, 4, 5), y.reshape(2, 4), KEY)
    mean = new.modules[0].state["batch_stats"]["BatchNorm_0"]["mean"]
    dense = state.modules[0].params["Dense_0"]
    expected = 0.1 * (x @ dense["kernel"] + dense["bias"][None]).mean(0)
    for device in range(2):
        np.testing.assert_allclose(mean[device], expected, rtol=1e-4, atol=1e-5)
    _, metrics = update(state, *(jax.numpy.stack([a[:4]] * 2) for a in (x, y)), KEY)
    assert bool((metrics.output[0] != metrics.output[1]).any())
