"""Residual networks as chains of blocks to cut, after He et al. 2016 (arXiv 1512.03385)."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from decoupled.errors import UsageError
from decoupled.models.norm import normalise
from decoupled.modules import from_linen
from decoupled.shapes import AnyArray, Float, Real
from decoupled.types import Array, Module

# Blocks of each of the four stages, and whether they are bottlenecks: He et al., table 1.
_LARGE = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
_EXPANSION = 4  # of a bottleneck's channels, in its output
_DRAW = nn.initializers.he_normal()


def resnet(
    depth: int,
    num_outputs: int,
    *,
    width: int = 16,
    norm: str = "batch",
    dtype: DTypeLike = jnp.float32,
    axis_name: str | None = None,
) -> list[Module]:
    """For images of 32x32 or so: a stem, (depth - 2) / 2 residual blocks in three stages, the output layer.

    Shortcuts have no parameters (He et al., option A): where a stage begins, every second pixel is taken,
    and zeros are added for the channels that are new. The other blocks of a stage, in the first stage
    all, share their functions, so that `stack_equal` can stack them.

    Args:
      depth: 6 n + 2, as 20, 32, 44, 56 and 110 are: n blocks a stage.
      num_outputs: of the last layer.
      width: channels of the first stage, doubled at each of the other two.
      norm: "none", "batch" or "layer", after each convolution.
      dtype: of the computation; parameters stay float32.
      axis_name: of a mapped axis over which the batch is split, for batch normalisation.

    Raises:
      UsageError: no such network has this depth.
    """
    if depth < 8 or depth % 6 != 2:
        raise UsageError(
            f"no ResNet for small images has {depth} layers: choose 6 n + 2, like 20, 32, 44, 56 or 110"
        )
    style = {"norm": norm, "dtype": dtype, "axis_name": axis_name}
    stem = from_linen(Stem(width, large=False, **style), "stem")

    def block(channels: int, stride: int) -> nn.Module:
        return BasicBlock(channels, stride, projection=False, **style)

    blocks = _stages(block, [depth // 6] * 3, width, grows=False)
    return [stem, *blocks, from_linen(PooledOutput(num_outputs, dtype), "output")]


def resnet_large(
    depth: int,
    num_outputs: int,
    *,
    width: int = 64,
    small_images: bool = False,
    norm: str = "batch",
    dtype: DTypeLike = jnp.float32,
    axis_name: str | None = None,
) -> list[Module]:
    """For images of 224x224 or so: 7x7 stem with max pooling, four stages of residual blocks, output layer.

    With `small_images` what papers on CIFAR mean by ResNet-18: the stem is the 3x3 convolution of `resnet`,
    which leaves an image at its size, and the rest is the same.

    Shortcuts are projections where the shape changes (He et al., option B). Bottlenecks halve the image
    in their 3x3 convolution, as is usual today, where He et al. did it in the 1x1 below. The blocks of a
    stage that keep the shape share their functions, so that `stack_equal` can stack them.

    Args:
      depth: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks).
      num_outputs: of the last layer.
      width: channels of the first stage, doubled at each of the other three; a bottleneck's output has
        four times as many.
      small_images: they are of 32x32 or so.
      norm: "none", "batch" or "layer", after each convolution.
      dtype: of the computation; parameters stay float32.
      axis_name: of a mapped axis over which the batch is split, for batch normalisation.

    Raises:
      UsageError: no such network has this depth.
    """
    if depth not in _LARGE:
        raise UsageError(
            f"no ResNet for large images has {depth} layers: choose {', '.join(map(str, _LARGE))}"
        )
    counts, bottleneck = _LARGE[depth]
    style = {"norm": norm, "dtype": dtype, "axis_name": axis_name}
    stem = from_linen(Stem(width, large=not small_images, **style), "stem")

    def block(channels: int, stride: int) -> nn.Module:
        kind = BottleneckBlock if bottleneck else BasicBlock
        return kind(channels, stride, **style)

    blocks = _stages(block, counts, width, grows=bottleneck)
    return [stem, *blocks, from_linen(PooledOutput(num_outputs, dtype), "output")]


def _stages(
    block: Callable[[int, int], nn.Module], counts: Sequence[int], width: int, grows: bool
) -> list[Module]:
    """Stages that each begin with a halved image and twice the channels, but for the first.

    Args:
      block: (channels, stride) -> a residual block.
      counts: blocks of each stage.
      width: channels of the first stage.
      grows: whether a block's output has more channels than the stem's, so that in the first stage too
        the first block is unlike the others.
    """
    blocks: list[Module] = []
    for stage, count in enumerate(counts):
        channels = width * 2**stage
        equal = from_linen(block(channels, 1), "block")
        first = equal
        if stage:
            first = from_linen(block(channels, 2), "block")
        elif grows:
            first = from_linen(block(channels, 1), "block")
        run = [first, *[equal] * (count - 1)]
        blocks += [module._replace(name=f"stage_{stage}_block_{i}") for i, module in enumerate(run)]
    return blocks


class Stem(nn.Module):
    """Convolution, normalisation, ReLU of an image; a large one leaves it at a quarter of the size."""

    features: int
    large: bool
    norm: str = "batch"
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, h: Real[AnyArray, "batch height width channels"], train: bool
    ) -> Float[Array, "batch rows columns features"]:
        kernel, stride = (7, 2) if self.large else (3, 1)
        h = _convolved(h, self.features, kernel, stride, self.norm, self.dtype)
        h = nn.relu(normalise(self.norm, h, train, self.dtype, self.axis_name))
        return nn.max_pool(h, (3, 3), (2, 2), [(1, 1), (1, 1)]) if self.large else h


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, of (batch, height, width, channels)."""

    features: int
    stride: int = 1
    projection: bool = True
    norm: str = "batch"
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, h: Real[AnyArray, "batch height width channels"], train: bool
    ) -> Float[Array, "batch rows columns features"]:
        def layer(h: AnyArray, kernel: int, stride: int = 1) -> Array:
            h = _convolved(h, self.features, kernel, stride, self.norm, self.dtype)
            return normalise(self.norm, h, train, self.dtype, self.axis_name)

        shortcut = jnp.asarray(h, self.dtype)
        if self.stride > 1 or h.shape[-1] != self.features:
            project = self.projection
            shortcut = (
                layer(h, 1, self.stride) if project else _padded(shortcut, self.features, self.stride)
            )
        return nn.relu(shortcut + layer(nn.relu(layer(h, 3, self.stride)), 3))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; four times `features` come out."""

    features: int
    stride: int = 1
    norm: str = "batch"
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, h: Real[AnyArray, "batch height width channels"], train: bool
    ) -> Float[Array, "batch rows columns features"]:
        def layer(h: AnyArray, features: int, kernel: int, stride: int = 1) -> Array:
            h = _convolved(h, features, kernel, stride, self.norm, self.dtype)
            return normalise(self.norm, h, train, self.dtype, self.axis_name)

        wide = _EXPANSION * self.features
        shortcut = jnp.asarray(h, self.dtype)
        if self.stride > 1 or h.shape[-1] != wide:
            shortcut = layer(h, wide, 1, self.stride)
        h = nn.relu(layer(h, self.features, 1))
        h = nn.relu(layer(h, self.features, 3, self.stride))
        return nn.relu(shortcut + layer(h, wide, 1))


class PooledOutput(nn.Module):
    """Dense, of the mean over all pixels."""

    num_outputs: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Real[AnyArray, "batch height width channels"]) -> Float[Array, "batch outputs"]:
        return nn.Dense(self.num_outputs, dtype=self.dtype)(h.mean((1, 2)))


def _convolved(
    h: Real[AnyArray, "batch height width channels"],
    features: int,
    kernel: int,
    stride: int,
    norm: str,
    dtype: DTypeLike,
) -> Float[Array, "batch rows columns features"]:
    """A convolution around every `stride`-th pixel, from the first: what shortcuts take too.

    To be called inside a compact Linen method. A bias would be lost in the normalisation that follows.
    """
    around = kernel // 2
    return nn.Conv(
        features,
        (kernel, kernel),
        stride,
        [(around, around)] * 2,
        use_bias=norm == "none",
        kernel_init=_DRAW,
        dtype=dtype,
    )(h)


def _padded(
    h: Float[Array, "batch height width channels"], features: int, stride: int
) -> Float[Array, "batch rows columns features"]:
    """Every `stride`-th pixel, with as many zeros below and above the channels as make them `features`."""
    more = features - h.shape[-1]
    return jnp.pad(h[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)))
