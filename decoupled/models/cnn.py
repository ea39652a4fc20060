"""A convolutional network as a chain of layers to cut, after J16, section 3.3."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from decoupled.models.halving import halved
from decoupled.models.norm import normalise
from decoupled.models.output import OutputLayer
from decoupled.modules import from_linen
from decoupled.shapes import AnyArray, Float, Real
from decoupled.types import Array, Module


def cnn(
    features: Sequence[int],
    num_outputs: int,
    *,
    kernel_size: int = 5,
    norm: str = "none",
    dtype: DTypeLike = jnp.float32,
    axis_name: str | None = None,
) -> list[Module]:
    """One convolution layer per entry of `features`, each halving the image, then a linear layer.

    Args:
      features: channels of each convolution layer.
      num_outputs: of the last layer.
      kernel_size: of the square kernels.
      norm: "none", "batch" or "layer", before the ReLU.
      dtype: of the computation; parameters stay float32.
      axis_name: of a mapped axis over which the batch is split, for batch normalisation.
    """
    layers = [
        from_linen(ConvolutionLayer(channels, kernel_size, norm, dtype, axis_name), f"conv_{i}")
        for i, channels in enumerate(features)
    ]
    return [*layers, from_linen(OutputLayer(num_outputs, dtype), "output")]


class ConvolutionLayer(nn.Module):
    """Convolution, normalisation, ReLU, 2x2 max pooling of (batch, height, width, channels)."""

    features: int
    kernel_size: int
    norm: str = "none"
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, h: Real[AnyArray, "batch height width channels"], train: bool
    ) -> Float[Array, "batch rows columns features"]:
        kernel = (self.kernel_size, self.kernel_size)
        h = nn.Conv(self.features, kernel, dtype=self.dtype)(h)
        h = nn.relu(normalise(self.norm, h, train, self.dtype, self.axis_name))
        return halved(h)
