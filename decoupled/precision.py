"""The precision that sums over many numbers need."""

import jax.numpy as jnp

from decoupled.shapes import AnyArray, Array, Float, Shaped


def at_least_float32(a: Shaped[AnyArray, "*shape"]) -> Float[Array, "*shape"]:
    """An array for sums over many small numbers, which bfloat16 cannot hold; float64 stays."""
    return jnp.asarray(a).astype(jnp.promote_types(a.dtype, jnp.float32))
