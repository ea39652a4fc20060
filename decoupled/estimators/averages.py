"""Running averages among est_params, and the leaf that tells their optimizer how their means were summed.

In boundary form an est_gradient comes as the gradients of all parameters do: scaled as the loss is, summed
over the boundary's calls and over devices. A gradient is meant to be. The mean over examples of anything
else has to be divided by what it was multiplied with, and that is what has become of the leaf "weight",
whose own mean over examples is 1.
"""

import jax.numpy as jnp

from decoupled import weights
from decoupled.precision import at_least_float32
from decoupled.shapes import AnyArray, Float, Shaped
from decoupled.types import Array


def no_weight() -> Float[Array, ""]:
    """The leaf "weight" of est_params, which stays as it is."""
    return jnp.zeros(())


def weight_of(
    rows: Float[Array, "batch features"], weight: Shaped[AnyArray, " batch"] | None = None
) -> Float[Array, ""]:
    """The leaf "weight" of an est_gradient: the mean, over examples (batch, features), of 1."""
    return weights.mean(jnp.ones_like(at_least_float32(rows[:, 0])), weight)


def mean_of(
    summed: Float[AnyArray, "*layers_and_shape"],
    weight: Float[AnyArray, "*layers"],
    otherwise: Float[AnyArray, "*layers_and_shape"] | float,
) -> Float[Array, "*layers_and_shape"]:
    """The mean over examples, of a leaf of an est_gradient.

    Args:
      summed: the leaf.
      weight: the leaf "weight" of the same est_gradient; with leading axes where layers are stacked.
      otherwise: the value where no example has come: the backward pass went by the boundary.
    """
    weight = weight.reshape(*weight.shape, *[1] * (summed.ndim - weight.ndim))
    return jnp.where(weight != 0, summed / jnp.where(weight != 0, weight, 1.0), otherwise)
