"""Synthetic gradients with normalisation inside: by hand; what weights and other examples are to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoupled
from decoupled import estimators
from tests import helpers

KEY = jax.random.key(2)
CONTEXT = estimators.one_hot(helpers.CLASSES)


def moved(tree):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda w: w + jnp.asarray(rng.normal(size=w.shape), w.dtype), tree)


def test_an_mlp_by_hand():
    h, y = helpers.batch()
    for norm, name, axis in (("batch", "_BatchNorm_0", 0), ("layer", "LayerNorm_0", 1)):
        estimator = estimators.mlp((6,), CONTEXT, norm)
        params = estimator.init(KEY, h, y)
        assert not np.any(estimator.estimate(params, h, y))
        params = jax.device_get(moved(params))
        joined = np.concatenate([h, np.eye(helpers.CLASSES)[np.asarray(y)]], axis=1)
        hidden = joined @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
        eps = {"_BatchNorm_0": 1e-5, "LayerNorm_0": 1e-6}[name]
        hidden = (hidden - hidden.mean(axis, keepdims=True)) / np.sqrt(
            hidden.var(axis, keepdims=True) + eps
        )
        hidden = np.maximum(hidden * params[name]["scale"] + params[name]["bias"], 0)
        expected = hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
        np.testing.assert_allclose(estimator.estimate(params, h, y), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", helpers.gate(["mlp", "convolutional"], "mlp"))
def test_a_weight_is_how_often_an_example_is_there(kind):
    rng = np.random.default_rng(0)
    shape = (4, 3, 3, 2) if kind == "convolutional" else (4, 5)
    h, target = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    estimator = (
        estimators.convolutional((3,), 3, CONTEXT, "batch")
        if kind == "convolutional"
        else estimators.mlp((6,), CONTEXT, "batch")
    )
    y = jnp.asarray([0, 1, 2, 1])
    params = moved(estimator.init(KEY, h, y))
    rows, weight = np.array([0, 1, 1, 3]), jnp.asarray([1.0, 2.0, 0.0, 1.0])
    loss, gradient = estimator.training_gradient(params, h[rows], y[rows], target[rows])
    spoiled = h.at[2].set(jnp.nan)
    found = estimator.training_gradient(params, spoiled, y, target, weight)
    np.testing.assert_allclose(found[0], loss, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found[1], gradient)
    estimate = estimator.estimate(params, spoiled, y, None, weight)
    expected = estimator.estimate(params, h[rows], y[rows])
    np.testing.assert_allclose(
        estimate[np.array([0, 1, 3])], expected[np.array([0, 1, 3])], rtol=1e-3, atol=1e-4
    )


def test_a_learner_gives_weights_to_what_sees_the_whole_batch():
    x, y = helpers.batch()
    learner = helpers.make_learner(helpers.mlp_modules(), estimators.mlp((6,), CONTEXT, "batch"))
    state = helpers.noisy(learner.init(KEY, x, y))
    padded = jnp.concatenate([x, jnp.full_like(x[:2], jnp.nan)]), jnp.concatenate([y, y[:2]])
    weight = jnp.asarray([1.0] * 8 + [0.0] * 2)
    expected, _ = jax.jit(learner.update)(state, x, y, KEY)
    new, _ = jax.jit(learner.update)(state, *padded, KEY, weight)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), new.modules, expected.modules
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        new.estimators,
        expected.estimators,
    )


def test_a_norm_that_is_none_is_refused():
    for make in (estimators.mlp, estimators.convolutional):
        with pytest.raises(decoupled.UsageError, match="norm is 'group', but must be one of none, batch"):
            make(norm="group")
