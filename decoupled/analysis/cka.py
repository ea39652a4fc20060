"""Centred kernel alignment: how alike two layers are, whatever the basis of their units.

References:
  Kornblith, Norouzi, Lee & Hinton 2019, "Similarity of neural network representations revisited"
  (ICML; arXiv 1905.00414).
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from decoupled.analysis.scaled import unit_length, unit_peak
from decoupled.shapes import AnyArray, Float
from decoupled.types import Array


def linear_cka(a: Float[AnyArray, "n *units"], b: Float[AnyArray, "n *others"]) -> Float[Array, ""]:
    """CKA with a linear kernel (Kornblith 2019, section 3).

    Invariant to a rotation of the units, to their means and to one scale for all; not to any linear map.
    Computed from (units, units) matrices where there are more examples than units, else from (examples,
    examples) ones: the same number, the cheaper way.

    Args:
      a, b: activations of the same examples in two layers; the numbers of units may differ.

    Returns:
      1 for layers that are alike; 0 where nothing is shared, or one does not vary at all.
    """
    chex.assert_equal_shape_prefix([a, b], 1)
    n = a.shape[0]
    a, b = (_centred(h) for h in (a, b))
    if n > max(a.shape[1], b.shape[1]):
        shared = jnp.sum(jnp.square(a.T @ b))
        own = jnp.linalg.norm(a.T @ a) * jnp.linalg.norm(b.T @ b)
    else:
        gram_a, gram_b = a @ a.T, b @ b.T
        shared = jnp.vdot(gram_a, gram_b)
        own = jnp.linalg.norm(gram_a) * jnp.linalg.norm(gram_b)
    return jnp.where(own > 0, shared / jnp.where(own > 0, own, 1.0), 0.0)


def cka_of_layers(
    a: Sequence[Float[AnyArray, "n ..."]], b: Sequence[Float[AnyArray, "n ..."]]
) -> Float[Array, "layers_of_a layers_of_b"]:
    """Linear CKA of every layer of one network with every layer of another, or of the same.

    Args:
      a, b: activations of the same examples, one array a layer.
    """
    alike = jax.jit(linear_cka)
    return jnp.stack([jnp.stack([alike(one, other) for other in b]) for one in a])


def _centred(h: Float[AnyArray, "n *units"]) -> Float[Array, "n flat"]:
    """Of mean zero over examples and of length 1, since squares of squares underflow."""
    rows, _ = unit_peak(h.reshape(h.shape[0], -1))
    return unit_length(rows - jnp.mean(rows, axis=0, keepdims=True))
