"""Linear layers against NumPy, and the SG with line search against least squares."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from decoupled import estimators, make_learner
from decoupled.losses import squared_error
from experiments.linear_networks import (
    layers_of,
    line_searched,
    linear_module,
    near_orthogonal,
    whole_map,
    with_layers,
)

KEY = jax.random.key(0)


def test_one_start_for_networks_cut_differently():
    x, y = jnp.ones((6, 5)), jnp.zeros((6, 2))
    layers = near_orthogonal(KEY, [5, 4, 3, 2])
    layers = tuple({**layer, "b": layer["b"] + k + 1} for k, layer in enumerate(layers))
    expected = np.ones((6, 5))
    for layer in layers:
        W = np.asarray(layer["W"])
        np.testing.assert_allclose(W.T @ W, np.eye(W.shape[1]), atol=1e-5)
        expected = expected @ W + np.asarray(layer["b"])
    for cut in ([[5, 4, 3, 2]], [[5, 4], [4, 3, 2]], [[5, 4], [4, 3], [3, 2]]):
        modules = [linear_module(widths, "part") for widths in cut]
        boundaries = [estimators.linear()] * (len(modules) - 1)
        learner = make_learner(modules, boundaries, squared_error, optax.sgd(0.1), optax.sgd(0.1))
        state = with_layers(learner, learner.init(jax.random.key(1), x, y), layers)
        np.testing.assert_allclose(learner.predict(state, x), expected, atol=1e-5)
        whole = whole_map(layers_of(state))
        np.testing.assert_allclose(x @ whole["W"] + whole["b"][None, :], expected, atol=1e-5)


def test_line_search_reaches_least_squares(x64):
    rng = np.random.default_rng(0)
    h, y, target = (jnp.asarray(rng.normal(size=(30, n))) for n in (3, 2, 3))
    spec = line_searched(estimators.linear(estimators.as_given))
    assert spec.training_gradient is not None

    def step(est_params, _):
        loss, change = spec.training_gradient(est_params, h, y, target)
        tx = spec.optimizer(optax.identity())
        updates, _ = tx.update(change, tx.init(est_params))
        return optax.apply_updates(est_params, updates), loss

    _, losses = jax.lax.scan(step, spec.init(KEY, h, y), length=200)
    inputs = np.concatenate([h, y, np.ones((30, 1))], axis=1)
    residual = inputs @ np.linalg.lstsq(inputs, np.asarray(target), rcond=None)[0] - target
    assert np.all(np.diff(losses) <= 1e-12)
    assert losses[-1] == pytest.approx(float((residual**2).sum()) / 30)
