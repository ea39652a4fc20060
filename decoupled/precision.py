"""The precision that sums over many numbers need."""

import jax.numpy as jnp

from decoupled.types import Array


def at_least_float32(a: Array) -> Array:
    """An array for sums over many small numbers, which bfloat16 cannot hold; float64 stays."""
    return a.astype(jnp.promote_types(a.dtype, jnp.float32))
