"""The last layer of a classifier."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from decoupled.shapes import AnyArray, Float, Real
from decoupled.types import Array


class OutputLayer(nn.Module):
    """Dense, of a flattened input."""

    num_outputs: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Real[AnyArray, "batch *shape"]) -> Float[Array, "batch outputs"]:
        return nn.Dense(self.num_outputs, dtype=self.dtype)(h.reshape(h.shape[0], -1))
