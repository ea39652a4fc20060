"""Normalisation inside a layer, chosen by name."""

import jax.numpy as jnp
from flax import linen as nn

from decoupled.types import Array

NORMS = ("none", "batch", "layer")


def normalise(norm: str, h: Array, train: bool, dtype: jnp.dtype, axis_name: str | None) -> Array:
    """Applies the normalisation `norm` inside a compact Linen method.

    Args:
      axis_name: of a mapped axis over which the batch is split; in training, batch
        statistics are then those of the whole batch. To initialise and to evaluate, no axis is needed.
    """
    if norm == "batch":
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=dtype, axis_name=axis_name)(
            h
        )
    if norm == "layer":
        return nn.LayerNorm(dtype=dtype)(h)
    return h
