"""Alignment against jax.grad of the upper network, and cosines worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoupled
from decoupled import estimators
from decoupled.analysis import boundary_gradients, cosine, norm_ratio, r_squared, sign_agreement
from tests import helpers

KEY = jax.random.key(2)


@pytest.mark.parametrize("name", ["linear", "backprop", "error"])
def test_boundary_gradients(name):
    x, y = helpers.batch()
    synthetic = helpers.every_method()["linear"]
    direct = estimators.direct_feedback_alignment(helpers.CLASSES)
    estimator = {"linear": synthetic, "backprop": estimators.backprop(), "error": direct}[name]
    learner = helpers.make_learner(helpers.mlp_modules(norm="batch", dropout=0.2), estimator)
    state = helpers.noisy(learner.init(jax.random.key(0), x, y))
    gradients = jax.jit(lambda s: boundary_gradients(learner, s, x, y, KEY))(state)

    def run(i, h):
        module, key = learner.modules[i], jax.random.fold_in(KEY, i)
        return module.apply(*state.modules[i][:2], h, key, True)[0]

    h0 = run(0, x)
    h1 = run(1, h0)
    above_1 = jax.grad(lambda h: learner.loss(run(2, h), y).sum())
    above_0 = jax.grad(lambda h: learner.loss(run(2, run(1, h)), y).sum())
    true = (above_0(h0), above_1(h1))
    for actual, expected in zip(gradients.true, true, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)
    estimated = true
    if name == "linear":
        estimated = [
            synthetic.estimate(e.params, h, y, None)
            for e, h in zip(state.estimators, (h0, h1), strict=True)
        ]
    if name == "error":
        error = jax.nn.softmax(run(2, h1)) - jax.nn.one_hot(y, helpers.CLASSES)
        estimated = [error @ e.params["B"] for e in state.estimators]
    for actual, expected in zip(gradients.estimated, estimated, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_cosine():
    a = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    assert cosine(a, jnp.array([[1.0, 1.0], [0.0, 0.0]])) == pytest.approx(2**-0.5)
    assert cosine(a, -3 * a) == pytest.approx(-1)
    assert cosine(a, jnp.zeros_like(a)) == 0


def test_sign_agreement():
    true = jnp.array([[1.0, -2.0, 0.0], [3.0, -4.0, 0.0]])
    estimated = jnp.array([[5.0, 1.0, 1.0], [0.0, -1.0, 0.0]])  # right, wrong, -; none, right, -
    assert sign_agreement(estimated, true) == pytest.approx(2 / 4)
    assert sign_agreement(7 * true, true) == 1
    assert sign_agreement(true, jnp.zeros_like(true)) == 0


def test_norm_ratio():
    true, zero = jnp.array([[3.0], [4.0]]), jnp.zeros((2, 1))
    assert norm_ratio(jnp.array([[0.0], [-10.0]]), true) == pytest.approx(2)
    assert norm_ratio(zero, true) == 0
    assert norm_ratio(true, zero) == np.inf
    assert norm_ratio(zero, zero) == 1


def test_r_squared():
    true, zero = jnp.array([[3.0, 0.0], [0.0, 4.0]]), jnp.zeros((2, 2))
    # Off by (1, 0, 0, -2): 1 - 5 / 25.
    assert r_squared(jnp.array([[4.0, 0.0], [0.0, 2.0]]), true) == pytest.approx(0.8)
    assert r_squared(true, true) == 1
    assert r_squared(zero, true) == 0
    assert r_squared(-true, true) == pytest.approx(-3)
    assert r_squared(zero, zero) == 0
    assert r_squared(true, zero) == -np.inf


def test_a_backward_rule_is_compared_with_the_true_gradient():
    x, y = helpers.batch()
    plain = helpers.mlp_modules(norm="batch")
    ruled = [decoupled.with_backward_rule(m, decoupled.feedback_alignment) for m in plain]
    learner = helpers.make_learner(ruled, estimators.backprop())
    state = learner.init(jax.random.key(0), x, y)
    found = jax.jit(lambda s: boundary_gradients(learner, s, x, y, KEY))(state)
    exact = helpers.make_learner(plain, estimators.backprop())
    expected = jax.jit(lambda s: boundary_gradients(exact, s, x, y, KEY))(state)
    for i in range(2):
        np.testing.assert_allclose(found.true[i], expected.true[i], atol=1e-6)
        assert not np.allclose(found.true[i], found.estimated[i], atol=1e-3)
    assert decoupled.compose(ruled).exact is not None
    assert decoupled.compose(plain).exact is None
