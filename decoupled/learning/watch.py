"""Optimizers that notice numbers that are not finite, on the device: no step waits for the host."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from decoupled.learning.chain import Chain
from decoupled.learning.stack import modules_of
from decoupled.learning.state import EstimatorState, ModuleState
from decoupled.shapes import Integer
from decoupled.types import Array, Estimator, PyTree


class WatchState(NamedTuple):
    """Of one module, or one estimator.

    Those of a stack lie in one array, which has an axis of its blocks.

    Attributes:
      inner: state of the optimizer that is watched.
      updates: so many gradients have come.
      not_finite: so many of them were not finite.
      first: number of the first of these, counted from 1; 0 for none.
    """

    inner: optax.OptState
    updates: Integer[Array, "*blocks"]
    not_finite: Integer[Array, "*blocks"]
    first: Integer[Array, "*blocks"]


def watched(optimizer: optax.GradientTransformation, skip: bool = False) -> optax.GradientTransformation:
    """The same optimizer, which also counts gradients with a number in them that is not finite.

    Without `skip` only vectors are looked at, biases above all, where there are any: a number that is not
    finite reaches them in the same step or the next, and matrices would have to be kept for it (a tenth
    more memory).

    Args:
      optimizer: of a module or an estimator.
      skip: leave parameters and the optimizer's state as they are where a gradient is not finite.
    """

    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: PyTree) -> WatchState:
        # Three arrays, since states are donated.
        return WatchState(optimizer.init(params), *(jnp.zeros((), jnp.int32) for _ in range(3)))

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, WatchState]:
        leaves = jax.tree.leaves(updates)
        looked_at = leaves if skip else [leaf for leaf in leaves if leaf.ndim == 1] or leaves
        # A sum is finite unless one of its numbers is not (or is about to be).
        finite = jnp.isfinite(sum(jnp.sum(leaf, dtype=jnp.float32) for leaf in looked_at))
        updates, inner = optimizer.update(updates, state.inner, params, **extra)
        if skip:
            updates = jax.tree.map(lambda u: jnp.where(finite, u, jnp.zeros_like(u)), updates)
            inner = jax.tree.map(lambda new, old: jnp.where(finite, new, old), inner, state.inner)
        number = state.updates + 1
        first = jnp.where(finite | (state.first > 0), state.first, number)
        return updates, WatchState(inner, number, state.not_finite + ~finite, first)

    return optax.GradientTransformationExtraArgs(init, update)


def watched_estimator(estimator: Estimator, skip: bool = False) -> Estimator:
    """The same estimator, with an optimizer that is watched as a whole, whatever part it solves for."""
    own = estimator.optimizer or (lambda chosen: chosen)
    return estimator._replace(optimizer=lambda chosen: watched(own(chosen), skip))


class Watch(NamedTuple):
    """What one optimizer has noticed: see `WatchState`."""

    name: str
    updates: int
    not_finite: int
    first: int


def read_watches(
    chain: Chain, modules: Sequence[ModuleState], estimators: Sequence[EstimatorState]
) -> list[Watch]:
    """What the optimizers of a chain have noticed, lowest module first; those not watched are left out.

    Args:
      modules, estimators: states, one a link.
    """
    found: list[tuple[list[str], WatchState]] = []
    all_names = iter(chain.names)
    for link, module, estimator in itertools.zip_longest(chain.links, modules, estimators):
        names = list(itertools.islice(all_names, len(modules_of(link))))
        for what, state in (("the gradient of", module), ("the fit of the estimator after", estimator)):
            watches = [leaf for leaf in jax.tree.leaves(state, is_leaf=_is_watch) if _is_watch(leaf)]
            found += [([f"{what} {name}" for name in names], watch) for watch in watches[:1]]
    counts = jax.device_get([watch[1:] for _, watch in found])
    return [
        # Those of a stack lie in one array.
        Watch(name, *(int(count.reshape(-1)[i]) for count in counted))
        for (names, _), counted in zip(found, counts, strict=True)
        for i, name in enumerate(names)
    ]


def _is_watch(node: object) -> bool:
    return isinstance(node, WatchState)
