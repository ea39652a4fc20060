"""The parts of what an estimate misses, on gradients made by hand; and the features of each form."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.accuracy.decomposition import FORMS, Seen, Shares, shares

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(4000, 6))
IN_FORM = INPUTS @ RNG.normal(size=(6, 3))
OUT_OF_FORM = RNG.normal(size=(4000, 3)) * np.sqrt(np.square(IN_FORM).mean())


def test_nothing_is_missed_where_all_is_right():
    assert shares(Seen(INPUTS, IN_FORM, IN_FORM, IN_FORM)) == pytest.approx(Shares(0, 0, 0), abs=1e-12)


def test_half_the_power_lies_outside_the_form():
    true = IN_FORM + OUT_OF_FORM
    assert shares(Seen(INPUTS, true, true, IN_FORM)) == pytest.approx(Shares(0.5, 0, 0), abs=0.03)


def test_a_target_of_half_the_size_misses_a_quarter():
    found = shares(Seen(INPUTS, IN_FORM, IN_FORM / 2, IN_FORM / 2))
    assert found == pytest.approx(Shares(0, 0.25, 0), abs=1e-9)


def test_an_estimate_that_has_learnt_nothing_misses_all():
    found = shares(Seen(INPUTS, IN_FORM, IN_FORM, np.zeros_like(IN_FORM)))
    assert found == pytest.approx(Shares(0, 0, 1), abs=1e-9)


def test_features_are_what_forms_are_linear_in():
    h, y = jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32), jnp.array([0, 3, 9, 1, 1])
    W, b = jnp.asarray(RNG.normal(size=(10, 4)), jnp.float32), jnp.arange(10.0)
    logits = np.asarray(h) @ np.asarray(W).T + np.asarray(b)
    prediction = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    one_hot, one = np.eye(10)[np.asarray(y)], np.ones((5, 1))
    expected = {
        "loss_shaped": prediction - one_hot,
        "linear": np.hstack([h, one_hot, one]),
        "loss_shaped_no_labels": np.hstack([prediction, one]),
        "linear_no_labels": np.hstack([h, one]),
    }
    for name, features in FORMS.items():
        found = features({"W": W, "b": b}, h, y)
        np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-6)
