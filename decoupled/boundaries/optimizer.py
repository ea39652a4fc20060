"""An optimizer for a model with boundaries: one state for the layers, one for each estimator."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from decoupled.boundaries.linen import FEEDBACK
from decoupled.errors import UsageError
from decoupled.types import PyTree

_EST_PARAMS = "est_params"


class SplitState(NamedTuple):
    """The optax states: of the layers together, and of each boundary's estimator by the boundary's path."""

    layers: optax.OptState
    estimators: dict[str, optax.OptState]


def split_optimizer(
    layers: optax.GradientTransformation,
    estimators: optax.GradientTransformation | Mapping[str, optax.GradientTransformation],
) -> optax.GradientTransformationExtraArgs:
    """Applies `layers` to all parameters but those of boundaries, and `estimators` to each boundary's own.

    Works on the parameters of a Linen or NNX model, and on any tree in which an estimator's parameters
    are found under the key "est_params". A model without trained estimators has all its parameters in
    `layers`. What is under the key "feedback", were it passed along, stays as it is. Gradient clipping and
    the like belong inside `layers`: around this, they would measure the estimators' gradients too.

    Args:
      layers: for the model itself.
      estimators: for every boundary's estimator, each with a state of its own; or one transformation a
        boundary, by its path in the parameters, as in {"Boundary_0": ..., "block_1/Boundary_0": ...}.
        An estimator that solves for parameters (`recursive_least_squares`) makes an optimizer of the one
        for its others: `split_optimizer(optax.adam(1e-3), sg.optimizer(optax.adam(1e-3)))`.

    Raises:
      UsageError: (from init) a boundary has no transformation, or a path leads to no boundary.
    """
    layers = optax.with_extra_args_support(layers)

    def transformation(path: str) -> optax.GradientTransformationExtraArgs:
        tx = estimators[path] if isinstance(estimators, Mapping) else estimators
        return optax.with_extra_args_support(tx)

    def init(params: PyTree) -> SplitState:
        rest, boundaries = _split(params)
        if isinstance(estimators, Mapping) and estimators.keys() != boundaries.keys():
            raise UsageError(
                f"split_optimizer was given estimators' optimizers for {sorted(estimators)},"
                f" but the model's boundaries with trained estimators are {sorted(boundaries)}"
            )
        states = {path: transformation(path).init(subtree) for path, subtree in boundaries.items()}
        return SplitState(layers.init(rest), states)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, SplitState]:
        rest, boundaries = _split(updates)
        rest_params, boundary_params = (None, {}) if params is None else _split(params)
        rest, layers_state = layers.update(rest, state.layers, rest_params, **extra)
        states = {}
        for path, subtree in boundaries.items():
            tx, own = transformation(path), boundary_params.get(path)
            boundaries[path], states[path] = tx.update(subtree, state.estimators[path], own, **extra)
        return _join(updates, rest, boundaries), SplitState(layers_state, states)

    return optax.GradientTransformationExtraArgs(init, update)


def _split(tree: PyTree) -> tuple[PyTree, dict[str, PyTree]]:
    """The tree with None in place of estimators' leaves, and those of each estimator as nested dicts."""
    boundaries: dict[str, PyTree] = {}

    def place(path: tuple, leaf):
        if _is_fixed(path):
            return None
        where = _boundary_of(path)
        if where is None:
            return leaf
        boundary, keys = where
        node = boundaries.setdefault(boundary, {})
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = leaf
        return None

    return jax.tree.map_with_path(place, tree), boundaries


def _join(like: PyTree, rest: PyTree, boundaries: dict[str, PyTree]) -> PyTree:
    """Undoes `_split`."""
    others = iter(jax.tree.leaves(rest))

    def find(path: tuple, leaf):
        if _is_fixed(path):
            return jnp.zeros_like(leaf)
        where = _boundary_of(path)
        if where is None:
            return next(others)
        boundary, keys = where
        found = boundaries[boundary]
        for key in keys:
            found = found[key]
        return found

    return jax.tree.map_with_path(find, like)


def _keys(path: tuple) -> list:
    """The keys that lead to a leaf, without the attribute in which NNX's variables hold their arrays."""
    keys = [getattr(entry, "key", getattr(entry, "idx", None)) for entry in path]
    return [key for key in keys if key is not None]


def _is_fixed(path: tuple) -> bool:
    return FEEDBACK in _keys(path)


def _boundary_of(path: tuple) -> tuple[str, tuple] | None:
    """The path of the boundary that a leaf belongs to, and the leaf's keys within its est_params."""
    keys = _keys(path)
    if _EST_PARAMS not in keys:
        return None
    at = keys.index(_EST_PARAMS)
    within = tuple(keys[at + 1 :]) or ("",)  # parameters that are one array
    return "/".join(map(str, keys[:at])), within
