"""The three conditions against a network of numbers worked out by hand, and against `jax.grad`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoupled
from decoupled import estimators, losses
from decoupled.analysis import critical_point
from tests import helpers

KEY = jax.random.key(2)


def _scale(name):
    return decoupled.from_functions(lambda key, h: {"w": jnp.ones(())}, lambda p, h: p["w"] * h, name)


def _set(state, weights, sgs):
    modules = zip(state.modules, weights, strict=True)
    modules = tuple(m._replace(params={"w": jnp.float32(w)}) for m, w in modules)
    each = zip(state.estimators, sgs, strict=True)
    each = tuple(e._replace(params=dict(zip("ABc", map(jnp.asarray, sg), strict=True))) for e, sg in each)
    return state._replace(modules=modules, estimators=each)


def test_by_hand():
    """x = 1, 2; h = 3x; out = 2h = 6, 12; y = 4, 12: errors 2, 0. SG = h - y + 1 = 0, -5, target 4, 0."""
    modules = [_scale("below"), _scale("above")]
    learner = helpers.make_learner(
        modules, estimators.linear(estimators.as_given), loss=losses.squared_error
    )
    x, y = jnp.array([[1.0], [2.0]]), jnp.array([[4.0], [12.0]])
    state = _set(learner.init(KEY, x, y), (3, 2), [([[1.0]], [[-1.0]], [1.0])])
    found = critical_point(learner, state, x, y, KEY)
    assert found.loss == pytest.approx((0.5 * 4 + 0) / 2)
    # Above: error h, mean of 2*3 and 0. Whole network: below, target x, mean of 4*1 and 0.
    assert found.above == pytest.approx(3)
    assert found.gradient == pytest.approx(np.hypot(3, 2))
    # Below: SG x, mean of 0*1 and -5*2.
    assert found.below[0] == pytest.approx(5)
    # SG's misfit is -4, -5: twice its mean with h = 3, 6, with y = 4, 12, with 1.
    assert found.fit[0] == pytest.approx(np.linalg.norm([-12 - 30, -16 - 60, -4 - 5]))
    assert found.worst == found.fit[0]


def _dense(width, name):
    def init(key, h):
        return {"W": jax.random.normal(key, (h.shape[1], width))}

    return decoupled.from_functions(init, lambda p, h: jnp.tanh(h @ p["W"]), name)


@pytest.mark.parametrize("name", ["direct_feedback_alignment", "linear", "probe"])
def test_conditions_are_what_training_would_follow(name):
    """Each module's and each estimator's gradient, as plain SGD with rate 1 shows them."""
    x, y = helpers.batch()
    modules = [_dense(4, "a"), _dense(4, "b"), _dense(helpers.CLASSES, "c")]
    learner = helpers.make_learner(modules, helpers.every_method()[name])
    state = helpers.noisy(learner.init(jax.random.key(0), x, y))

    @jax.jit
    def measure(state):
        return critical_point(learner, state, x, y, KEY), *learner.update(state, x, y, KEY)

    found, after, metrics = measure(state)
    *below, above = [np.linalg.norm(g["W"]) for g in helpers.steps_taken(state, after)]
    gradients = helpers.mean_loss_gradients(modules, state, x, y, KEY)
    assert found.loss == pytest.approx(float(metrics.loss), rel=1e-5)
    assert found.gradient == pytest.approx(
        np.hypot.reduce([np.linalg.norm(g["W"]) for g in gradients]), rel=1e-4
    )
    assert found.above == pytest.approx(above, rel=1e-4)
    np.testing.assert_allclose(found.below, below, rtol=1e-4)
    moved = [
        np.sqrt(
            sum(np.sum((np.asarray(b) - a) ** 2) for b, a in zip(*map(jax.tree.leaves, pair), strict=True))
        )
        for pair in zip(state.estimators, after.estimators, strict=True)
    ]
    np.testing.assert_allclose(found.fit, moved, rtol=1e-3)


def test_recursive_least_squares_is_at_rest_where_its_sg_loss_is_least(x64):
    """It hands its optimizer moments, which never vanish; the SG loss's gradient must."""
    x, y = (jnp.asarray(part) for part in np.random.default_rng(0).normal(size=(2, 9, 1)))
    sg = estimators.recursive_least_squares(estimators.as_given, decay=0.0, ridge=0.0)
    modules = [_scale("below"), _scale("above")]
    learner = helpers.make_learner(modules, sg, rate=0.0, loss=losses.squared_error)

    @jax.jit
    def measure():
        state, _ = learner.update(learner.init(KEY, x, y), x, y, KEY)
        return critical_point(learner, state, x, y, KEY)

    found = measure()
    assert found.fit[0] < 1e-9
    assert found.below[0] == pytest.approx(float(np.abs(np.mean((x - y) * x))))
