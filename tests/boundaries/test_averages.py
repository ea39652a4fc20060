"""Running averages among est_params, however the loss is scaled and its gradients are summed."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import decoupled
from decoupled import estimators
from decoupled.learning.examples import Examples
from decoupled.learning.module_update import Rules, fit
from decoupled.learning.state import EstimatorState
from tests import helpers

KEY = jax.random.key(0)
EXAMPLES, RATE = 8, 0.1
CONTEXT = estimators.one_hot(helpers.CLASSES)
METHODS = {
    "mean_teacher": estimators.mean_teacher(helpers.CLASSES, (5,), decay=0.9),
    "recursive_least_squares": estimators.recursive_least_squares(CONTEXT, decay=0.9),
}


# How the loss is summed -> what the gradients of a mean are multiplied with.
WAYS = {"mean": 1, "sum": EXAMPLES, "scaled": 64, "two microbatches": 1, "scan over time": 1}
WAYS |= {"sum over time": EXAMPLES, "vmap": 1, "pmap, averaged": 1, "shard_map, summed": 2}


def gradients(sg, way, est_params, h, y):
    """Of est_params below half the squared length of h, whose gradient by h is h."""

    def loss(est_params, h, y, **options):
        return 0.5 * jnp.square(decoupled.boundary(sg, est_params, h, y, **options)).sum()

    def of(scale, **options):
        return jax.grad(lambda p: scale * loss(p, h, y, **options))(est_params)

    halves = h.reshape(2, 4, -1), y.reshape(2, 4)
    half = jax.grad(lambda p, h, y: loss(p, h, y) / 4)
    if way == "mean":
        return of(1 / EXAMPLES)
    if way == "sum":
        return of(1, num_examples=1)
    if way == "scaled":
        return of(64 / EXAMPLES, num_examples=EXAMPLES / 64)
    if way == "two microbatches":
        each = [half(est_params, *both) for both in zip(*halves, strict=True)]
        return jax.tree.map(lambda a, b: (a + b) / 2, *each)
    if "over time" in way:
        count = EXAMPLES if way == "scan over time" else 1

        def over_time(est_params):
            def step(total, now):
                return total + loss(est_params, *now, num_examples=count), None

            return jax.lax.scan(step, 0.0, halves)[0] / count

        return jax.grad(over_time)(est_params)
    if way == "vmap":
        one = jax.grad(lambda p, h, y: loss(p, h, y, batch_axes=0))
        return jax.tree.map(lambda g: g.mean(0), jax.vmap(one, (None, 0, 0))(est_params, h, y))
    if way == "pmap, averaged":
        mapped = jax.pmap(lambda *a: jax.lax.pmean(half(*a), "d"), axis_name="d", in_axes=(None, 0, 0))
        return jax.tree.map(lambda g: g[0], mapped(est_params, *halves))
    # Gradients of what is alike on all devices are summed over them.
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    return jax.shard_map(half, mesh=mesh, in_specs=(P(), P("d"), P("d")), out_specs=P())(est_params, h, y)


@functools.cache
def chained(name):
    """est_params, and what a fit of the chain form makes of them."""
    sg = METHODS[name]
    h, y = helpers.batch(features=4)
    est_params = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1, sg.init(KEY, h, y))
    if name == "mean_teacher":  # away from its average
        est_params["teacher"] = jax.tree.map(lambda leaf: 1.5 * leaf + 0.3, est_params["teacher"])
    rules = Rules(decoupled.losses.softmax_cross_entropy, optax.sgd(0.0), optax.sgd(RATE))
    start = lambda: EstimatorState(est_params, rules.optimizer_of(sg).init(est_params))  # noqa: E731
    return est_params, jax.jit(lambda: fit(rules, sg, start(), h, Examples(y), h)[0].params)()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", METHODS)
def test_averages_are_those_of_the_chain_form(name, way):
    """With the rate of what is descended divided by the scale of the loss, nothing else differs."""
    sg = METHODS[name]
    h, y = helpers.batch(features=4)
    est_params, expected = chained(name)
    tx = sg.optimizer(optax.sgd(RATE / WAYS[way]))

    @jax.jit
    def after(est_params, h, y):
        gradient = gradients(sg, way, est_params, h, y)
        updates, _ = tx.update(gradient, tx.init(est_params), est_params)
        return optax.apply_updates(est_params, updates)

    actual = after(est_params, h, y)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)

    # And both are NumPy's.
    if name == "mean_teacher":
        expected = jax.tree.map(
            lambda a, t: 0.9 * a + 0.1 * t, est_params["average"], est_params["teacher"]
        )
        chex.assert_trees_all_close(actual["average"], expected, atol=1e-6)
    else:
        x = np.hstack([h, np.ones((EXAMPLES, 1)), np.eye(helpers.CLASSES)[np.asarray(y)]])
        expected = 0.9 * np.asarray(est_params["gram"]) + 0.1 * x.T @ x / EXAMPLES
        np.testing.assert_allclose(actual["gram"], expected, atol=1e-5)


def test_averages_of_a_summed_loss_stay_in_bounds():
    """60 steps of a batch of 256, after which they were at 2e8."""
    sg = METHODS["mean_teacher"]
    h, y = helpers.batch(size=256, features=4)
    est_params = sg.init(KEY, h, y)
    tx = sg.optimizer(optax.adam(1e-2))

    @jax.jit
    def step(est_params, opt_state):
        loss = lambda p: decoupled.boundary(sg, p, h, y, num_examples=1).sum()  # noqa: E731
        updates, opt_state = tx.update(jax.grad(loss)(est_params), opt_state, est_params)
        return optax.apply_updates(est_params, updates), opt_state

    opt_state, largest = tx.init(est_params), 0.0
    for _ in range(60):
        teacher = jax.tree.leaves(est_params["teacher"])
        largest = max(largest, *(np.abs(np.asarray(leaf)).max() for leaf in teacher))
        est_params, opt_state = step(est_params, opt_state)
    # An average is not beyond what it averages.
    assert all(
        np.abs(np.asarray(leaf)).max() <= largest + 1e-6 for leaf in jax.tree.leaves(est_params["average"])
    )


@pytest.mark.parametrize("name", ["mean_teacher", "recursive_least_squares"])
def test_where_no_example_comes_averages_stay(name):
    sg = METHODS[name]
    est_params, _ = chained(name)
    tx = sg.optimizer(optax.sgd(1.0))
    nothing = jax.tree.map(np.zeros_like, est_params)
    updates, _ = jax.jit(lambda: tx.update(nothing, tx.init(est_params), est_params))()
    averages = {"mean_teacher": ["average"], "recursive_least_squares": ["gram", "cross"]}[name]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves([updates[n] for n in averages]))


@pytest.mark.parametrize("name", ["mean_teacher", "recursive_least_squares"])
def test_averages_of_layers_that_are_stacked(name):
    """One optimizer for parameters that a scan over layers stacks: as one for each."""
    sg = METHODS[name]
    h, y = helpers.batch(features=4)
    tx = sg.optimizer(optax.sgd(0.1))
    each = [jax.tree.map(lambda w, i=i: w + 0.1 * i, chained(name)[0]) for i in range(2)]
    stack = lambda trees: jax.tree.map(lambda *w: np.stack(w), *trees)  # noqa: E731

    @jax.jit
    def gradient(p, n):
        return jax.grad(lambda p: jnp.square(decoupled.boundary(sg, p, h, y, num_examples=n)).sum())(p)

    @jax.jit
    def update(gradient, params):
        return tx.update(gradient, tx.init(params), params)[0]

    gradients = [gradient(p, n) for n, p in enumerate(each, start=1)]
    expected = stack([update(g, p) for g, p in zip(gradients, each, strict=True)])
    actual = update(stack(gradients), stack(each))
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)
