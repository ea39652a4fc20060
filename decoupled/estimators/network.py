"""Synthetic gradients computed by any Linen network, and the two that J16 used."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from decoupled.errors import UsageError
from decoupled.estimators.synthetic_gradient import Context, by_gradient, checked_context, flatten
from decoupled.modules.own_layers import own_layers
from decoupled.shapes import AnyArray, Float
from decoupled.types import Array, Estimator, Key, PyTree


def network(linen_module: nn.Module, context: Context = None, name: str = "network") -> Estimator:
    """An SG from a Linen module `(h, context or None) -> shape of h`, trained by gradient descent.

    The module may own parameters only: no mutable collections and no random streams. Let its last
    layer start at zero (`nn.initializers.zeros`), so that its module waits for it (J16).
    """

    def encode(y: PyTree) -> PyTree:
        return None if context is None else context(y)

    def init(key: Key, h: Float[AnyArray, "batch *features"], y: PyTree) -> PyTree:
        with own_layers():
            return linen_module.init(key, h, encode(y))["params"]

    def estimate(
        est_params: PyTree, h: Float[Array, "batch *features"], y: PyTree, signal: None = None
    ) -> Float[Array, "batch *features"]:
        del signal
        with own_layers():
            out: Any = linen_module.apply({"params": est_params}, h, encode(y))
        return out

    train = by_gradient(estimate)
    return Estimator(name, init, estimate, train, sees_y=context is not None)


def mlp(hidden: Sequence[int] = (256,), context: Context = None) -> Estimator:
    """ReLU layers of widths `hidden` on (h, y), then a linear layer from zero (J16, section 4.1)."""
    return network(_MLP(tuple(hidden)), context, "mlp")


def convolutional(
    features: Sequence[int] = (64,), kernel_size: int = 3, context: Context = None
) -> Estimator:
    """ReLU convolutions, then one from zero; the context is broadcast to planes (J16, section 4.1).

    For activations (batch, height, width, channels). With no hidden `features` this is a spatially
    shared linear SG.
    """
    return network(_Convolutional(tuple(features), kernel_size), context, "convolutional")


class _MLP(nn.Module):
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(
        self, h: Float[Array, "batch *features"], context: Float[AnyArray, "batch context"] | None
    ) -> Float[Array, "batch *features"]:
        out = flatten(h)
        width = out.shape[1]
        if context is not None:
            out = jnp.concatenate([out, checked_context(context, h)], axis=1)
        for features in self.hidden:
            out = nn.relu(nn.Dense(features)(out))
        return nn.Dense(width, kernel_init=nn.initializers.zeros)(out).reshape(h.shape)


class _Convolutional(nn.Module):
    features: tuple[int, ...]
    kernel_size: int

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "batch height width channels"],
        context: Float[AnyArray, "batch context"] | None,
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
            out = nn.relu(nn.Conv(features, kernel)(out))
        return nn.Conv(channels, kernel, kernel_init=nn.initializers.zeros)(out)
