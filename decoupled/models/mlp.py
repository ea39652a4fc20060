"""A multilayer perceptron as a chain of layers to cut."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from decoupled.models.norm import normalise
from decoupled.models.output import OutputLayer
from decoupled.modules import from_linen
from decoupled.shapes import AnyArray, Float, Real
from decoupled.types import Array, Module


def mlp(
    depth: int,
    width: int,
    num_outputs: int,
    *,
    norm: str = "none",
    dropout: float = 0.0,
    dtype: DTypeLike = jnp.float32,
    axis_name: str | None = None,
    activation: Callable[[Array], Array] = nn.relu,
) -> list[Module]:
    """`depth` hidden layers of `width` units, then a linear one: depth + 1 layers.

    Args:
      depth: number of hidden layers.
      width: units of each.
      num_outputs: of the last layer.
      norm: "none", "batch" or "layer", before the activation.
      dropout: rate, after the activation of hidden layers.
      dtype: of the computation; parameters stay float32.
      axis_name: of a mapped axis over which the batch is split, for batch normalisation.
      activation: of hidden layers, unit by unit.
    """
    # Equal layers share their functions, so that they can be stacked and compiled once.
    block = from_linen(HiddenLayer(width, norm, dropout, dtype, axis_name, activation), "hidden")
    hidden = [block._replace(name=f"hidden_{i}") for i in range(depth)]
    return [*hidden, from_linen(OutputLayer(num_outputs, dtype), "output")]


class HiddenLayer(nn.Module):
    """Dense, normalisation, activation, dropout, of a flattened input."""

    width: int
    norm: str = "none"
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, h: Real[AnyArray, "batch *shape"], train: bool) -> Float[Array, "batch units"]:
        h = nn.Dense(self.width, dtype=self.dtype)(h.reshape(h.shape[0], -1))
        h = self.activation(normalise(self.norm, h, train, self.dtype, self.axis_name))
        return nn.Dropout(self.dropout, deterministic=not train)(h)
