"""An optimizer for a model with boundaries: one state for the layers, one for each estimator."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.core import FrozenDict, unfreeze

from decoupled.argument_checks import check_optimizer
from decoupled.boundaries.linen import TAPS
from decoupled.boundaries.nnx import Feedback, Tap
from decoupled.errors import UsageError
from decoupled.modules.linen import FEEDBACK
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

    Works on the parameters of a Linen or NNX model, on an NNX model itself, of which it moves `nnx.Param`s,
    and on any tree in which an estimator's parameters are found under the key or attribute "est_params",
    which is no name for a layer therefore. A model without trained estimators has all its parameters in
    `layers`. Where all of a model's variables are passed, the collections "feedback" and "taps" beside
    "params" stay as they are. Gradient clipping and the like belong inside `layers`: around this, they
    would measure the estimators' gradients too.

    Args:
      layers: for the model itself.
      estimators: for every boundary's estimator, each with a state of its own; or one transformation a
        boundary, by its path in the parameters, as in {"Boundary_0": ..., "block_1/Boundary_0": ...}.
        Paths that would read alike are those of `jax.tree_util.keystr`: "['a/b']" and "['a']['b']".
        An estimator that solves for parameters (`recursive_least_squares`) makes an optimizer of the one
        for its others: `split_optimizer(optax.adam(1e-3), sg.optimizer(optax.adam(1e-3)))`.

    Raises:
      UsageError: (from init) a boundary has no transformation, or a path leads to no boundary; (from
        update) there is a gradient of a boundary that init was not shown.
    """
    check_optimizer("split_optimizer, layers", layers)
    for name, tx in estimators.items() if isinstance(estimators, Mapping) else [("estimators", estimators)]:
        check_optimizer(f"split_optimizer, {name}", tx)
    layers = optax.with_extra_args_support(layers)

    def transformation(path: str) -> optax.GradientTransformationExtraArgs:
        tx = estimators[path] if isinstance(estimators, Mapping) else estimators
        return optax.with_extra_args_support(tx)

    def init(params: PyTree) -> SplitState:
        split = _split(params)
        if isinstance(estimators, Mapping) and estimators.keys() != split.boundaries.keys():
            raise UsageError(
                f"split_optimizer was given estimators' optimizers for {sorted(estimators)},"
                f" but the model's boundaries with trained estimators are {sorted(split.boundaries)}"
            )
        states = {path: transformation(path).init(subtree) for path, subtree in split.boundaries.items()}
        return SplitState(layers.init(split.rest), states)

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, SplitState]:
        split = _split(updates)
        rest_params, boundary_params = (None, {}) if params is None else _split(params)[:2]
        rest, layers_state = layers.update(split.rest, state.layers, rest_params, **extra)
        boundaries, states = dict(split.boundaries), dict(state.estimators)
        if unknown := boundaries.keys() - states.keys():
            raise UsageError(
                f"split_optimizer was given gradients of the boundaries {sorted(unknown)}, but its init was"
                f" shown {sorted(states)}: initialise it with the parameters of the same model"
            )
        for path, subtree in boundaries.items():
            tx, own = transformation(path), boundary_params.get(path)
            boundaries[path], states[path] = tx.update(subtree, state.estimators[path], own, **extra)
        new = split.join(rest, boundaries)
        return _like(updates, new), SplitState(layers_state, states)

    return optax.GradientTransformationExtraArgs(init, update)


class _Split(NamedTuple):
    """A tree of parameters or of their gradients, taken apart.

    Attributes:
      rest: the tree with None in the place of estimators' parameters and of what is fixed.
      boundaries: each estimator's parameters, as its own `init` made them, by the path of the boundary.
      entries: the tree's leaves, where an estimator's parameters count as one.
      owners: of each entry: the path of its boundary, `_FIXED`, or None where it is the layers'.
      structure: what makes the tree of entries.
    """

    rest: PyTree
    boundaries: dict[str, PyTree]
    entries: list[PyTree]
    owners: list[Any]
    structure: jax.tree_util.PyTreeDef

    def join(self, rest: PyTree, boundaries: Mapping[str, PyTree]) -> PyTree:
        """The tree with other values, and zeros for what is fixed."""

        def value(owner: Any, entry: PyTree, of_layers: PyTree) -> PyTree:
            if owner is None:
                return of_layers
            if owner is _FIXED:
                return jax.tree.map(jnp.zeros_like, entry)
            return jax.tree.unflatten(jax.tree.structure(entry), jax.tree.leaves(boundaries[owner]))

        values = map(value, self.owners, self.entries, self.structure.flatten_up_to(rest))
        return jax.tree.unflatten(self.structure, values)


_FIXED = object()


def _split(tree: PyTree) -> _Split:
    if isinstance(tree, nnx.Module):
        tree = nnx.state(tree, nnx.Param)
    if isinstance(tree, nnx.State):
        tree = nnx.filter_state(tree, nnx.Not(Tap))
    has_collections = isinstance(tree, Mapping) and "params" in tree

    def is_fixed(path: tuple, node: PyTree) -> bool:
        collection = has_collections and len(path) == 1 and _key(path[0]) in (FEEDBACK, TAPS)
        return collection or isinstance(node, Feedback)

    def is_entry(path: tuple, node: PyTree) -> bool:
        return is_fixed(path, node) or _is_est_params(path)

    found, structure = jax.tree.flatten_with_path(tree, is_leaf=is_entry, is_leaf_takes_path=True)
    names = _names([path[:-1] for path, _ in found if _is_est_params(path)])
    owners, boundaries = [], {}
    for path, entry in found:
        owner: Any = _FIXED if is_fixed(path, entry) else None
        if owner is None and _is_est_params(path) and jax.tree.leaves(entry):
            owner = names[path[:-1]]
            boundaries[owner] = _plain(entry)
        owners.append(owner)
    entries = [entry for _, entry in found]
    of_layers = [entry if owner is None else None for entry, owner in zip(entries, owners, strict=True)]
    return _Split(jax.tree.unflatten(structure, of_layers), boundaries, entries, owners, structure)


def _like(updates: PyTree, new: PyTree) -> PyTree:
    """What `_split` has read of an NNX module, as a module again, in which nothing else moves."""
    if not isinstance(updates, nnx.Module):
        return new
    graph, _, others = nnx.split(updates, nnx.Param, ...)
    return nnx.merge(graph, new, jax.tree.map(jnp.zeros_like, others))


def _is_est_params(path: tuple) -> bool:
    return bool(path) and _key(path[-1]) == _EST_PARAMS


def _key(entry: Any) -> Any:
    """What leads on: a dict's key, an attribute's name or an index."""
    fields = (getattr(entry, field) for field in ("key", "name", "idx") if hasattr(entry, field))
    return next(fields, entry)


def _names(paths: list[tuple]) -> dict[tuple, str]:
    """Each path as text: "block_1/Boundary_0", or as `keystr` writes it where that would read alike."""
    short = {path: "/".join(str(_key(entry)) for entry in path) for path in paths}
    count = Counter(short.values())
    return {p: name if count[name] == 1 else jax.tree_util.keystr(p) for p, name in short.items()}


def _plain(est_params: PyTree) -> PyTree:
    """Arrays without NNX's variables around them, in plain dicts."""
    if isinstance(est_params, nnx.State):
        est_params = nnx.to_pure_dict(est_params)
    est_params = unfreeze(est_params) if isinstance(est_params, FrozenDict) else est_params

    def unwrapped(leaf: Any) -> Any:
        return leaf[...] if isinstance(leaf, nnx.Variable) else leaf

    return jax.tree.map(unwrapped, est_params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
