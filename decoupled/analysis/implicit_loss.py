"""What loss a synthetic gradient stands for, and what it takes the network's prediction to be.

Where h is one number, an SG is the slope of some loss of (h, y), and its integral over h is that loss, up
to a constant. The label at which the SG vanishes is the one with which h would be right: what the SG
believes that the network above h predicts.
"""

from collections.abc import Callable
from typing import TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np

from decoupled.estimators.synthetic_gradient import flatten
from decoupled.shapes import Float
from decoupled.types import Array, PyTree

# (est_params, h, y, signal) -> grad_h_hat: that of an `Estimator` which reads nothing beyond (h, y).
Estimate: TypeAlias = Callable[[PyTree, Array, PyTree, None], Array]

# Halvings of a bracket: enough for double precision.
_HALVINGS = 60


def line_integral(
    estimate: Estimate,
    est_params: PyTree,
    start: Float[Array, "batch *features"],
    end: Float[Array, "batch *features"],
    y: PyTree,
    nodes: int = 64,
) -> Float[Array, " batch"]:
    """By how much the implicit loss rises on the straight line from one activation to another.

    Where h is more than one number the SG need not be the gradient of any loss: another path between the
    same activations may then give another value.

    Args:
      estimate: of the estimator.
      est_params: its parameters.
      start, end: activations.
      y: context, (batch, ...), the same all along the line.
      nodes: of Gauss-Legendre quadrature, exact where the SG is a polynomial in h of degree 2 nodes - 1.

    Returns:
      In units of the loss.
    """
    chex.assert_equal_shape([start, end])
    places, weights = np.polynomial.legendre.leggauss(nodes)
    way = end - start

    def slope(place: Float[Array, ""]) -> Float[Array, " batch"]:
        grad_h_hat = estimate(est_params, start + place * way, y, None)
        return jnp.sum(flatten(grad_h_hat) * flatten(way), axis=1)

    slopes = jax.vmap(slope)(jnp.asarray((places + 1) / 2, way.dtype))
    return jnp.asarray(weights / 2, way.dtype) @ slopes


def implicit_loss(
    estimate: Estimate,
    est_params: PyTree,
    h: Float[Array, "batch 1"],
    y: PyTree,
    low: float,
    high: float,
) -> Float[Array, " batch"]:
    """The loss whose gradient by a scalar activation is the SG, zero where it is lowest.

    Its lowest point is looked for by bisection between `low` and `high`. An SG that rises with h has one;
    of another SG it is a local minimum, or an end of the bracket where the loss falls all the way there.

    Args:
      estimate: of the estimator.
      est_params: its parameters.
      h: one number an example.
      y: context, (batch, ...).
      low, high: the bracket, in units of h.

    Returns:
      In units of the loss.

    References:
      U17, on the loss that an SG stands for.
    """
    chex.assert_shape(h, (h.shape[0], 1))

    def falls(h: Array) -> Array:
        return estimate(est_params, h, y, None) < 0

    lowest = _bisect(falls, jnp.full_like(h, low), jnp.full_like(h, high))
    return line_integral(estimate, est_params, lowest, h, y)


def implicit_prediction(
    estimate: Estimate, est_params: PyTree, h: Float[Array, "batch 1"], low: float, high: float
) -> Float[Array, "batch 1"]:
    """The label at which the SG vanishes, given a scalar activation: with it, h would need no change.

    Args:
      estimate: of the estimator, whose context must take labels between the true ones (as `as_given` does).
      est_params: its parameters.
      h: one number an example.
      low, high: between which labels to look, by bisection.

    Returns:
      In units of y; NaN where the SG has the same sign (or none) at both ends.

    References:
      U17, on the loss that an SG stands for.
    """
    chex.assert_shape(h, (h.shape[0], 1))
    lows, highs = jnp.full_like(h, low), jnp.full_like(h, high)
    at_low, at_high = (estimate(est_params, h, y, None) for y in (lows, highs))

    def before_root(y: Array) -> Array:
        return jnp.sign(estimate(est_params, h, y, None)) == jnp.sign(at_low)

    bracketed = (jnp.sign(at_low) * jnp.sign(at_high) <= 0) & (at_low != at_high)
    return jnp.where(bracketed, _bisect(before_root, lows, highs), jnp.nan)


def linear_implicit_prediction(
    est_params: PyTree, h: Float[Array, "batch *features"]
) -> Float[Array, "batch context"]:
    """The label at which a linear SG, hA + yB + c, vanishes or is smallest, in closed form.

    Above a linear network with a squared error, SG(h, y) = (f(h) - y) M' where f(h) is the network's output
    and M its matrix: the label found is f(h), at a boundary of any width.

    Args:
      est_params: of `estimators.linear` with the context `as_given`: A (features, features), B (context,
        features) and c (features,).
      h: flattened to (batch, features).

    Returns:
      Least squares; the label of least norm where several do as well.

    References:
      U17, on the loss that an SG stands for.
    """
    rest = flatten(h) @ est_params["A"] + est_params["c"][None, :]
    return -jnp.linalg.lstsq(est_params["B"].T, rest.T)[0].T


def _bisect(
    before: Callable[[Array], Array], low: Float[Array, "*shape"], high: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Where `before` turns false, between `low` and `high`; one place an element."""

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        is_before = before(middle)
        return jnp.where(is_before, middle, low), jnp.where(is_before, high, middle)

    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (low, high))
    return (low + high) / 2
