"""Optimizers that notice numbers that are not finite, against hand-made gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from decoupled import Stack, estimators, make_learner
from decoupled.learning.watch import Watch, read_watches, watched, watched_estimator
from decoupled.losses import softmax_cross_entropy
from tests import helpers

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
GOOD = jax.tree.map(jnp.ones_like, PARAMS)


def bad(value, where="b"):
    return {**GOOD, where: GOOD[where].at[..., 2].set(value)}


def descend(optimizer, gradients):
    params, state = PARAMS, optimizer.init(PARAMS)
    for gradient in gradients:
        updates, state = jax.jit(optimizer.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_finite_gradients_pass_unchanged():
    adam = optax.adam(0.1)
    params, state = descend(watched(adam), [GOOD, GOOD])
    chex.assert_trees_all_equal((params, state.inner), descend(adam, [GOOD, GOOD]))
    assert (int(state.updates), int(state.not_finite), int(state.first)) == (2, 0, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_is_remembered_and_all_are_counted(value):
    _, state = descend(watched(optax.sgd(0.1)), [GOOD, bad(value), GOOD, bad(value)])
    assert (int(state.updates), int(state.not_finite), int(state.first)) == (4, 2, 2)


def test_skipped_updates_change_nothing():
    adam = optax.adam(0.1)
    params, state = descend(watched(adam, skip=True), [GOOD, bad(np.nan, "w"), bad(np.inf), GOOD])
    chex.assert_trees_all_equal((params, state.inner), descend(adam, [GOOD, GOOD]))
    assert (int(state.not_finite), int(state.first)) == (2, 2)


def test_opposite_infinities_do_not_cancel():
    gradient = {"w": GOOD["w"], "b": jnp.array([jnp.inf, -jnp.inf, 0])}
    _, state = descend(watched(optax.sgd(0.1)), [gradient])
    assert int(state.not_finite) == 1


def test_matrices_are_looked_at_where_there_is_no_vector():
    optimizer = watched(optax.sgd(0.1))
    params = {"w": PARAMS["w"]}
    _, state = optimizer.update({"w": bad(np.nan, "w")["w"]}, optimizer.init(params), params)
    assert int(state.not_finite) == 1


def chain_of(links):
    sg = watched_estimator(estimators.linear(estimators.one_hot(helpers.CLASSES)))
    adam = optax.adam(1e-3)
    return make_learner(links, [sg] * (len(links) - 1), softmax_cross_entropy, watched(adam), adam)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_chain_is_read_by_name(stacked):
    first, block, *_, last = helpers.mlp_modules(depth=4)
    blocks = [block._replace(name=f"block_{i}") for i in range(3)]
    links = [first, *blocks, last]
    if stacked:
        links = [first, Stack(block, tuple(b.name for b in blocks)), last]
    learner = chain_of(links)
    x, y = helpers.batch()
    state = learner.init(jax.random.key(0), x, y)
    state, _ = jax.jit(learner.update)(state, x, y, jax.random.key(1))

    def spoil(params):
        if stacked:
            return jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), params)
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params)

    at = 1 if stacked else 2
    spoilt = state.modules[at]._replace(params=spoil(state.modules[at].params))
    modules = [spoilt if i == at else module for i, module in enumerate(state.modules)]
    state, _ = jax.jit(learner.update)(state._replace(modules=tuple(modules)), x, y, jax.random.key(1))
    watches = read_watches(learner.chain, state.modules, state.estimators)
    assert [watch.updates for watch in watches] == [2] * len(watches)
    names = {watch.name for watch in watches if watch.first}
    assert len(watches) == 5 + 4
    # No ReLU passes back what is not a number, so that the blocks' biases have a gradient of zero; but the
    # output is spoilt, and all the estimators that blocks give a target to.
    assert names == {
        f"the gradient of {last.name}",
        *(f"the fit of the estimator after block_{i}" for i in range(3)),
    }
    assert {watch.first for watch in watches if watch.first} == {2}


def test_what_is_not_watched_is_left_out():
    learner = helpers.make_learner(helpers.mlp_modules(), estimators.backprop())
    x, y = helpers.batch()
    state = learner.init(jax.random.key(0), x, y)
    assert read_watches(learner.chain, state.modules, state.estimators) == []


def test_a_solved_part_is_watched_too():
    sg = watched_estimator(estimators.recursive_least_squares(estimators.one_hot(helpers.CLASSES)))
    learner = helpers.make_learner(helpers.mlp_modules(depth=1), sg)
    x, y = helpers.batch()
    state = learner.init(jax.random.key(0), x, y)
    state, _ = jax.jit(learner.update)(state, x, y, jax.random.key(1))
    (watch,) = read_watches(learner.chain, state.modules, state.estimators)
    assert watch == Watch(f"the fit of the estimator after {learner.modules[0].name}", 1, 0, 0)
