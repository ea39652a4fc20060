"""Estimators of one array made to serve an h that is a pytree with several real-valued leaves."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from decoupled.argument_checks import check_estimator
from decoupled.errors import UsageError
from decoupled.estimators.borrowing import lifted
from decoupled.leaves import joined_rows
from decoupled.shapes import AnyArray, Float, Shaped
from decoupled.types import Array, Estimator, Key, PyTree, Reads


def joined(estimator: Estimator) -> Estimator:
    """The estimator of all real-valued leaves as one: each example's are joined to one vector.

    It may then use each leaf for the gradient of every other. Joined vectors have no maps to convolve.

    Args:
      estimator: of one array (batch, features).
    """
    check_estimator("joined", estimator)
    if estimator.many_arrays:
        return estimator

    def init(key: Key, h: PyTree, y: PyTree) -> PyTree:
        return estimator.init(key, _vectors(h), y)

    def estimate(
        est_params: PyTree, h: PyTree, y: PyTree, signal: PyTree = None, *weight: Shaped[AnyArray, " batch"]
    ) -> PyTree:
        own = _vectors(signal) if estimator.reads is Reads.INCOMING else signal
        vectors = estimator.estimate(est_params, _vectors(h), y, own, *weight)
        leaves, structure = jax.tree.flatten(h)
        ends = itertools.accumulate(map(_width, leaves))
        parts = [vectors[:, end - _width(leaf) : end] for leaf, end in zip(leaves, ends, strict=True)]
        shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        return jax.tree.unflatten(structure, shaped)

    def training_gradient(
        est_params: PyTree, h: PyTree, y: PyTree, target: PyTree = None, *weight: Shaped[AnyArray, " batch"]
    ) -> tuple[Float[Array, ""], PyTree]:
        assert estimator.training_gradient is not None
        own = None if target is None else _vectors(target)
        return estimator.training_gradient(est_params, _vectors(h), y, own, *weight)

    return estimator._replace(
        name=f"joined({estimator.name})",
        init=init,
        estimate=estimate,
        training_gradient=None if estimator.training_gradient is None else training_gradient,
        many_arrays=True,
        borrows=lifted(estimator.borrows, joined),
        structure=lifted(estimator.structure, joined),
    )


def each(*estimators: Estimator) -> Estimator:
    """An estimator of its own for each real-valued leaf, which sees no other leaf.

    Args:
      estimators: one a leaf, in the order of `jax.tree.leaves`; or one for all, with parameters for each.

    Raises:
      UsageError: they do not read the same, or some descend the SG loss, others a loss of their own or
        none; or (from init) there are not as many as leaves.
    """
    for i, estimator in enumerate(estimators):
        check_estimator(f"each: estimator {i}", estimator)
        if estimator.sees_whole_h or estimator.borrows is not None or estimator.structure is not None:
            raise UsageError(f"each gives an estimator one array, but {estimator.name} sees all of them")
    kinds = {(e.reads, e.own_loss, e.training_gradient is None) for e in estimators}
    if len(kinds) != 1:
        raise UsageError(
            "each takes estimators that read the same and are fitted alike, not "
            + ", ".join(e.name for e in estimators)
        )
    first = estimators[0]

    def of(leaves: Sequence[PyTree]) -> tuple[Estimator, ...]:
        if len(estimators) not in (1, len(leaves)):
            raise UsageError(f"each was given {len(estimators)} estimators for {len(leaves)} arrays")
        return estimators * len(leaves) if len(estimators) == 1 else estimators

    def init(key: Key, h: PyTree, y: PyTree) -> PyTree:
        leaves = jax.tree.leaves(h)
        keys = jax.random.split(key, len(leaves))
        return tuple(e.init(k, leaf, y) for e, k, leaf in zip(of(leaves), keys, leaves, strict=True))

    def estimate(
        est_params: PyTree, h: PyTree, y: PyTree, signal: PyTree = None, *weight: Shaped[AnyArray, " batch"]
    ) -> PyTree:
        leaves, structure = jax.tree.flatten(h)
        signals = jax.tree.leaves(signal) if first.reads is Reads.INCOMING else [signal] * len(leaves)
        parts = zip(of(leaves), est_params, leaves, signals, strict=True)
        found = [
            e.estimate(p, leaf, y, s, *(weight if e.estimate_sees_weight else ()))
            for e, p, leaf, s in parts
        ]
        return jax.tree.unflatten(structure, found)

    def training_gradient(
        est_params: PyTree, h: PyTree, y: PyTree, target: PyTree = None, *weight: Shaped[AnyArray, " batch"]
    ) -> tuple[Float[Array, ""], PyTree]:
        leaves = jax.tree.leaves(h)
        targets = jax.tree.leaves(target) or [None] * len(leaves)
        parts = zip(of(leaves), est_params, leaves, targets, strict=True)
        results = [e.training_gradient(p, leaf, y, t, *weight) for e, p, leaf, t in parts]  # type: ignore
        return sum((loss for loss, _ in results), jnp.zeros(())), tuple(gradient for _, gradient in results)

    named = ", ".join(e.name for e in estimators)
    return first._replace(
        name=f"each({named})",
        init=init,
        estimate=estimate,
        training_gradient=None if first.training_gradient is None else training_gradient,
        optimizer=_one_each(of) if any(e.optimizer for e in estimators) else None,
        sees_y=any(e.sees_y for e in estimators),
        y_in_fit_alone=all(e.y_in_fit_alone or not e.sees_y for e in estimators),
        estimate_sees_weight=any(e.estimate_sees_weight for e in estimators),
        many_arrays=True,
    )


def _one_each(
    of: Callable[[Sequence[PyTree]], tuple[Estimator, ...]],
) -> Callable[[optax.GradientTransformation], optax.GradientTransformation]:
    """The optimizers of estimators side by side, each on the parameters of its own."""

    def beside(descent: optax.GradientTransformation) -> optax.GradientTransformation:
        def txs(number: int) -> list[optax.GradientTransformation]:
            return [e.optimizer(descent) if e.optimizer else descent for e in of([None] * number)]

        def init(params: PyTree) -> tuple[optax.OptState, ...]:
            own = _each_part(params)
            return tuple(tx.init(part) for tx, part in zip(txs(len(own)), own, strict=True))

        def update(
            updates: PyTree, state: PyTree, params: PyTree = None
        ) -> tuple[PyTree, tuple[optax.OptState, ...]]:
            steps = _each_part(updates)
            own = [None] * len(steps) if params is None else _each_part(params)
            parts = zip(txs(len(steps)), steps, state, own, strict=True)
            moved = [tx.update(step, s, p) for tx, step, s, p in parts]
            made = [step for step, _ in moved]
            named = isinstance(updates, Mapping)
            new = dict(zip(sorted(updates), made, strict=True)) if named else tuple(made)
            return new, tuple(s for _, s in moved)

        return optax.GradientTransformation(init, update)

    return beside


def _each_part(tree: PyTree) -> list[PyTree]:
    """The parameters of each estimator; NNX makes a dict of a tuple, by place."""
    return [tree[k] for k in sorted(tree)] if isinstance(tree, Mapping) else list(tree)


def _vectors(tree: PyTree) -> Float[AnyArray, "batch features"]:
    """All leaves of each example as one vector."""
    rows = joined_rows(tree)
    return rows.reshape(rows.shape[0], -1)


def _width(leaf: Shaped[AnyArray, "batch *features"]) -> int:
    return leaf.size // leaf.shape[0]
