"""RDMs and their distances against NumPy, SciPy and cases worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import spatial, stats

from decoupled.analysis import (
    class_contrast,
    dissimilarity_matrix,
    frobenius_distance,
    label_order,
    pearson_distance,
    spearman_distance,
)

RNG = np.random.default_rng(0)


def random_rdm(n=9):
    """Symmetric, with many ties."""
    upper = np.triu(RNG.integers(0, 5, size=(n, n)) / 4, k=1)
    return (upper + upper.T).astype(np.float32)


def above_diagonal(matrix):
    return matrix[np.triu_indices(len(matrix), k=1)]


def test_label_order_keeps_the_order_within_a_label():
    assert label_order(jnp.array([2, 0, 1, 0, 2])).tolist() == [1, 3, 2, 0, 4]


def test_dissimilarity_matrix():
    h = RNG.normal(size=(7, 2, 3)).astype(np.float32)
    flat = h.reshape(7, 6)
    found = dissimilarity_matrix(jnp.asarray(h))
    np.testing.assert_allclose(found, 1 - np.corrcoef(flat), atol=1e-5)
    np.testing.assert_allclose(
        above_diagonal(np.asarray(found)), spatial.distance.pdist(flat, "correlation"), atol=1e-5
    )
    assert not np.diagonal(found).any()


def test_dissimilarity_of_alike_opposite_and_constant_patterns():
    h = jnp.array([[1.0, 2.0, 3.0], [12.0, 14.0, 16.0], [3.0, 2.0, 1.0], [5.0, 5.0, 5.0]])
    expected = [[0, 0, 2, 1], [0, 0, 2, 1], [2, 2, 0, 1], [1, 1, 1, 0]]
    np.testing.assert_allclose(dissimilarity_matrix(h), expected, atol=1e-6)


def test_class_contrast():
    # Pairs of one class: 0.1 and 0.3. Of two: 0.5, 0.7, 0.9, 1.1.
    rdm = jnp.array(
        [[0.0, 0.1, 0.5, 0.7], [0.1, 0.0, 0.9, 1.1], [0.5, 0.9, 0.0, 0.3], [0.7, 1.1, 0.3, 0.0]]
    )
    assert class_contrast(rdm, jnp.array([4, 4, 1, 1])) == pytest.approx(0.8 - 0.2)
    assert class_contrast(jnp.ones((4, 4)), jnp.array([4, 4, 1, 1])) == pytest.approx(0)


def test_distances_of_rdms():
    a, b = random_rdm(), random_rdm()
    pair = above_diagonal(a), above_diagonal(b)
    assert pearson_distance(a, b) == pytest.approx(1 - stats.pearsonr(*pair)[0], abs=1e-5)
    assert spearman_distance(a, b) == pytest.approx(1 - stats.spearmanr(*pair)[0], abs=1e-5)
    n = len(a)
    expected = np.linalg.norm(a - b) / np.sqrt(n * (n - 1))
    assert frobenius_distance(a, b) == pytest.approx(expected, abs=1e-5)


def test_distances_of_related_rdms():
    a = random_rdm()
    off_diagonal = 1 - np.eye(len(a), dtype=np.float32)
    assert pearson_distance(a, (3 * a + 1) * off_diagonal) == pytest.approx(0, abs=1e-5)
    assert spearman_distance(a, np.exp(5 * a) * off_diagonal) == pytest.approx(0, abs=1e-5)
    assert pearson_distance(a, np.exp(5 * a) * off_diagonal) > 0.05
    assert frobenius_distance(a, a + 0.5 * off_diagonal) == pytest.approx(0.5, abs=1e-5)
    for distance in (pearson_distance, spearman_distance):
        assert distance(a, off_diagonal) == pytest.approx(1)
        assert distance(a, -a) == pytest.approx(2, abs=1e-5)
