"""Activations of several arrays: pytrees whose leaves lead with the examples.

Leaves of real numbers have gradients. Others (masks, positions, tokens) pass through the network beside
them and have none, and so do arrays without a number in them, such as a memory that is still empty. So
whatever is a gradient has the structure of an activation's *real part*: the array itself where there is one
such leaf, as is usual, else a tuple of them in the order of `jax.tree.leaves`.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from decoupled.shapes import AnyArray, Float
from decoupled.types import PyTree


def real_part(h: PyTree) -> PyTree:
    """The leaves of real numbers: an array where there is one, else a tuple of arrays."""
    found = [leaf for leaf in jax.tree.leaves(h) if is_real(leaf)]
    return found[0] if len(found) == 1 else tuple(found)


def with_real_part(h: PyTree, real: PyTree) -> PyTree:
    """h with other leaves of real numbers, in the structure of its `real_part`."""
    leaves = iter(jax.tree.leaves(real))
    return jax.tree.map(lambda leaf: next(leaves) if is_real(leaf) else leaf, h)


def per_example(tree: PyTree, batch_axes: int) -> PyTree:
    """Makes one leading axis of those that count examples."""
    if batch_axes == 1:
        return tree

    def flatten(leaf: AnyArray) -> AnyArray:
        return leaf.reshape(math.prod(leaf.shape[:batch_axes]), *leaf.shape[batch_axes:])

    return jax.tree.map(flatten, tree)


def like(tree: PyTree, shapes: PyTree) -> PyTree:
    """The leaves of a tree in the shapes of those of another."""
    return jax.tree.map(lambda leaf, other: leaf.reshape(other.shape), tree, shapes)


def joined_rows(tree: PyTree) -> Float[AnyArray, "batch *features"]:
    """All leaves of real numbers as one array, (batch, features); one that is alone stays as it is."""
    leaves = jax.tree.leaves(tree)
    if len(leaves) == 1:
        return leaves[0]
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


def is_real(leaf: ArrayLike) -> bool:
    """Whether a leaf holds real numbers, and so has a gradient."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and not has_no_features(leaf)


def has_no_features(leaf: ArrayLike) -> bool:
    """Whether there is not one number an example in a leaf, as in (batch, 0)."""
    return 0 in jnp.shape(leaf)[1:]
