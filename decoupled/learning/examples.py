"""What a chain is told of the examples of a batch, beside what it is fed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from decoupled import weights
from decoupled.errors import UsageError
from decoupled.estimators.checks import check_weight
from decoupled.leaves import is_real, per_example
from decoupled.shapes import AnyArray, Shaped
from decoupled.types import Array, PyTree


class Examples(NamedTuple):
    """Of each example, in one leading axis; tokens where these are the examples.

    Attributes:
      y: context and labels, (batch, ...).
      weight: (batch,); None where all count alike. Where it is 0, y is that of an example that counts.
    """

    y: PyTree
    weight: Shaped[Array, " batch"] | None = None


def examples_of(
    x: PyTree, y: PyTree, weight: Shaped[AnyArray, "*examples"] | None, batch_axes: int = 1
) -> tuple[PyTree, Examples]:
    """x and what is told of its examples, with nothing in them of examples that do not count.

    An example that is left out is replaced by one that is not. A token stays as it is, since others may
    look at it: that they do not is the network's own affair. Only what is no number becomes 0 there.

    Args:
      x, y: of a batch.
      weight: in the axes that count examples.
      batch_axes: how many these are.

    Raises:
      UsageError: weight, or y where there is one, is not of the examples of x.
    """
    y = per_example(y, batch_axes)
    if weight is None:
        return x, Examples(y)
    weight = jnp.asarray(weight)
    check_weight("the learner", weight, x, batch_axes)
    rows = weight.reshape(-1)
    for leaf in jax.tree.leaves(y):
        if leaf.shape[:1] != rows.shape:
            raise UsageError(f"the learner: y has {leaf.shape[0]} examples, but weight has {rows.size}")
    x = weights.stand_in(x, rows) if batch_axes == 1 else _nan_cleared(x, weight)
    return x, Examples(weights.stand_in(y, rows), rows)


def _nan_cleared(x: PyTree, weight: Shaped[Array, "*examples"]) -> PyTree:
    """NaN becomes 0 in tokens that do not count; an infinity may be a mask."""

    def cleared(leaf: Shaped[AnyArray, "*shape"]) -> Shaped[AnyArray, "*shape"]:
        if leaf.shape[: weight.ndim] != weight.shape or not is_real(leaf):
            return leaf
        return weights.chosen(weight, leaf, jnp.where(jnp.isnan(leaf), 0, leaf))

    return jax.tree.map(cleared, x)


_compiled = jax.jit(examples_of, static_argnums=3)


def examples_outside(
    x: PyTree, y: PyTree, weight: Shaped[AnyArray, "*examples"] | None, batch_axes: int
) -> tuple[PyTree, Examples]:
    """`examples_of` where nothing is being traced: compiled if there is anything to compute."""
    return (examples_of if weight is None else _compiled)(x, y, weight, batch_axes)
