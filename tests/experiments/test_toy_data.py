"""The toy sets: shapes, labels by their definition, and scikit-learn's word on what is separable."""

import jax
import numpy as np
import pytest
from sklearn.svm import LinearSVC

from experiments import toy_data


@pytest.mark.parametrize("dim", [2, 100])
@pytest.mark.parametrize("name", toy_data.SETS)
def test_sets(name, dim):
    x, y = map(np.asarray, toy_data.SETS[name](jax.random.key(0), 400, dim))
    assert x.shape == (400, dim)
    assert set(y) == {0, 1}
    assert 0.3 < y.mean() < 0.7
    assert 0.6 < (x**2).mean() < 1.4
    np.testing.assert_array_equal(np.asarray(toy_data.signed(y)), np.where(y == 1, 1.0, -1.0)[:, None])
    radii = np.linalg.norm(x, axis=1) / dim**0.5
    if name == "ring":
        assert radii[y == 0].max() <= 0.6
        assert 0.9 <= radii[y == 1].min() <= radii.max() <= 1.5
    if name == "XOR":
        np.testing.assert_array_equal(y, np.sign(x[:, 0]) != np.sign(x[:, 1]))
    if dim == 2:
        accuracy = LinearSVC(C=1e3, max_iter=100_000, dual=False).fit(x, y).score(x, y)
        low, high = {"linearly separable": (0.99, 1), "noisy labels": (0.8, 0.95)}.get(name, (0, 0.8))
        assert low <= accuracy <= high


def test_noise_flips_a_fifth_of_the_labels():
    key = jax.random.key(0)
    x, y = toy_data.noisy_linear(key, 5000, 2)
    clean_x, clean = toy_data.linear(jax.random.split(key)[0], 5000, 2)
    np.testing.assert_array_equal(x, clean_x)
    assert np.mean(y != clean) == pytest.approx(toy_data.FLIPPED, abs=0.02)
