"""Each trained estimator: where it starts, what it sees, and what its fit should be."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import decoupled
from decoupled import estimators
from decoupled.estimators import least_squares
from tests import helpers

KEY = jax.random.key(0)
CONTEXT = estimators.one_hot(helpers.CLASSES)
MAKERS = {
    "linear": estimators.linear,
    "loss_shaped": lambda context=None: estimators.loss_shaped(helpers.CLASSES, context),
    "mlp": lambda context=None: estimators.mlp((6,), context),
    "convolutional": lambda context=None: estimators.convolutional((6,), 3, context),
    "recursive_least_squares": estimators.recursive_least_squares,
}


def problem(name, size=16):
    """Activations of the shape the estimator is for, labels, and a target that depends on both."""
    rng = np.random.default_rng(0)
    shape = (size, 4, 4, 2) if name == "convolutional" else (size, 4)
    h = jnp.asarray(rng.normal(size=shape), jnp.float32)
    y = jnp.asarray(rng.integers(helpers.CLASSES, size=size), jnp.int32)
    labels = np.asarray(y).reshape(-1, *[1] * (h.ndim - 1))
    return h, y, 0.5 * h + jnp.asarray(labels - 1.0, jnp.float32) * jnp.ones_like(h)


def fit(estimator, h, y, target, steps=300):
    """Trains the estimator; returns its parameters and the SG loss before each step."""
    est_params = estimator.init(KEY, h, y)
    tx = optax.adam(0.03)
    tx = tx if estimator.optimizer is None else estimator.optimizer(tx)

    def step(carry, _):
        est_params, opt_state = carry
        sg_loss, gradient = estimator.training_gradient(est_params, h, y, target)
        updates, opt_state = tx.update(gradient, opt_state, est_params)
        return (optax.apply_updates(est_params, updates), opt_state), sg_loss

    carry = (est_params, tx.init(est_params))
    (est_params, _), losses = jax.jit(lambda c: jax.lax.scan(step, c, length=steps))(carry)
    return est_params, losses


@cache
def fitted(name, context):
    """What `fit` gives for the problem of that name; compiled once."""
    return fit(MAKERS[name](context), *problem(name))


@pytest.mark.parametrize("context", [None, CONTEXT], ids=["unconditional", "conditioned"])
@pytest.mark.parametrize("name", MAKERS)
def test_first_estimate_is_zero_and_sg_loss_is_the_targets_power(name, context):
    h, y, target = problem(name)
    estimator = MAKERS[name](context)
    est_params = estimator.init(KEY, h, y)
    estimate = estimator.estimate(est_params, h, y, None)
    assert estimate.shape == h.shape
    assert not estimate.any()
    sg_loss, _ = estimator.training_gradient(est_params, h, y, target)
    assert sg_loss == pytest.approx(float((target**2).sum()) / len(y), rel=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_only_conditioned_estimators_see_the_label(name):
    h, y, _ = problem(name)
    for context, sees in ((None, False), (CONTEXT, True)):
        estimator = MAKERS[name](context)
        est_params, _ = fitted(name, context)
        one, other = (estimator.estimate(est_params, h, labels, None) for labels in (y, (y + 1) % 3))
        assert bool((one != other).any()) == sees


@pytest.mark.parametrize("name", MAKERS)
def test_fitting_brings_the_loss_down(name):
    _, losses = fitted(name, CONTEXT)
    # The loss-shaped form cannot represent this target, the others can.
    assert losses[-1] < (0.8 if name == "loss_shaped" else 0.15) * losses[0]


def test_loss_shaped_is_exact_below_a_linear_layer_with_log_loss():
    rng = np.random.default_rng(0)
    h, y, _ = problem("loss_shaped")
    kernel = jnp.asarray(rng.normal(size=(4, helpers.CLASSES)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=(helpers.CLASSES,)), jnp.float32)

    def log_loss(h):
        log_p = jax.nn.log_softmax(h @ kernel + bias[None])
        return -jnp.take_along_axis(log_p, y[:, None], 1).sum()

    est_params = {"W": kernel.T, "b": bias, "V": kernel.T}
    estimate = MAKERS["loss_shaped"](CONTEXT).estimate(est_params, h, y, None)
    np.testing.assert_allclose(estimate, jax.grad(log_loss)(h), atol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("solve_every", [1, 3])
def test_recursive_least_squares_solves_the_weighted_problem(solve_every):
    """NumPy's lstsq on all batches so far, weighted by age, with the ridge as extra rows."""
    decay, ridge, rng = 0.8, 1e-2, np.random.default_rng(0)
    estimator = estimators.recursive_least_squares(estimators.as_given, decay, ridge, solve_every)
    batches = [tuple(rng.normal(size=(6, n)) for n in (3, 2, 3)) for _ in range(7)]
    est_params = estimator.init(KEY, *map(jnp.asarray, batches[0][:2]))
    tx = estimator.optimizer(optax.identity())
    opt_state = tx.init(est_params)

    @jax.jit
    def step(est_params, opt_state, h, y, target):
        _, moments = estimator.training_gradient(est_params, h, y, target)
        updates, opt_state = tx.update(moments, opt_state, est_params)
        return optax.apply_updates(est_params, updates), opt_state

    for t, (h, y, target) in enumerate(batches):
        est_params, opt_state = step(est_params, opt_state, h, y, target)
        if t % solve_every:
            continue
        rows = [np.hstack([b[0], np.ones((6, 1)), b[1]]) for b in batches[: t + 1]]
        weights = [np.sqrt(decay ** (t - s) * (1 - decay) / 6) for s in range(t + 1)]
        x = np.vstack([w * r for w, r in zip(weights, rows, strict=True)])
        z = np.vstack([w * b[2] for w, b in zip(weights, batches[: t + 1], strict=True)])
        damping = np.sqrt(ridge * (x**2).sum() / x.shape[1])
        x, z = np.vstack([x, damping * np.eye(6)]), np.vstack([z, np.zeros((6, 3))])
        expected = np.linalg.lstsq(x, z)[0]
        np.testing.assert_allclose(est_params["K"], expected, atol=1e-10)


