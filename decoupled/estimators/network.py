"""Synthetic gradients computed by any Linen network, and the two that J16 used."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from decoupled.errors import UsageError
from decoupled.estimators.synthetic_gradient import (
    Context,
    by_gradient,
    checked_context,
    flatten,
)
from decoupled.modules.own_layers import own_layers
from decoupled.shapes import AnyArray, Float, Shaped
from decoupled.types import Array, Estimator, Key, PyTree
from decoupled.weights import shares, stand_in

_NORMS = ("none", "batch", "layer")


def network(linen_module: nn.Module, context: Context = None, name: str = "network") -> Estimator:
    """An SG from a Linen module `(h, context or None) -> shape of h`, trained by gradient descent.

    The module may own parameters only: no mutable collections and no random streams. Let its last
    layer start at zero (`nn.initializers.zeros`), so that its module waits for it (J16).
    """
    return _network(linen_module, context, name, whole_batch=False)


def mlp(hidden: Sequence[int] = (256,), context: Context = None, norm: str = "none") -> Estimator:
    """ReLU layers of widths `hidden` on (h, y), then a linear layer from zero (J16, section 3.3).

    Args:
      hidden: widths.
      context: encodes y; None leaves it out.
      norm: "none", "batch" or "layer", before each ReLU. Of a batch it takes the statistics in every step,
        for the fit and for estimates, which then depend on all its examples (on one device).
    """
    _check_norm("mlp", norm)
    return _network(_MLP(tuple(hidden), norm), context, "mlp", norm == "batch")


def convolutional(
    features: Sequence[int] = (64,), kernel_size: int = 3, context: Context = None, norm: str = "none"
) -> Estimator:
    """ReLU convolutions, then one from zero; the context is broadcast to planes (J16, section 3.3).

    For activations (batch, height, width, channels). With no hidden `features` this is a spatially
    shared linear SG.

    Args:
      features: channels of the ReLU convolutions.
      kernel_size: of all.
      context: encodes y; None leaves it out.
      norm: as of `mlp`, channel by channel.
    """
    _check_norm("convolutional", norm)
    module = _Convolutional(tuple(features), kernel_size, norm)
    return _network(module, context, "convolutional", norm == "batch")


def _check_norm(name: str, norm: str) -> None:
    if norm not in _NORMS:
        raise UsageError(f"{name}: norm is {norm!r}, but must be one of {', '.join(_NORMS)}")


def _network(linen_module: nn.Module, context: Context, name: str, whole_batch: bool) -> Estimator:
    """See `network`.

    Args:
      whole_batch: whether the estimate of an example depends on the others: the module is then called with
        their weights, too.
    """

    def encode(y: PyTree) -> PyTree:
        return None if context is None else context(y)

    def init(key: Key, h: Float[AnyArray, "batch *features"], y: PyTree) -> PyTree:
        with own_layers():
            return linen_module.init(key, h, encode(y))["params"]

    def estimate(
        est_params: PyTree,
        h: Float[Array, "batch *features"],
        y: PyTree,
        signal: None = None,
        *weight: Shaped[AnyArray, " batch"],
    ) -> Float[Array, "batch *features"]:
        del signal
        h = stand_in(h, *weight) if weight else h
        with own_layers():
            out: Any = linen_module.apply({"params": est_params}, h, encode(y), *weight)
        return out

    return Estimator(
        name,
        init,
        estimate,
        by_gradient(estimate, whole_batch),
        sees_y=context is not None,
        estimate_sees_weight=whole_batch,
    )


class _MLP(nn.Module):
    hidden: tuple[int, ...]
    norm: str

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "batch *features"],
        context: Float[AnyArray, "batch context"] | None,
        weight: Shaped[AnyArray, " batch"] | None = None,
    ) -> Float[Array, "batch *features"]:
        out = flatten(h)
        width = out.shape[1]
        if context is not None:
            out = jnp.concatenate([out, checked_context(context, h)], axis=1)
        for features in self.hidden:
            out = nn.relu(_normalise(self.norm, nn.Dense(features)(out), weight))
        return nn.Dense(width, kernel_init=nn.initializers.zeros)(out).reshape(h.shape)


class _Convolutional(nn.Module):
    features: tuple[int, ...]
    kernel_size: int
    norm: str

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "batch height width channels"],
        context: Float[AnyArray, "batch context"] | None,
        weight: Shaped[AnyArray, " batch"] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        if h.ndim != 4:
            raise UsageError(
                "a convolutional synthetic gradient needs activations (batch, height, width, channels),"
                f" but at its boundary they are {h.shape}: use another estimator there"
            )
        batch, height, width, channels = h.shape
        out = h
        if context is not None:
            context = checked_context(context, h)
            planes = jax.lax.broadcast_in_dim(context, (batch, height, width, context.shape[1]), (0, 3))
            out = jnp.concatenate([out, planes], axis=-1)
        kernel = (self.kernel_size, self.kernel_size)
        for features in self.features:
            out = nn.relu(_normalise(self.norm, nn.Conv(features, kernel)(out), weight))
        return nn.Conv(channels, kernel, kernel_init=nn.initializers.zeros)(out)


def _normalise(
    norm: str, h: Float[Array, "batch *features"], weight: Shaped[AnyArray, " batch"] | None
) -> Float[Array, "batch *features"]:
    """Inside a compact Linen method."""
    if norm == "batch":
        return _BatchNorm()(h, weight)
    return nn.LayerNorm()(h) if norm == "layer" else h


class _BatchNorm(nn.Module):
    """By the statistics of the batch alone, of as many examples as weights say."""

    @nn.compact
    def __call__(
        self, h: Float[Array, "batch *positions channels"], weight: Shaped[AnyArray, " batch"] | None
    ) -> Float[Array, "batch *positions channels"]:
        channels = h.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        rows = h.reshape(len(h), -1, channels)
        share = jnp.full((len(h),), 1 / len(h)) if weight is None else shares(weight)
        mean = jnp.einsum("n,npc->c", share, rows) / rows.shape[1]
        variance = jnp.einsum("n,npc->c", share, jnp.square(rows - mean[None, None])) / rows.shape[1]
        spread = jax.lax.rsqrt(variance + 1e-5) * scale
        return ((rows - mean[None, None]) * spread[None, None] + bias[None, None]).reshape(h.shape)
