"""VGG networks for small images as chains of layers, after Nøkland & Eidnes 2019 (arXiv 1901.06656)."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from decoupled.errors import UsageError
from decoupled.models.halving import halved
from decoupled.models.mlp import HiddenLayer
from decoupled.models.norm import normalise
from decoupled.models.output import OutputLayer
from decoupled.modules import from_linen
from decoupled.shapes import AnyArray, Float, Real
from decoupled.types import Array, Module

VGG8B = (128, 256, "pool", 256, 512, "pool", 512, "pool", 512, "pool")
VGG11B = (128, 128, 128, 256, "pool", 256, 512, "pool", 512, 512, "pool", 512, "pool")


def vgg(
    num_outputs: int,
    layers: Sequence[int | str] = VGG8B,
    *,
    width: float = 1.0,
    dense: Sequence[int] = (1024,),
    norm: str = "batch",
    dropout: float = 0.0,
    dtype: DTypeLike = jnp.float32,
    axis_name: str | None = None,
) -> list[Module]:
    """3x3 convolution layers, dense layers, then a linear one; "pool" is no layer of its own.

    An image is halved at the start of the layer above: boundaries lie below the pooling, as the local
    losses of Nøkland & Eidnes do. Layers that follow one another and keep the shape share their functions,
    so that `stack_equal` can stack them.

    Args:
      num_outputs: of the last layer.
      layers: channels of each convolution layer, and "pool" where the image is halved.
      width: what channels are multiplied by, rounded down; dense layers stay as they are.
      dense: units of the layers between the last convolution and the output.
      norm: "none", "batch" or "layer", before the ReLU.
      dropout: rate, after the ReLU.
      dtype: of the computation; parameters stay float32.
      axis_name: of a mapped axis over which the batch is split, for batch normalisation.

    Raises:
      UsageError: `layers` has something else than channels and "pool"; (from init) the image is too small
        to be halved so often.
    """
    options = {"norm": norm, "dropout": dropout, "dtype": dtype, "axis_name": axis_name}
    chain: list[Module] = []
    pools = below = 0
    equal = None
    for entry in layers:
        if entry == "pool":
            pools += 1
            continue
        channels = int(entry * width) if isinstance(entry, int) and not isinstance(entry, bool) else 0
        if channels < 1:
            raise UsageError(
                f"{entry!r} is no layer of a VGG of width {width}: give numbers of channels, and 'pool'"
                " where the image is to be halved"
            )
        # Those after the first that keep the shape share their functions.
        keeps_shape = channels == below and not pools
        layer = equal if keeps_shape and equal else from_linen(ConvolutionLayer(channels, pools, **options))
        equal = layer if keeps_shape else None
        chain.append(layer._replace(name=f"conv_{len(chain)}"))
        pools, below = 0, channels
    for i, units in enumerate(dense):
        chain.append(from_linen(DenseLayer(units, pools, **options), f"dense_{i}"))
        pools = 0
    return [*chain, from_linen(PooledOutput(num_outputs, pools, dtype), "output")]


class ConvolutionLayer(nn.Module):
    """Halving, 3x3 convolution, normalisation, ReLU, dropout of (batch, height, width, channels)."""

    features: int
    pools: int = 0
    norm: str = "batch"
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, h: Real[AnyArray, "batch height width channels"], train: bool
    ) -> Float[Array, "batch rows columns features"]:
        h = nn.Conv(self.features, (3, 3), dtype=self.dtype)(_halved(h, self.pools))
        h = nn.relu(normalise(self.norm, h, train, self.dtype, self.axis_name))
        return nn.Dropout(self.dropout, deterministic=not train)(h)


class DenseLayer(nn.Module):
    """Halving, then a hidden layer of the flattened image."""

    width: int
    pools: int = 0
    norm: str = "batch"
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, h: Real[AnyArray, "batch height width channels"], train: bool
    ) -> Float[Array, "batch units"]:
        hidden = HiddenLayer(self.width, self.norm, self.dropout, self.dtype, self.axis_name)
        return hidden(_halved(h, self.pools), train)


class PooledOutput(nn.Module):
    """Halving, then the output layer."""

    num_outputs: int
    pools: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Real[AnyArray, "batch *shape"]) -> Float[Array, "batch outputs"]:
        return OutputLayer(self.num_outputs, self.dtype)(_halved(h, self.pools))


def _halved(h: Real[AnyArray, "batch *shape"], times: int) -> Real[AnyArray, "batch *halved"]:
    for _ in range(times):
        h = halved(h)
    return h
