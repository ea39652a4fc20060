"""The gradient of a network in the place of the layers above: exact where it is these, fitted otherwise."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoupled
from decoupled import estimators
from decoupled.analysis import boundary_gradients
from tests import helpers, padded_tokens

KEY = jax.random.key(3)


def test_fit_is_that_of_the_form_written_out():
    """Of depth 0: (softmax(hW + b) - y)W', squared and differentiated without a second backward pass."""
    x, y = helpers.batch()
    learner = helpers.make_learner(helpers.mlp_modules(depth=1), estimators.surrogate(0))
    state = learner.init(KEY, x, y)
    spec, params = learner.estimators[0], helpers.noisy(state).estimators[0].params
    rng = np.random.default_rng(0)
    h, target = (jnp.asarray(rng.normal(size=(8, 4)), jnp.float32) for _ in range(2))
    one_hot = jax.nn.one_hot(y, helpers.CLASSES)

    def form(params, h):
        (layer,) = params
        kernel, bias = layer["Dense_0"]["kernel"], layer["Dense_0"]["bias"]
        return (jax.nn.softmax(h @ kernel + bias[None]) - one_hot) @ kernel.T

    for weight in (None, jnp.asarray([1, 2, 0, 1, 1, 0, 1, 3], jnp.float32)):
        share = jnp.full(8, 1 / 8) if weight is None else weight / weight.sum()

        def loss(params, share=share):
            return (jnp.square(form(params, h) - target).sum(1) * share).sum()

        given = () if weight is None else (weight,)
        found = spec.training_gradient(params, h, y, target, *given)
        chex.assert_trees_all_close(found, jax.value_and_grad(loss)(params), rtol=1e-4, atol=1e-6)
        estimate = spec.estimate(params, h, y, None, *given)
        counted = np.asarray(share) > 0
        np.testing.assert_allclose(estimate[counted], form(params, h)[counted], rtol=1e-4, atol=1e-6)


def test_with_the_parameters_above_it_is_the_gradient_itself():
    x, y = helpers.batch()
    learner = helpers.make_learner(helpers.mlp_modules(depth=3), estimators.surrogate(9, 9))
    state = learner.init(KEY, x, y)
    above = [tuple(m.params for m in state.modules[k + 1 :]) for k in range(3)]
    exact = tuple(e._replace(params=p) for e, p in zip(state.estimators, above, strict=True))
    state = state._replace(estimators=exact)
    true, estimated = boundary_gradients(learner, state, x, y, KEY)
    chex.assert_trees_all_close(estimated, true, rtol=1e-4, atol=1e-6)
    _, metrics = jax.jit(learner.update)(state, x, y, KEY)
    assert all(b.loss < 1e-8 * b.target_power for b in metrics.boundaries)


def test_it_waits_for_nothing_and_descends_no_loss_of_labels():
    x, y = helpers.batch()
    learner = helpers.make_learner(helpers.mlp_modules(depth=2), estimators.surrogate(), 0.0, 0.5)
    spec = learner.estimators[0]
    assert spec.reads is decoupled.Reads.NOTHING
    assert not spec.own_loss
    # Where the targets are zero, the SG loss leads to estimates of zero, and not to the labels.
    state = learner.init(KEY, x, y)
    state = state._replace(
        modules=tuple(m._replace(params=jax.tree.map(jnp.zeros_like, m.params)) for m in state.modules)
    )
    first = state.estimators[-1].params
    new, metrics = jax.jit(learner.update)(state, x, y, KEY)
    assert metrics.boundaries[-1].target_power == 0
    assert metrics.boundaries[-1].loss > 0
    h = jnp.zeros((8, 4))
    lengths = [
        np.square(learner.estimators[-1].estimate(p, h, y)).sum()
        for p in (first, new.estimators[-1].params)
    ]
    assert lengths[1] < lengths[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokens", "examples"])
def test_what_does_not_count_changes_nothing(kind):
    if kind == "tokens":
        learner = helpers.make_learner(
            padded_tokens.MODULES, estimators.surrogate(), 0.5, 0.5, batch_axes=2
        )
        x, y, weight = padded_tokens.tokens(0.0)
        spoiled = padded_tokens.tokens(np.nan)[0]
    else:
        learner = helpers.make_learner(helpers.mlp_modules(norm="batch"), estimators.surrogate(), 0.5, 0.5)
        x, y = helpers.batch()
        weight = jnp.asarray([1, 1, 1, 0, 2, 1, 1, 1], jnp.float32)
        spoiled = x.at[3].set(jnp.nan)
    update, state = jax.jit(learner.update), jax.jit(learner.init)(KEY, x, y)
    new = update(state, x, y, KEY, weight)[0]
    assert jax.tree.all(jax.tree.map(lambda leaf: bool(jnp.isfinite(leaf).all()), new))
    chex.assert_trees_all_close(update(state, spoiled, y, KEY, weight)[0], new, rtol=1e-5, atol=1e-6)
    assert not jax.tree.all(jax.tree.map(np.array_equal, new.estimators, state.estimators))


def test_mistakes_are_told_by_its_name():
    with pytest.raises(decoupled.UsageError, match="surrogate: depth is -1, but must be a number of 0"):
        estimators.surrogate(-1)
    with pytest.raises(decoupled.UsageError, match="surrogate needs what only a learner can give it"):
        decoupled.boundary(estimators.surrogate(), (), *helpers.batch())
