"""Baselines against `jax.grad` of the same network, layer after layer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import decoupled
from benchmarks import baselines, gpipe
from tests.helpers import CLASSES, batch

KEY = jax.random.key(0)


def network(depth=4, norm="none"):
    lower, block, upper = decoupled.models.mlp(2, 6, CLASSES, norm=norm)
    return baselines.Network(lower, block, depth, upper)


def oracle(layers, params, x, y):
    def mean_loss(params):
        h = x
        for layer, p in zip(layers, params, strict=True):
            h, _ = layer.apply(p, {}, h, KEY, True)
        log_probabilities = jax.nn.log_softmax(h)
        return -log_probabilities[jnp.arange(len(y)), y].mean()

    return jax.jit(jax.value_and_grad(mean_loss))(params)


@pytest.mark.parametrize("num_microbatches", [1, 2, 8])
def test_gpipe_gradients_are_those_of_the_sequential_network(num_microbatches):
    x, y = batch(size=8)
    mesh = jax.make_mesh((2,), (gpipe.AXIS,), axis_types=(AxisType.Auto,))
    init, update = gpipe.gpipe(network(), mesh, num_microbatches, optax.sgd(1.0))
    before = gpipe.place(mesh, init(KEY, x, y))
    after, loss = jax.jit(update)(before, x, y, KEY)
    layered = [gpipe.from_stages(jax.device_get(state[0]), 2) for state in (before, after)]
    moved = jax.tree.map(lambda b, a: b - a, *layered)
    expected_loss, gradients = oracle(network().layers, layered[0], x, y)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m, g, atol=1e-5), moved, gradients)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


def test_gpipe_leaves_each_stage_only_its_own_parameters():
    x, y = batch(size=8)
    mesh = jax.make_mesh((2,), (gpipe.AXIS,), axis_types=(AxisType.Auto,))
    init, update = gpipe.gpipe(network(), mesh, 2, optax.adam(1e-3))
    state = gpipe.place(mesh, init(KEY, x, y))
    for _ in range(2):
        state, _ = jax.jit(update, donate_argnums=0)(state, x, y, KEY)
    for leaf in jax.tree.leaves(state[0]):
        assert {shard.data.shape for shard in leaf.addressable_shards} == {(1, *leaf.shape[1:])}
    for part, unused in (("lower", 1), ("upper", 0)):
        assert all(not np.any(leaf[unused]) for leaf in jax.tree.leaves(state[0][part]))


@pytest.mark.parametrize("remat", [False, True])
def test_scanned_backprop_is_plain_backprop(remat):
    x, y = batch(size=8)
    net = network(norm="batch")
    init, update = baselines.scanned_backprop(net, remat)
    params, state, opt_state = init(KEY, x, y)

    def unrolled(parts):
        below, blocks, above = parts
        return below, *(jax.tree.map(lambda leaf, i=i: leaf[i], blocks) for i in range(net.depth)), above

    plain_init, plain_update = baselines.plain_backprop(net.layers)
    start = unrolled(params), unrolled(state), baselines.adam().init(unrolled(params))
    assert jax.tree.structure(plain_init(KEY, x, y)) == jax.tree.structure(start)
    (expected, expected_state, _), expected_loss = jax.jit(plain_update)(start, x, y, KEY)
    (params, state, _), loss = jax.jit(update)((params, state, opt_state), x, y, KEY)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for got, want in ((params, expected), (state, expected_state)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), unrolled(got), want)
