"""A small network that predicts from one activation, in the place of all that follows."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from decoupled.estimators.synthetic_gradient import flatten
from decoupled.modules.own_layers import own_layers
from decoupled.precision import at_least_float32
from decoupled.shapes import Float
from decoupled.types import Array, Key, PyTree

_ROWS = 7  # Larger maps are averaged down to about so many rows and columns.


class AuxiliaryHead(nn.Module):
    """A linear layer on top of ReLU layers on an activation, and one beside them; from zero.

    On an activation of lower precision than float32, such as bfloat16, layers compute in that precision.
    Parameters and outputs are float32 all the same, and so is what becomes of these: losses.

    Attributes:
      num_outputs: of the linear layers.
      hidden: widths of ReLU layers on the flattened activation.
      linear: whether there is a linear layer beside ReLU layers.
      filters: channels of ReLU convolutions on maps, in the place of `hidden`; empty to flatten maps too.
      kernel_size: of these.
    """

    num_outputs: int
    hidden: tuple[int, ...]
    linear: bool = True
    filters: tuple[int, ...] = ()
    kernel_size: int = 5

    @nn.compact
    def __call__(self, h: Float[Array, "batch *features"]) -> Float[Array, "batch outputs"]:
        if self.filters and h.ndim == 4:
            return self._on_maps(h)
        h = flatten(h)
        if not self.hidden or not self.linear:
            return self._above(h, self.hidden, bias=True)
        # One product for both layers that read h, since thin ones are slow.
        first, *others = self.hidden
        drawn = _zeros_in_the_last(self.num_outputs)
        both = nn.Dense(first + self.num_outputs, kernel_init=drawn, dtype=_dtype_on(h))(h)
        beside = at_least_float32(both[:, first:])
        return self._above(nn.relu(both[:, :first]), others, bias=False) + beside

    def _on_maps(self, h: Float[Array, "batch height width channels"]) -> Float[Array, "batch outputs"]:
        h = averaged(h, max(1, h.shape[1] // _ROWS), max(1, h.shape[2] // _ROWS))
        z = h
        for features in self.filters:
            z = nn.relu(nn.Conv(features, (self.kernel_size, self.kernel_size), dtype=_dtype_on(z))(z))
        out = self._above(flatten(averaged(z, min(2, z.shape[1]), min(2, z.shape[2]))), (), bias=True)
        return out + self._above(flatten(h), (), bias=False) if self.linear else out

    def _above(
        self, h: Float[Array, "batch features"], hidden: Sequence[int], bias: bool
    ) -> Float[Array, "batch outputs"]:
        for features in hidden:
            h = nn.relu(nn.Dense(features, dtype=_dtype_on(h))(h))
        zeros = nn.initializers.zeros
        out = nn.Dense(self.num_outputs, use_bias=bias, kernel_init=zeros, dtype=_dtype_on(h))(h)
        return at_least_float32(out)

    def predict(self, params: PyTree, h: Float[Array, "batch *features"]) -> Float[Array, "batch outputs"]:
        """Its output with given parameters."""
        with own_layers():
            out: Any = self.apply({"params": params}, h)
        return out

    def first_params(self, key: Key, h: Float[Array, "batch *features"]) -> PyTree:
        """Those to start from, for activations like h."""
        with own_layers():
            return self.init(key, h)["params"]


def _dtype_on(h: Float[Array, "batch *shape"]) -> DTypeLike | None:
    """In which a layer on h computes; None: in what h and the parameters have in common."""
    return h.dtype if h.dtype != jnp.promote_types(h.dtype, jnp.float32) else None


def averaged(
    h: Float[Array, "batch height width channels"], rows: int, columns: int
) -> Float[Array, "batch rows columns channels"]:
    """Means over windows of so many rows and columns; a remainder at the edges is left out."""
    window = (rows, columns)
    return nn.avg_pool(at_least_float32(h), window, window).astype(h.dtype)


def _zeros_in_the_last(count: int) -> Callable[..., Array]:
    """A kernel as `nn.Dense` has it by default, but for the last columns."""

    def init(key: Key, shape: tuple[int, int], dtype: DTypeLike = jnp.float32) -> Array:
        inputs, outputs = shape
        kernel = nn.initializers.lecun_normal()(key, (inputs, outputs - count), dtype)
        return jnp.concatenate([kernel, jnp.zeros((inputs, count), dtype)], axis=1)

    return init
