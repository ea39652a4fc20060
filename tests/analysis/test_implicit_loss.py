"""Implicit losses and labels: of losses known in closed form, and against SciPy's quadrature and roots."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special

from decoupled import estimators
from decoupled.analysis import (
    implicit_loss,
    implicit_prediction,
    line_integral,
    linear_implicit_prediction,
)

LOW, HIGH = -20.0, 20.0
pytestmark = pytest.mark.usefixtures("x64")


def points(seed=0, size=7):
    """h in (-3, 3) and labels in (0.1, 0.9), (size, 1) each."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.uniform(-3, 3, (size, 1))), jnp.asarray(rng.uniform(0.1, 0.9, (size, 1)))


def distance(est_params, h, y, signal):
    """The gradient of (h - y)²."""
    return 2 * (h - y)


def logistic(est_params, h, y, signal):
    """The gradient of the log loss of a logit."""
    return 1 / (1 + jnp.exp(-h)) - y


def two_classes(y):
    return jnp.concatenate([1 - y, y], axis=1)


def test_a_quadratic_loss_and_its_label():
    h, y = points()
    expected = np.square(np.asarray(h - y))[:, 0]
    np.testing.assert_allclose(implicit_loss(distance, (), h, y, LOW, HIGH), expected, atol=1e-12)
    np.testing.assert_allclose(implicit_prediction(distance, (), h, LOW, HIGH), h, atol=1e-12)


def test_a_log_loss_is_the_divergence_from_the_label():
    h, y = points()
    probability = scipy.special.expit(np.asarray(h))
    rows = np.asarray(y)
    expected = scipy.special.rel_entr(rows, probability) + scipy.special.rel_entr(1 - rows, 1 - probability)
    found = implicit_loss(logistic, (), h, y, LOW, HIGH)
    np.testing.assert_allclose(found, expected[:, 0], atol=1e-9)
    np.testing.assert_allclose(implicit_prediction(logistic, (), h, 0.0, 1.0), probability, atol=1e-12)


def test_the_library_s_linear_sg():
    h, y = points()
    est_params = {"A": jnp.array([[0.5]]), "B": jnp.array([[-2.0]]), "c": jnp.array([0.25])}
    estimate = estimators.linear(estimators.as_given).estimate
    # Zero at y = (0.5 h + 0.25) / 2; the loss is a parabola 0.25 (h - h0)² about h0 = 4y - 0.5.
    expected = (0.5 * np.asarray(h) + 0.25) / 2
    np.testing.assert_allclose(linear_implicit_prediction(est_params, h), expected, atol=1e-12)
    np.testing.assert_allclose(
        implicit_prediction(estimate, est_params, h, LOW, HIGH), expected, atol=1e-12
    )
    parabola = 0.25 * np.square(np.asarray(h - (4 * y - 0.5)))[:, 0]
    np.testing.assert_allclose(implicit_loss(estimate, est_params, h, y, LOW, HIGH), parabola, atol=1e-12)


def test_the_loss_shaped_sg_against_scipy():
    h, y = points()
    est_params = {
        "W": jnp.array([[0.3], [-1.1]]),
        "b": jnp.array([0.2, -0.4]),
        "V": jnp.array([[0.7], [-0.9]]),
    }
    estimate = estimators.loss_shaped(2, two_classes).estimate
    losses = implicit_loss(estimate, est_params, h, y, LOW, HIGH)
    labels = implicit_prediction(estimate, est_params, h, 0.0, 1.0)

    def by_hand(h, y):
        p = scipy.special.softmax([0.3 * h + 0.2, -1.1 * h - 0.4])
        return 0.7 * (p[0] - (1 - y)) - 0.9 * (p[1] - y)

    for i in range(len(h)):
        here, label = float(h[i, 0]), float(y[i, 0])
        lowest = scipy.optimize.brentq(by_hand, LOW, HIGH, args=(label,), xtol=1e-13)
        loss = scipy.integrate.quad(by_hand, lowest, here, args=(label,))[0]
        assert losses[i] == pytest.approx(loss, abs=1e-8)
        root = scipy.optimize.brentq(lambda y, here=here: by_hand(here, y), 0, 1, xtol=1e-13)
        assert labels[i, 0] == pytest.approx(root, abs=1e-10)


def test_a_line_through_a_wide_activation():
    # |h - y|² / 2, of vectors: the rise is the difference of its values, whatever the path.
    rng = np.random.default_rng(0)
    start, end, y = (jnp.asarray(rng.normal(size=(5, 2, 3))) for _ in range(3))
    found = line_integral(lambda p, h, y, s: h - y, (), start, end, y)
    before, after = (0.5 * np.square(np.asarray(h - y)).sum(axis=(1, 2)) for h in (start, end))
    np.testing.assert_allclose(found, after - before, atol=1e-12)


def test_the_label_at_a_wide_boundary_is_the_output_of_the_linear_layer_above():
    rng = np.random.default_rng(1)
    h, M, b = rng.normal(size=(9, 5)), rng.normal(size=(5, 2)), rng.normal(size=(2,))
    # (hM + b - y) M', term by term.
    est_params = {"A": jnp.asarray(M @ M.T), "B": jnp.asarray(-M.T), "c": jnp.asarray(b @ M.T)}
    found = linear_implicit_prediction(est_params, jnp.asarray(h))
    np.testing.assert_allclose(found, h @ M + b, atol=1e-10)


def test_without_a_root_there_is_no_label():
    h, _ = points()
    assert np.isnan(implicit_prediction(distance, (), h, 10.0, 20.0)).all()
    assert np.isnan(implicit_prediction(lambda p, h, y, s: 0 * h, (), h, 0.0, 1.0)).all()


def test_a_loss_that_falls_all_the_way_is_lowest_at_the_end():
    h, y = points()
    found = implicit_loss(lambda p, h, y, s: -jnp.ones_like(h), (), h, y, LOW, HIGH)
    np.testing.assert_allclose(found, HIGH - np.asarray(h)[:, 0], atol=1e-12)
