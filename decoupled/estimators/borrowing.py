"""What estimators have in common that are made of modules above: of copies of them, or of their like."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from decoupled import weights
from decoupled.errors import UsageError
from decoupled.leaves import like, per_example, real_part, with_real_part
from decoupled.shapes import AnyArray, Float, Shaped
from decoupled.types import (
    Array,
    Borrows,
    Estimator,
    Key,
    Module,
    ModuleVariables,
    PyTree,
    Structure,
    WithBorrowed,
)
from decoupled.weights import stand_in

_Told = TypeVar("_Told", Borrows, Structure)


def borrower(name: str, borrows: Borrows, is_trained: bool, **traits: Any) -> Estimator:
    """An estimator before it is known what it borrows: a learner binds it, and nothing else can use it.

    It has a loss of its own, which it takes through modules, and so sees h as they do.

    Args:
      name: how metrics and tables call it.
      is_trained: whether it has a `training_gradient` once it is bound.
      traits: other fields than those that all have who borrow.

    Raises:
      UsageError: `borrows` asks for what cannot be.
    """
    for what, number in (("every", borrows.every), ("next_modules", borrows.next_modules)):
        if number is not None and (not isinstance(number, int) or number < 1):
            raise UsageError(f"{name}: {what} is {number!r}, but must be a number of 1 or more")
    if not 0 <= borrows.decay < 1:
        raise UsageError(f"{name}: decay is {borrows.decay}, but must be in [0, 1)")

    message = (
        f"{name} borrows parameters of modules above its boundary, which make_learner alone can lend: at a"
        " boundary in a model of your own take an estimator that borrows nothing"
    )
    return unbound(name, message, is_trained, borrows=borrows, **traits)


def unbound(name: str, message: str, is_trained: bool, **traits: Any) -> Estimator:
    """An estimator with a loss of its own, before a learner has told it of the modules above its boundary.

    Args:
      name: how metrics and tables call it.
      message: what whoever uses it elsewhere is told.
      is_trained: whether it has a `training_gradient` once it is bound.
      traits: other fields than those that all such have.
    """

    def nobody_tells(*_: Any) -> Any:
        raise UsageError(message)

    return Estimator(
        name,
        nobody_tells,
        nobody_tells,
        nobody_tells if is_trained else None,
        own_loss=True,
        estimate_sees_weight=True,
        many_arrays=True,
        sees_whole_h=True,
        **traits,
    )


def descended(
    init: Callable[[Key, PyTree, PyTree], PyTree],
    losses: Callable[[PyTree, tuple[ModuleVariables, ...], PyTree, PyTree, AnyArray | None], Array],
    batch_axes: int,
    is_trained: bool = True,
) -> Estimator:
    """An estimator that gives its module the gradient of a loss through modules, and descends that itself.

    Args:
      init: (key, h, y) -> what it trains.
      losses: (what it trains, copies of modules where it borrows some, h, y, weight) -> (batch,).
      batch_axes: of h, that count examples.
      is_trained: whether there is anything to train.
    """

    def estimate(
        est_params: PyTree,
        h: PyTree,
        y: PyTree,
        signal: None = None,
        weight: Shaped[AnyArray, " batch"] | None = None,
    ) -> PyTree:
        del signal
        own, borrowed = _apart(est_params)

        def total(real: PyTree) -> Array:
            each = losses(own, borrowed, with_real_part(h, real), y, weight)
            return (each if weight is None else each * weight).sum()

        gradient = jax.grad(total)(real_part(h))
        return like(weights.as_gradient(per_example(gradient, batch_axes), weight), gradient)

    def training_gradient(
        est_params: PyTree,
        h: PyTree,
        y: PyTree,
        target: PyTree = None,
        weight: Shaped[AnyArray, " batch"] | None = None,
    ) -> tuple[Float[Array, ""], PyTree]:
        del target
        own, borrowed = _apart(est_params)

        def mean(own: PyTree) -> Array:
            return weights.mean(losses(own, borrowed, h, y, weight), weight)

        return jax.value_and_grad(mean)(own)

    return Estimator("", init, estimate, training_gradient if is_trained else None)


def _apart(est_params: PyTree) -> tuple[PyTree, tuple[ModuleVariables, ...]]:
    """What is trained, and the copies beside it."""
    return est_params if isinstance(est_params, WithBorrowed) else (est_params, ())


def rows_of(tree: PyTree, batch_axes: int, weight: Shaped[AnyArray, " batch"] | None) -> PyTree:
    """What a module has made, one example after another; of tokens that do not count stand-ins."""
    rows = per_example(tree, batch_axes)
    return rows if batch_axes == 1 else stand_in(rows, weight)


def apply_borrowed(module: Module, variables: ModuleVariables, h: PyTree) -> PyTree:
    """Output of a module in evaluation mode, where nothing is drawn and no statistics are gathered."""
    return module.apply(variables.params, variables.state, h, jax.random.key(0), False)[0]


def lifted(told: _Told | None, lift: Callable[[Estimator], Estimator]) -> _Told | None:
    """What an estimator needs that is made by `lift` of one that needs this."""
    if told is None:
        return None
    bind: Callable[..., Estimator] = told.bind
    return told._replace(bind=lambda *modules: lift(bind(*modules)))
