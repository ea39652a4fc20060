"""Lengths of arrays whose squares would underflow or overflow: divided by their largest entry first."""

import jax
import jax.numpy as jnp

from decoupled.precision import at_least_float32
from decoupled.shapes import AnyArray, Float, Real
from decoupled.types import Array, PyTree


def unit_peak(
    a: Real[AnyArray, "*shape"], axis: int | None = None
) -> tuple[Float[Array, "*shape"], Float[Array, "..."]]:
    """An array over its largest magnitude, and that magnitude; 1 where all is zero.

    Args:
      a: computed with as float32, or float64 if it is.
      axis: along which the largest is looked for; None for the whole array.

    Returns:
      The array, entries in [-1, 1]; the magnitude, a scalar or with `axis` of length 1.
    """
    a = at_least_float32(a)
    peak = jnp.max(jnp.abs(a), axis=axis, keepdims=axis is not None, initial=0)
    peak = jnp.where(peak == 0, 1, peak)
    return a / peak, peak


def length(tree: PyTree) -> Float[Array, ""]:
    """Euclidean length of all arrays in a tree taken as one vector."""
    leaves = [unit_peak(leaf) for leaf in jax.tree.leaves(tree)]
    if not leaves:
        return jnp.zeros(())
    lengths, peak = unit_peak(jnp.stack([peak * jnp.linalg.norm(leaf.ravel()) for leaf, peak in leaves]))
    return peak * jnp.linalg.norm(lengths)


def unit_length(a: Real[AnyArray, "*shape"], axis: int | None = None) -> Float[Array, "*shape"]:
    """An array over its length; zero where it is.

    Args:
      a: taken as one vector, or as many along `axis`.
      axis: of the vectors; None for the whole array.
    """
    a, _ = unit_peak(a, axis)
    norm = jnp.sqrt(jnp.sum(jnp.square(a), axis=axis, keepdims=axis is not None))
    return a / jnp.where(norm == 0, 1, norm)
