"""Representational dissimilarity: which examples a layer takes to be alike.

References:
  Kriegeskorte, Mur & Bandettini 2008, "Representational similarity analysis" (Frontiers in Systems
  Neuroscience 2:4); U17.
"""

import chex
import jax
import jax.numpy as jnp

from decoupled.analysis.alignment import cosine
from decoupled.analysis.scaled import unit_length, unit_peak
from decoupled.shapes import AnyArray, Float, Integer, Shaped
from decoupled.types import Array


def label_order(y: Shaped[AnyArray, " n"]) -> Integer[Array, " n"]:
    """Indices that sort examples by label, in their own order within a label.

    Of examples in this order, an RDM shows classes as blocks along its diagonal.
    """
    chex.assert_rank(y, 1)
    return jnp.argsort(y, stable=True)


def dissimilarity_matrix(h: Float[AnyArray, "n *units"]) -> Float[Array, "n n"]:
    """The representational dissimilarity matrix (RDM) of a layer, by correlation distance.

    Entry (i, j) is 1 minus Pearson's correlation, over units, of the activations of examples i and j
    (Kriegeskorte 2008): 0 for the same pattern whatever its mean and scale, 1 for unrelated ones, 2 for
    opposite ones. Where an example's units all have one value it is related to nothing: 1.

    Args:
      h: activations.

    Returns:
      Symmetric, zero on the diagonal.
    """
    rows, _ = unit_peak(h.reshape(h.shape[0], -1), axis=1)
    rows = unit_length(rows - jnp.mean(rows, axis=1, keepdims=True), axis=1)
    return jnp.clip(1 - rows @ rows.T, 0.0, 2.0) * (1 - jnp.eye(h.shape[0]))


def class_contrast(matrix: Float[AnyArray, "n n"], y: Shaped[AnyArray, " n"]) -> Float[Array, ""]:
    """How far apart classes are in an RDM: mean entry of pairs of two classes minus that of one class.

    0 where labels leave no trace in the layer; 1 where the examples of a class are alike and those of
    different classes unrelated.

    Args:
      matrix: an RDM.
      y: labels: at least two classes, and two examples of one.

    Returns:
      In units of the RDM.
    """
    n = y.shape[0]
    chex.assert_shape(matrix, (n, n))
    same = y[:, None] == y[None, :]
    within = same & ~jnp.eye(n, dtype=bool)
    return jnp.mean(matrix, where=~same) - jnp.mean(matrix, where=within)


def pearson_distance(a: Float[AnyArray, "n n"], b: Float[AnyArray, "n n"]) -> Float[Array, ""]:
    """1 minus Pearson's correlation of the entries above the diagonals of two RDMs.

    Args:
      a, b: symmetric, of the same examples in the same order.

    Returns:
      In [0, 2]; 1 where the entries of one are all equal.
    """
    return _correlation_distance(*_upper_triangles(a, b))


def spearman_distance(a: Float[AnyArray, "n n"], b: Float[AnyArray, "n n"]) -> Float[Array, ""]:
    """1 minus Spearman's rank correlation of the entries above the diagonals of two RDMs.

    Unlike `pearson_distance` it asks only which pairs are less alike than others, as recommended where a
    linear relation of dissimilarities cannot be taken for granted (Kriegeskorte 2008).

    Args:
      a, b: symmetric, of the same examples in the same order.

    Returns:
      In [0, 2]; 1 where the entries of one are all equal.
    """
    ranks = (jax.scipy.stats.rankdata(part) for part in _upper_triangles(a, b))
    return _correlation_distance(*ranks)


def frobenius_distance(a: Float[AnyArray, "n n"], b: Float[AnyArray, "n n"]) -> Float[Array, ""]:
    """Root mean squared difference of the entries above the diagonals of two RDMs.

    The Frobenius norm of a - b, divided by the root of its n (n - 1) entries off the diagonal, so that
    it does not grow with the number of examples.

    Args:
      a, b: symmetric, of the same examples in the same order.

    Returns:
      In units of the RDMs.
    """
    a, b = _upper_triangles(a, b)
    return jnp.sqrt(jnp.mean(jnp.square(a - b)))


def _upper_triangles(
    a: Float[AnyArray, "n n"], b: Float[AnyArray, "n n"]
) -> tuple[Float[AnyArray, " pairs"], Float[AnyArray, " pairs"]]:
    chex.assert_equal_shape([a, b])
    chex.assert_rank(a, 2)
    above = jnp.triu_indices(a.shape[0], k=1)
    return a[above], b[above]


def _correlation_distance(a: Float[AnyArray, " pairs"], b: Float[AnyArray, " pairs"]) -> Float[Array, ""]:
    (a, _), (b, _) = unit_peak(a), unit_peak(b)
    return 1 - cosine(a - jnp.mean(a), b - jnp.mean(b))
