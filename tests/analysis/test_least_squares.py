"""The linear SG in closed form against NumPy and SciPy, and steps worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from decoupled import estimators
from decoupled.analysis import best_linear, line_search


def _arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


@pytest.mark.parametrize("with_context", [True, False])
def test_best_linear_is_numpys_least_squares(x64, with_context):
    h, target, context = _arrays((20, 2, 2), (20, 2, 2), (20, 3))
    fit = best_linear(h, target, context if with_context else None)
    flat, wanted = np.reshape(h, (20, 4)), np.reshape(target, (20, 4))
    columns = [flat, np.ones((20, 1)), *([np.asarray(context)] if with_context else [])]
    expected, residual, *_ = np.linalg.lstsq(np.hstack(columns), wanted, rcond=None)
    np.testing.assert_allclose(fit.params["A"], expected[:4], atol=1e-12)
    np.testing.assert_allclose(fit.params["c"], expected[4], atol=1e-12)
    if with_context:
        np.testing.assert_allclose(fit.params["B"], expected[5:], atol=1e-12)
    assert fit.loss == pytest.approx(residual.sum() / 20)
    assert fit.r2 == pytest.approx(1 - residual.sum() / (wanted**2).sum())
    # The parameters are those of the library's linear SG.
    spec = estimators.linear(estimators.as_given if with_context else None)
    shapes = jax.tree.map(jnp.shape, spec.init(jax.random.key(0), h, context))
    assert jax.tree.map(jnp.shape, fit.params) == shapes
    estimate = spec.estimate(fit.params, h, context, None)
    assert ((estimate - target) ** 2).sum() == pytest.approx(residual.sum())


def test_best_linear_where_features_repeat_takes_the_smallest_solution(x64):
    (h,) = _arrays((10, 1))
    fit = best_linear(jnp.concatenate([h, h], axis=1), jnp.concatenate([2 * h + 1, 4 * h], axis=1))
    # 2h is split evenly between the two columns.
    np.testing.assert_allclose(fit.params["A"], [[1, 2], [1, 2]], atol=1e-12)
    np.testing.assert_allclose(fit.params["c"], [1, 0], atol=1e-12)
    assert fit.r2 == pytest.approx(1)


def test_r2_of_a_target_of_zero_is_one(x64):
    (h,) = _arrays((10, 2))
    fit = best_linear(h, jnp.zeros_like(h))
    assert (float(fit.r2), float(fit.loss)) == (1, 0)


def test_line_search_by_hand():
    # Estimate p + s from p = 1 along 1, targets 3 and 5: best at 4, so s = 3.
    def estimate(p):
        return jnp.full((2, 1), p)

    one = jnp.float32(1)
    assert line_search(estimate, one, one, jnp.array([[3.0], [5.0]])) == pytest.approx(3)
    # Backwards along twice the direction; and a direction that leads nowhere.
    assert line_search(estimate, one, -2 * one, jnp.array([[3.0], [5.0]])) == pytest.approx(-1.5)
    assert line_search(estimate, one, 0 * one, jnp.array([[3.0], [5.0]])) == 0


def test_line_search_finds_scipys_minimum(x64):
    h, target, context = _arrays((12, 3), (12, 3), (12, 2))
    spec = estimators.linear(estimators.as_given)
    est_params = {"A": _arrays((3, 3))[0], "B": jnp.ones((2, 3)), "c": jnp.zeros(3)}
    _, gradient = spec.training_gradient(est_params, h, context, target)
    direction = jax.tree.map(jnp.negative, gradient)
    found = line_search(lambda p: spec.estimate(p, h, context, None), est_params, direction, target)

    def sg_loss(s):
        moved = jax.tree.map(lambda p, d: p + s * d, est_params, direction)
        out = h @ moved["A"] + context @ moved["B"] + moved["c"][None, :]
        return float(((out - target) ** 2).sum())

    best = scipy.optimize.minimize_scalar(sg_loss, options={"xtol": 1e-10})
    assert found == pytest.approx(best.x, rel=1e-6)
