"""Optimizers that ask for the loss: against optax by hand, which is told the loss of the step before."""

import chex
import jax
import optax
import pytest

import decoupled
from decoupled import estimators, losses
from decoupled.learning.dispatch import dispatched
from decoupled.learning.loss_value import ValueState
from decoupled.learning.stack import stack_equal
from decoupled.learning.watch import watched_estimator
from tests import helpers

KEY = jax.random.key(2)
SGD = optax.sgd(0.1)


def on_plateau(rate=0.5):
    return optax.chain(optax.sgd(rate), optax.contrib.reduce_on_plateau(factor=0.5, patience=1, cooldown=1))


def learner_of(optimizer, estimator_optimizer=SGD, links=None, estimator=None, **options):
    links = links or helpers.mlp_modules()
    boundaries = [estimator or estimators.backprop()] * (len(links) - 1)
    loss = losses.softmax_cross_entropy
    return decoupled.make_learner(links, boundaries, loss, optimizer, estimator_optimizer, **options)


def scales(state):
    """What each module's rate has been multiplied with."""
    nodes = jax.tree.leaves(state.modules, is_leaf=lambda node: isinstance(node, ValueState))
    return [node.inner[1].scale for node in nodes if isinstance(node, ValueState)]


@pytest.mark.parametrize("way", helpers.gate(["fused", "microbatches", "dispatched"], "fused"))
def test_modules_are_told_the_loss_of_the_step_before(way):
    """At so high a rate that it goes up and down, so that the rate is lowered."""
    x, y = helpers.batch()
    options = {"microbatches": 2} if way == "microbatches" else {}
    learner = learner_of(on_plateau(20.0), **options)
    state = learner.init(KEY, x, y)
    update = dispatched(learner) if way == "dispatched" else jax.jit(learner.update)
    by_hand, loss = [on_plateau(20.0).init(m.params) for m in state.modules], float("inf")
    params = jax.tree.map(lambda leaf: leaf.copy(), [m.params for m in state.modules])
    for _ in range(6):
        moved = tuple(m._replace(params=p) for m, p in zip(state.modules, params, strict=True))
        held = state._replace(modules=moved)
        gradients = helpers.mean_loss_gradients(learner.modules, held, x, y, KEY)
        for i, gradient in enumerate(gradients):
            tx = on_plateau(20.0)
            updates, by_hand[i] = tx.update(gradient, by_hand[i], params[i], value=loss)
            params[i] = optax.apply_updates(params[i], updates)
        state, metrics = update(state, x, y, KEY)
        loss = metrics.loss
    chex.assert_trees_all_close([m.params for m in state.modules], params, rtol=1e-3, atol=1e-3)
    assert all(scale < 1 for scale in scales(state))


def test_blocks_of_a_stack_and_estimators_are_told_too():
    x, y = helpers.batch()
    estimator = helpers.every_method()["linear"]
    links = stack_equal(helpers.mlp_modules(4))
    learner = learner_of(on_plateau(), on_plateau(), links, estimator)
    state = learner.init(KEY, x, y)
    state, metrics = jax.jit(learner.update)(state, x, y, KEY)
    told = [module.opt_state.value for module in state.modules]
    chex.assert_trees_all_close(told, [metrics.loss + 0 * value for value in told])
    for estimator, measured in zip(state.estimators, metrics.boundaries, strict=True):
        chex.assert_trees_all_close(estimator.opt_state.value, measured.loss)


def test_others_keep_the_state_they_have():
    x, y = helpers.batch()
    module = learner_of(optax.adam(0.1)).init(KEY, x, y).modules[0]
    chex.assert_trees_all_equal_structs(module.opt_state, optax.adam(0.1).init(module.params))


def test_where_no_loss_is_known_it_is_refused():
    mesh = jax.make_mesh((1, 1), ("data", "stage"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with pytest.raises(decoupled.UsageError, match="asks for the value of the loss"):
        decoupled.make_pipeline(learner_of(on_plateau()), mesh)
    linear = helpers.every_method()["linear"]
    with pytest.raises(decoupled.UsageError, match="asks for the value of the loss"):
        decoupled.make_pipeline(learner_of(SGD, on_plateau(), estimator=linear), mesh)
    watched = watched_estimator(linear)  # whose optimizer is made of that for all
    with pytest.raises(decoupled.UsageError, match="asks for the value of the loss"):
        decoupled.make_pipeline(learner_of(SGD, on_plateau(), estimator=watched), mesh)
