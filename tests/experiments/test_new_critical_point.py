"""The conditions of a critical point, of a network small enough to write them out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from decoupled import estimators
from decoupled.learner import make_learner
from decoupled.losses import squared_error
from decoupled.modules import from_functions
from experiments.new_critical_point import conditions


def scale(by):
    return from_functions(lambda key, h: {"w": jnp.full((1, 1), by)}, lambda p, h: h @ p["w"], "scale")


def test_conditions_of_a_product_of_two_numbers():
    # Output v w x, loss half its squared distance from y; SG(h, y) = a h + b y + c.
    w, v, a, b, c = 0.5, -2.0, 0.3, 0.7, -0.1
    x, y = np.array([1.0, 2.0, -1.0]), np.array([0.5, 1.0, 2.0])
    estimator = estimators.linear(estimators.as_given)
    learner = make_learner([scale(w), scale(v)], [estimator], squared_error, optax.sgd(1.0), optax.sgd(1.0))
    rows = jnp.asarray(x[:, None], jnp.float32), jnp.asarray(y[:, None], jnp.float32)
    state = learner.init(jax.random.key(0), *rows)
    est_params = {"A": jnp.array([[a]]), "B": jnp.array([[b]]), "c": jnp.array([c])}
    state = state._replace(estimators=(state.estimators[0]._replace(params=est_params),))
    found = jax.jit(lambda state: conditions(learner, state, *rows))(state)

    h, error = w * x, v * w * x - y
    left = a * h + b * y + c - v * error
    assert found.above == pytest.approx(abs(np.mean(error * h)), rel=1e-5)
    assert found.below == pytest.approx(abs(np.mean((a * h + b * y + c) * x)), rel=1e-5)
    fit = [np.mean(2 * left * part) for part in (h, y, np.ones(3))]
    assert found.fit == pytest.approx(np.linalg.norm(fit), rel=1e-5)
    true = [np.mean(error * h), np.mean(error * v * x)]
    assert found.gradient == pytest.approx(np.linalg.norm(true), rel=1e-5)
