"""Normalisation inside a layer, chosen by name."""

import jax.numpy as jnp
from flax import linen as nn

from decoupled.types import Array

NORMS = ("none", "batch", "layer")


def normalise(norm: str, h: Array, train: bool, dtype: jnp.dtype) -> Array:
    """Applies the normalisation `norm` inside a compact Linen method."""
    if norm == "batch":
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=dtype)(h)
    if norm == "layer":
        return nn.LayerNorm(dtype=dtype)(h)
    return h
