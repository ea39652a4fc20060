"""Activations against modules applied one by one."""

import jax
import numpy as np

import decoupled
from decoupled import estimators
from decoupled.analysis import activations
from tests import helpers


def test_activations_of_stacked_modules_in_evaluation_mode():
    x, y = helpers.batch()
    modules = helpers.mlp_modules(depth=3, norm="batch", dropout=0.5)
    links = decoupled.stack_equal(modules)
    assert isinstance(links[1], decoupled.Stack)
    spec = estimators.linear(estimators.one_hot(helpers.CLASSES))
    learner = helpers.make_learner(links, spec)
    state = learner.init(jax.random.key(0), x, y)
    # Batch statistics other than those of the start, which change nothing.
    learnt = [m._replace(state=jax.tree.map(lambda leaf: leaf + 0.5, m.state)) for m in state.modules]
    state = state._replace(modules=tuple(learnt))
    found = jax.jit(lambda s: activations(learner, s, x))(state)
    assert len(found) == 4
    h, flat = x, learner.unstack(state)
    for module, own, actual in zip(modules, flat.modules, found, strict=True):
        h, _ = module.apply(own.params, own.state, h, jax.random.key(5), False)
        np.testing.assert_allclose(actual, h, atol=1e-6)
    np.testing.assert_allclose(found[-1], learner.predict(state, x), atol=1e-6)
