"""What a chain is told of the examples of a batch, beside what it is fed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from decoupled import weights
from decoupled.estimators.checks import check_weight
from decoupled.leaves import per_example
from decoupled.types import Array, PyTree


class Examples(NamedTuple):
    """Of each example, in one leading axis; tokens where these are the examples.

    Attributes:
      y: context and labels, (batch, ...).
      weight: (batch,); None where all count alike. Where it is 0, y is that of an example that counts.
    """

    y: PyTree
    weight: Array | None = None


def examples_of(x: PyTree, y: PyTree, weight: Array | None, batch_axes: int = 1) -> tuple[PyTree, Examples]:
    """x and what is told of its examples, with nothing in them of examples that do not count.

    An example that is left out is replaced by one that is not. A token stays, since others may look at it:
    what is a real number in it becomes 0, and what is none (its number, a mask) is left.

    Args:
      x, y: of a batch.
      weight: in the axes that count examples.
      batch_axes: how many these are.
    """
    y = per_example(y, batch_axes)
    if weight is None:
        return x, Examples(y)
    check_weight("the learner", weight, x, batch_axes)
    rows = weight.reshape(-1)
    x = weights.stand_in(x, rows) if batch_axes == 1 else _tokens_zeroed(x, weight)
    return x, Examples(weights.stand_in(y, rows), rows)


def _tokens_zeroed(x: PyTree, weight: Array) -> PyTree:
    def zeroed(leaf: Array) -> Array:
        counted = leaf.shape[: weight.ndim] == weight.shape and jnp.issubdtype(leaf.dtype, jnp.floating)
        return weights.zeroed(leaf, weight) if counted else leaf

    return jax.tree.map(zeroed, x)


_compiled = jax.jit(examples_of, static_argnums=3)


def examples_outside(
    x: PyTree, y: PyTree, weight: Array | None, batch_axes: int
) -> tuple[PyTree, Examples]:
    """`examples_of` where nothing is being traced: compiled if there is anything to compute."""
    return (examples_of if weight is None else _compiled)(x, y, weight, batch_axes)
