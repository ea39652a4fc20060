"""Instruments that compare directions say the same of arrays of any size: NumPy in double precision."""

import jax.numpy as jnp
import numpy as np
import pytest

from decoupled.analysis import (
    cosine,
    dissimilarity_matrix,
    linear_cka,
    norm_ratio,
    pearson_distance,
    r_squared,
    spearman_distance,
)
from decoupled.analysis.scaled import length

SCALES = [1e-30, 1e-22, 1.0, 1e20, 1e36]


def pair(seed=0, shape=(6, 5)):
    a, b = np.random.default_rng(seed).normal(size=(2, *shape))
    return a, a + b


def numpy_cosine(a, b):
    return np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))


@pytest.mark.parametrize("scale", SCALES)
def test_alignment(scale):
    estimated, true = (jnp.asarray(scale * a, jnp.float32) for a in pair())
    e, t = (np.asarray(a, np.float64) for a in (estimated, true))
    assert cosine(estimated, true) == pytest.approx(numpy_cosine(e, t), abs=1e-6)
    assert norm_ratio(estimated, true) == pytest.approx(np.linalg.norm(e) / np.linalg.norm(t), rel=1e-5)
    assert r_squared(estimated, true) == pytest.approx(1 - np.sum((e - t) ** 2) / np.sum(t**2), rel=1e-5)
    assert cosine(true, true) == pytest.approx(1, abs=1e-6)
    assert r_squared(true, true) == 1


@pytest.mark.parametrize("scale", SCALES)
def test_alignment_of_a_large_and_a_small_array(scale):
    estimated, true = (jnp.asarray(a, jnp.float32) for a in pair())
    assert cosine(scale * estimated, true) == pytest.approx(float(cosine(estimated, true)), abs=1e-6)
    ratio = float(norm_ratio(estimated, true))
    assert norm_ratio(scale * estimated, true) == pytest.approx(scale * ratio, rel=1e-5)


@pytest.mark.parametrize("scale", SCALES)
def test_representations(scale):
    a, b = pair(1)
    small_a, small_b = (jnp.asarray(scale * h, jnp.float32) for h in (a, b))
    np.testing.assert_allclose(dissimilarity_matrix(small_a), 1 - np.corrcoef(a), atol=2e-6)
    centred = [h - h.mean(0) for h in (a, b)]
    grams = [h @ h.T for h in centred]
    assert linear_cka(small_a, small_b) == pytest.approx(numpy_cosine(*grams), abs=1e-5)


def test_distances_of_small_rdms():
    a, b = pair(2, (4, 4))
    a, b = a + a.T, b + b.T
    above = np.triu_indices(4, 1)
    expected = 1 - np.corrcoef(a[above], b[above])[0, 1]
    small = [jnp.asarray(1e-25 * m, jnp.float32) for m in (a, b)]
    assert pearson_distance(*small) == pytest.approx(expected, abs=1e-5)
    whole = [jnp.asarray(m, jnp.float32) for m in (a, b)]
    assert spearman_distance(*small) == pytest.approx(float(spearman_distance(*whole)), abs=1e-6)


def test_double_precision_is_kept(x64):
    a, b = pair(3)
    b = a + 1e-6 * b
    for measured in (
        1 - r_squared(jnp.asarray(b), jnp.asarray(a)),
        norm_ratio(jnp.asarray(b), jnp.asarray(a)) - 1,
    ):
        assert measured.dtype == jnp.float64
        assert measured != 0
    expected = np.sum((b - a) ** 2) / np.sum(a**2)
    assert 1 - r_squared(jnp.asarray(b), jnp.asarray(a)) == pytest.approx(expected, rel=1e-3)
    assert cosine(jnp.asarray(a), jnp.asarray(b)).dtype == jnp.float64


def test_half_precision_is_summed_in_single():
    ones = jnp.ones((1000, 7), jnp.bfloat16)
    assert cosine(ones, ones) == pytest.approx(1, abs=1e-5)
    # Rows that differ by a half: a mean in bfloat16 would lose it.
    h = jnp.asarray(100 + np.tile([0.0, 0.5], (2, 500)), jnp.bfloat16)
    np.testing.assert_allclose(dissimilarity_matrix(h), np.zeros((2, 2)), atol=1e-5)


def test_what_is_not_a_number_stays_so():
    a = jnp.array([[1.0, jnp.nan]])
    for measure in (cosine, norm_ratio, r_squared):
        assert jnp.isnan(measure(a, jnp.ones((1, 2))))
        assert jnp.isnan(measure(jnp.ones((1, 2)), a))
        assert jnp.isnan(measure(a, jnp.zeros((1, 2))))


def test_a_row_of_one_value_is_related_to_nothing():
    """0.1 is no sum of powers of two: a mean of many is not exactly 0.1."""
    h = jnp.stack([jnp.full((77,), 0.1), jnp.arange(77.0)])
    np.testing.assert_array_equal(dissimilarity_matrix(h), [[0, 1], [1, 0]])


def test_length_of_a_tree():
    tree = {"a": jnp.full((3,), 1e-25), "b": [jnp.full((2, 3), 1e-25), jnp.zeros((4,))]}
    assert length(tree) == pytest.approx(3e-25, rel=1e-6)
    assert length({}) == 0
    assert length(jnp.full((2,), 1e30)) == pytest.approx(2**0.5 * 1e30, rel=1e-6)
