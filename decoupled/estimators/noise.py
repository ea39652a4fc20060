"""The control: random numbers in the place of the gradient."""

import math

import jax
import jax.numpy as jnp

from decoupled.estimators.synthetic_gradient import flatten
from decoupled.shapes import AnyArray, Float
from decoupled.types import Array, Estimator, Key, PyTree


def noise(scale: float = 1.0) -> Estimator:
    """Normal noise, new for each activation, telling nothing.

    Estimates are pure functions, so each example's noise is drawn from a key of the boundary's into which
    the bits of its activation are folded: new whenever h is, the same for the same h.

    Args:
      scale: root mean square length of an example's noise.

    References:
      U17's table of methods.
    """

    def init(key: Key, h: Float[AnyArray, "batch *features"], y: PyTree) -> PyTree:
        del h, y
        return {"key": jax.random.key_data(key)}

    def estimate(
        est_params: PyTree, h: Float[Array, "batch *features"], y: PyTree, signal: None = None
    ) -> Float[Array, "batch *features"]:
        del y, signal
        rows = flatten(h).astype(jnp.float32)
        deviation = scale / math.sqrt(rows.shape[1])

        def draw(row: Float[Array, " features"]) -> Float[Array, " features"]:
            bits = jnp.sum(jax.lax.bitcast_convert_type(row, jnp.uint32), dtype=jnp.uint32)
            key = jax.random.fold_in(jax.random.wrap_key_data(est_params["key"]), bits)
            return deviation * jax.random.normal(key, row.shape)

        return jax.vmap(draw)(rows).reshape(h.shape)

    return Estimator("noise", init, estimate, None, sees_y=False)
