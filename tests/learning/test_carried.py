"""What one step hands to the next, and what starts apart: mistakes that leave one step's numbers right."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

import decoupled
from decoupled import estimators, losses
from tests import helpers

KEY = jax.random.key(0)


def test_momentum_of_modules_and_estimators_is_carried():
    """SGD with momentum, twice on one gradient: the second step is 1.9 times the first."""
    x, y = helpers.batch()
    sgd = optax.sgd(1e-3, momentum=0.9)
    spec = estimators.linear(estimators.one_hot(helpers.CLASSES))
    learner = decoupled.make_learner(
        helpers.mlp_modules(depth=1), [spec], losses.softmax_cross_entropy, sgd, sgd
    )
    first = helpers.noisy(learner.init(KEY, x, y))
    update = jax.jit(learner.update)
    second, _ = update(first, x, y, KEY)
    # Gradients are those of the first step again, but the optimizers have gone on.
    again = jax.tree.map(
        lambda part, old: part._replace(params=old.params),
        *((*state.modules, *state.estimators) for state in (second, first)),
        is_leaf=lambda part: hasattr(part, "params"),
    )
    count = len(first.modules)
    third, _ = update(first._replace(modules=again[:count], estimators=again[count:]), x, y, KEY)
    for before, once, twice in zip(
        (*first.modules, *first.estimators),
        (*second.modules, *second.estimators),
        (*third.modules, *third.estimators),
        strict=True,
    ):
        steps = [jax.tree.map(jnp.subtract, after.params, before.params) for after in (once, twice)]
        expected = jax.tree.map(lambda step: 1.9 * step, steps[0])
        chex.assert_trees_all_close(steps[1], expected, rtol=1e-2, atol=1e-6)
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(steps[0])) > 1e-5


def test_batch_statistics_are_carried():
    """Flax's own running average, written out: after n equal batches (1 - 0.9^n) of their mean."""
    x, y = helpers.batch()
    learner = helpers.make_learner(
        helpers.mlp_modules(depth=1, norm="batch"), estimators.backprop(), rate=0.0
    )
    state = learner.init(KEY, x, y)
    update = jax.jit(learner.update)
    for _ in range(2):
        state, _ = update(state, x, y, KEY)
    dense = state.modules[0].params["Dense_0"]
    mean = np.asarray(x @ dense["kernel"] + dense["bias"][None]).mean(0)
    carried = state.modules[0].state["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(carried, (1 - 0.9**2) * mean, rtol=1e-4, atol=1e-6)


def test_modules_and_fixed_matrices_are_drawn_apart():
    x, y = helpers.batch()
    equal = helpers.mlp_modules(depth=3)
    learner = helpers.make_learner(equal, estimators.direct_feedback_alignment(helpers.CLASSES))
    state = learner.init(KEY, x, y)
    kernels = [m.params["Dense_0"]["kernel"] for m in state.modules[1:3]]
    matrices = [e.params["B"] for e in state.estimators]
    for one, other in (kernels, matrices[:2], matrices[1:]):
        assert one.shape == other.shape
        assert bool((one != other).all())


def test_an_output_error_is_a_signal_and_not_a_function():
    output, y = jax.random.normal(KEY, (4, 3)), jnp.zeros((4, 3))
    through = jax.grad(lambda out: losses.output_error(losses.squared_error, out, y)[1].sum())(output)
    np.testing.assert_array_equal(through, np.zeros((4, 3)))


def test_momentum_is_carried_by_a_split_optimizer():
    params = {"Dense_0": {"kernel": jnp.zeros(2)}, "Boundary_0": {"est_params": {"A": jnp.zeros(3)}}}
    gradient = jax.tree.map(jnp.ones_like, params)
    sgd = optax.sgd(1.0, momentum=0.9)
    tx = decoupled.split_optimizer(sgd, sgd)
    first, state = tx.update(gradient, tx.init(params), params)
    second, _ = tx.update(gradient, state, params)
    chex.assert_trees_all_close(first, jax.tree.map(jnp.negative, gradient))
    chex.assert_trees_all_close(second, jax.tree.map(lambda g: -1.9 * g, gradient))
