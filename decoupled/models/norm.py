"""Normalisation inside a layer, chosen by name."""

import math

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from decoupled.errors import UsageError
from decoupled.shapes import Float
from decoupled.types import Array

NORMS = ("none", "batch", "layer")


def normalise(
    norm: str, h: Float[Array, "batch *features"], train: bool, dtype: DTypeLike, axis_name: str | None
) -> Float[Array, "batch *features"]:
    """Applies the normalisation `norm` inside a compact Linen method.

    Args:
      axis_name: of a mapped axis over which the batch is split; in training, batch
        statistics are then those of the whole batch. To initialise and to evaluate, no axis is needed.

    Raises:
      UsageError: in training, batch normalisation has one number a feature, which it would make zero.
    """
    if norm == "batch":
        devices = jax.lax.axis_size(axis_name) if train and axis_name else 1
        if train and devices * math.prod(h.shape[:-1]) == 1:
            raise UsageError(
                "batch normalisation of one example leaves nothing of it: choose a larger batch"
                " (config.batch_size), or another normalisation (config.model.norm=layer)"
            )
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=dtype, axis_name=axis_name)(
            h
        )
    if norm == "layer":
        return nn.LayerNorm(dtype=dtype)(h)
    return h
