"""What a pullback needs of the forward pass, made small enough to be kept for many modules at once."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from decoupled.shapes import Shaped
from decoupled.types import Array, PyTree


def made_of(run: Callable[..., Sequence[Array]], given: PyTree, h: PyTree, others: PyTree) -> list[bool]:
    """Of each array that `run(given, h, others)` returns, whether h or `others` take part in it.

    Those that are h itself do not count. What is left is `given` itself, or made of it alone (in another
    precision, say), and need not be kept where `given` and h are.
    """
    jaxpr = jax.make_jaxpr(run)(given, h, others).jaxpr
    inputs = jaxpr.invars[len(jax.tree.leaves(given)) :]
    touched = set(inputs)
    for equation in jaxpr.eqns:
        if any(not isinstance(var, Literal) and var in touched for var in equation.invars):
            touched.update(equation.outvars)
    is_h = set(inputs[: len(jax.tree.leaves(h))])
    return [not isinstance(v, Literal) and v in touched and v not in is_h for v in jaxpr.outvars]


def packed(leaf: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Truth values (of a ReLU, of dropout) as bits; other arrays as they are."""
    return jnp.packbits(leaf) if leaf.dtype == jnp.bool_ else leaf


def unpacked(leaf: Shaped[Array, "..."], like: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """The way back to the shape of `like`."""
    if like.dtype != jnp.bool_:
        return leaf
    return jnp.unpackbits(leaf, count=like.size).reshape(like.shape).astype(bool)


def strongly_typed(tree: PyTree) -> PyTree:
    """The same values, none of which gives way to another type, as Python's numbers do."""

    def strong(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        return jax.lax.convert_element_type(leaf, leaf.dtype) if leaf.weak_type else leaf

    return jax.tree.map(strong, tree)
