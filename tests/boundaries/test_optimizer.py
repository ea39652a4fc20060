"""`split_optimizer` against optimizers applied by hand to each part."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import decoupled
from decoupled import Boundary, estimators
from tests import helpers

KEY = jax.random.key(0)
CONTEXT = estimators.one_hot(helpers.CLASSES)


class Network(nn.Module):
    estimator: decoupled.Estimator

    @nn.compact
    def __call__(self, x, y=None):
        h = Boundary(self.estimator, name="first")(nn.Dense(4)(x), y)
        return Boundary(self.estimator, name="second")(nn.Dense(3)(h), y)


def problem(estimator):
    x, y = helpers.batch()
    params = Network(estimator).init(KEY, x, y)["params"]
    rng = np.random.default_rng(0)
    gradient = jax.tree.map(lambda w: jnp.asarray(rng.normal(size=w.shape), jnp.float32), params)
    return params, gradient


def parts(tree):
    layers = {name: tree[name] for name in ("Dense_0", "Dense_1")}
    return layers, {name: tree[name]["est_params"] for name in ("first", "second")}


@pytest.mark.parametrize(
    "each",
    [optax.adam(0.1), {"first": optax.adam(0.1), "second": optax.sgd(0.3)}],
    ids=["one for all", "by name"],
)
def test_every_part_has_its_own_optimizer_and_state(each):
    params, gradient = problem(estimators.mlp((3,), CONTEXT))
    layers_tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.01))
    tx = decoupled.split_optimizer(layers_tx, each)
    state, actual = tx.init(params), params
    for _ in range(3):
        updates, state = jax.jit(tx.update)(gradient, state, actual)
        actual = optax.apply_updates(actual, updates)
    by_name = each if isinstance(each, dict) else dict.fromkeys(("first", "second"), each)
    layers_gradient, est_gradients = parts(gradient)
    layers, est_params = parts(params)

    def by_hand(tx, gradient, params):
        opt_state = tx.init(params)
        for _ in range(3):
            updates, opt_state = tx.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
        return params

    chex.assert_trees_all_close(parts(actual)[0], by_hand(layers_tx, layers_gradient, layers), atol=1e-6)
    for name, own in by_name.items():
        expected = by_hand(own, est_gradients[name], est_params[name])
        chex.assert_trees_all_close(parts(actual)[1][name], expected, atol=1e-6)
    assert jax.tree.structure(actual) == jax.tree.structure(params)


def test_an_estimator_that_solves_can_bring_its_optimizer():
    x, y = helpers.batch(size=64)
    sg = estimators.recursive_least_squares(CONTEXT)
    params, _ = problem(sg)
    tx = decoupled.split_optimizer(optax.set_to_zero(), sg.optimizer(optax.identity()))

    def sg_error(params):
        """With the layers at rest, how far the second boundary's estimate is from its target."""
        h = x @ params["Dense_0"]["kernel"] @ params["Dense_1"]["kernel"]
        return estimators.sg_loss(sg.estimate(params["second"]["est_params"], h, y, None), h)

    @jax.jit
    def step(params, state):
        gradient = jax.grad(
            lambda p: 0.5 * jnp.square(Network(sg).apply({"params": p}, x, y)).sum(1).mean()
        )
        updates, state = tx.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    before, state = params, tx.init(params)
    for _ in range(3):
        params, state = step(params, state)
    chex.assert_trees_all_equal(parts(params)[0], parts(before)[0])
    assert sg_error(params) < 1e-4 * sg_error(before)  # the target of h'h/2 is h, which is linear in h


def test_least_squares_left_to_another_optimizer_still_learns():
    """No method may silently train nothing: without its solver it descends."""
    x, y = helpers.batch(size=64)
    sg = estimators.recursive_least_squares(CONTEXT)
    params, _ = problem(sg)
    adam = optax.adam(0.05)
    loss = jax.grad(lambda p: 0.5 * jnp.square(Network(sg).apply({"params": p}, x, y)).sum(1).mean())

    @jax.jit
    def step(params, state):
        updates, state = adam.update(loss(params), state, params)
        return optax.apply_updates(params, updates), state

    state = adam.init(params)
    before = params["Dense_0"]["kernel"]
    for _ in range(20):
        params, state = step(params, state)
    assert np.any(params["second"]["est_params"]["K"])
    assert np.any(params["Dense_0"]["kernel"] != before)


def test_boundaries_and_optimizers_must_match_by_name():
    params, _ = problem(estimators.linear(CONTEXT))
    tx = decoupled.split_optimizer(optax.sgd(1.0), {"first": optax.sgd(1.0), "thrid": optax.sgd(1.0)})
    with pytest.raises(decoupled.UsageError, match=r"\['first', 'thrid'\], but .*\['first', 'second'\]"):
        tx.init(params)


def test_feedback_weights_that_are_passed_along_stay():
    params = {"params": {"w": jnp.ones(3)}, "feedback": {"cut": {"est_params": {"B": jnp.ones(3)}}}}
    tx = decoupled.split_optimizer(optax.adamw(0.1), optax.adamw(0.1))
    updates, _ = tx.update(params, tx.init(params), params)
    assert not np.any(updates["feedback"]["cut"]["est_params"]["B"])
    assert np.all(updates["params"]["w"])


def test_a_model_without_trained_estimators_is_all_layers():
    params = {"w": jnp.ones(3)}
    tx = decoupled.split_optimizer(optax.sgd(1.0), optax.set_to_zero())
    updates, _ = tx.update({"w": jnp.ones(3)}, tx.init(params))
    np.testing.assert_array_equal(updates["w"], -jnp.ones(3))


def test_est_params_may_be_a_single_array():
    params = {"layer": jnp.ones(2), "mine": {"est_params": jnp.ones(3)}}
    tx = decoupled.split_optimizer(optax.sgd(1.0), optax.sgd(0.5))
    updates, _ = tx.update(params, tx.init(params), params)
    chex.assert_trees_all_close(
        updates, {"layer": -jnp.ones(2), "mine": {"est_params": -0.5 * jnp.ones(3)}}
    )