def test_recursive_least_squares_survives_features_that_never_move():
    h, y, target = problem("linear")
    h = h.at[:, 1:].set(0.0)
    est_params, losses = fit(estimators.recursive_least_squares(CONTEXT), h, y, target, steps=5)
    assert np.isfinite(losses).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(est_params))


@pytest.mark.parametrize(
    ("features", "kind"), [(3, "any"), (65, "any"), (65, "equal"), (65, "far from zero")]
)
def test_least_squares_without_a_ridge_gives_the_fit_of_least_norm(features, kind):
    """More features than examples: NumPy's lstsq."""
    rng = np.random.default_rng(features)
    h = rng.normal(size=(16, features))
    h = {"any": h, "equal": np.repeat(h[:, :1], features, 1), "far from zero": 1 + 0.3 * h}[kind]
    h, target = (jnp.asarray(a, jnp.float32) for a in (h, rng.normal(size=(16, features))))
    estimator = estimators.recursive_least_squares(ridge=0)
    est_params, _ = fit(estimator, h, None, target, steps=1)
    x = np.hstack([np.asarray(h, np.float64), np.ones((16, 1))])
    expected = x @ np.linalg.lstsq(x, np.asarray(target, np.float64), rcond=1e-6)[0]
    np.testing.assert_allclose(estimator.estimate(est_params, h, None, None), expected, atol=0.02)


def test_least_squares_in_half_precision_is_refused():
    h, y, target = problem("linear")
    estimator = estimators.recursive_least_squares(CONTEXT)
    est_params = estimator.init(KEY, h, y)
    tx = estimator.optimizer(optax.sgd(0.1))
    coarse = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), est_params)
    with pytest.raises(decoupled.UsageError, match="leave est_params in float32 when"):
        tx.init(coarse)
    _, gradient = estimator.training_gradient(coarse, h, y, target)
    with pytest.raises(decoupled.UsageError, match="leave est_params in float32 when"):
        tx.update(gradient, tx.init(est_params), coarse)


def test_least_squares_serves_activations_in_half_precision():
    h, y, target = problem("linear")
    h, target = (a.astype(jnp.bfloat16) for a in (h, target))
    _, losses = fit(estimators.recursive_least_squares(CONTEXT), h, y, target, steps=5)
    assert losses[-1] < 0.15 * losses[0]


def test_one_hot_wants_a_vector_of_labels():
    for y in (jnp.zeros((4, 1), jnp.int32), jnp.zeros(4)):
        with pytest.raises(decoupled.UsageError, match="one_hot encodes integer labels, one an example"):
            CONTEXT(y)


@pytest.mark.usefixtures("x64")
def test_what_is_not_solved_for_is_moved_by_the_users_optimizer():
    rng = np.random.default_rng(0)
    x, target = (jnp.asarray(rng.normal(size=(20, n))) for n in (3, 2))
    est_params = {**least_squares.unsolved(3, 2), "W": jnp.ones(4)}
    tx = least_squares.solver(decay=0.5, ridge=0.0)(optax.sgd(0.1))
    gradient = {**least_squares.moments(x, target, -target), "W": jnp.arange(4.0)}
    updates, _ = tx.update(gradient, tx.init(est_params), est_params)
    after = optax.apply_updates(est_params, updates)
    np.testing.assert_allclose(after["W"], 1 - 0.1 * np.arange(4))
    np.testing.assert_allclose(after["K"], np.linalg.lstsq(x, target, rcond=None)[0], atol=1e-12)
