"""Weights of examples: every mean over examples is a weighted mean, and one of weight 0 counts for nothing.

Without weights (None) all is computed as if there were none. With them, gradients *per example* stay those
of each example's own loss; what a weight multiplies is the cotangent that a module is differentiated with.
Where the weight is 0 there is no example whose gradient it would be: nothing is estimated there, and what
arrives (another example may have looked at it) is handed on as it is.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from decoupled.precision import at_least_float32
from decoupled.shapes import AnyArray, Float, Shaped
from decoupled.types import Array, PyTree


def mean(values: Shaped[AnyArray, " batch"], weight: Shaped[AnyArray, " batch"] | None) -> Float[Array, ""]:
    """Of one number an example; 0 where no example counts."""
    if weight is None:
        return values.mean()
    return (zeroed(values, weight) * shares(weight)).sum()


def mean_product(
    a: Float[Array, "batch n"], b: Float[Array, "batch m"], weight: Shaped[AnyArray, " batch"] | None
) -> Float[Array, "n m"]:
    """Mean over examples of the outer products of two vectors."""
    if weight is None:
        return a.T @ b / a.shape[0]
    return a.T @ (b * shares(weight)[:, None])


def shares(weight: Shaped[AnyArray, " batch"]) -> Float[Array, " batch"]:
    """What each example contributes to a mean: of sum 1, or 0 where no example counts."""
    weight = at_least_float32(weight)
    return divided(weight, weight.sum())


def divided(total: Float[AnyArray, "*shape"], number: Float[Array, ""]) -> Float[Array, "*shape"]:
    """total / number, and 0 where nothing was counted."""
    return jnp.where(number == 0, 0.0, total / jnp.where(number == 0, 1.0, number)).astype(total.dtype)


def as_cotangent(gradient: PyTree, weight: Shaped[AnyArray, " batch"] | None) -> PyTree:
    """Per-example gradients, multiplied with the weights of their examples.

    Args:
      gradient: leaves (batch, ...), with nothing of an example's own where its weight is 0.
      weight: None where all count alike.
    """
    return _scaled(gradient, weight, lambda g, w: g * w)


def as_gradient(cotangent: PyTree, weight: Shaped[AnyArray, " batch"] | None) -> PyTree:
    """The way back: per-example gradients from a weighted cotangent."""
    return _scaled(cotangent, weight, lambda g, w: g / w)


def chosen(weight: Shaped[AnyArray, "*examples"] | None, counted: PyTree, otherwise: PyTree) -> PyTree:
    """Rows of one tree where the example counts, of another where it does not."""
    if weight is None:
        return counted

    def choose(a: AnyArray, b: AnyArray) -> Array:
        return jnp.where(_along(weight, a) != 0, a, b)

    return jax.tree.map(choose, counted, otherwise)


def zeroed(tree: PyTree, weight: Shaped[AnyArray, " batch"] | None) -> PyTree:
    """Rows of examples that do not count become zero."""
    return chosen(weight, tree, jax.tree.map(jnp.zeros_like, tree)) if weight is not None else tree


def stand_in(tree: PyTree, weight: Shaped[AnyArray, " batch"] | None) -> PyTree:
    """The first example that counts in the place of each that does not, so that nothing of these is read.

    Zeros would not do: a length of zero, or a mask that masks all, has gradients that are not numbers. They
    are taken where no example counts at all.
    """
    if weight is None:
        return tree
    first, some = jnp.argmax(weight != 0), (weight != 0).any()

    def copied(leaf: AnyArray) -> Array:
        return jnp.where(some, leaf[first], jnp.zeros_like(leaf[first]))[None]

    return chosen(weight, tree, jax.tree.map(copied, tree))


def _scaled(
    tree: PyTree, weight: Shaped[AnyArray, " batch"] | None, scale: Callable[[Array, Array], Array]
) -> PyTree:
    if weight is None:
        return tree
    safe = jnp.where(weight == 0, 1, weight)

    def scaled(leaf: AnyArray) -> Array:
        return scale(at_least_float32(leaf), _along(safe, leaf)).astype(leaf.dtype)

    return jax.tree.map(scaled, tree)


def _along(weight: AnyArray, leaf: AnyArray) -> Array:
    return jnp.asarray(weight).reshape(*weight.shape, *[1] * (leaf.ndim - weight.ndim))
