"""What estimators that borrow have in common."""

from collections.abc import Callable
from typing import Any

import jax

from decoupled.errors import UsageError
from decoupled.leaves import per_example
from decoupled.shapes import AnyArray, Shaped
from decoupled.types import Borrows, Estimator, Module, ModuleVariables, PyTree
from decoupled.weights import stand_in


def borrower(name: str, borrows: Borrows, **traits: Any) -> Estimator:
    """An estimator before it is known what it borrows: a learner binds it, and nothing else can use it.

    It has a loss of its own, which it takes through modules, and so sees h as they do.

    Args:
      name: how metrics and tables call it.
      traits: other fields than those that all have who borrow.

    Raises:
      UsageError: `borrows` asks for what cannot be.
    """
    for what, number in (("every", borrows.every), ("next_modules", borrows.next_modules)):
        if number is not None and (not isinstance(number, int) or number < 1):
            raise UsageError(f"{name}: {what} is {number!r}, but must be a number of 1 or more")
    if not 0 <= borrows.decay < 1:
        raise UsageError(f"{name}: decay is {borrows.decay}, but must be in [0, 1)")

    def nobody_lends(*_: Any) -> Any:
        raise UsageError(
            f"{name} borrows parameters of modules above its boundary, which make_learner alone can lend:"
            " at a boundary in a model of your own take an estimator that borrows nothing"
        )

    return Estimator(
        name,
        nobody_lends,
        nobody_lends,
        None,
        own_loss=True,
        estimate_sees_weight=True,
        many_arrays=True,
        sees_whole_h=True,
        borrows=borrows,
        **traits,
    )


def rows_of(tree: PyTree, batch_axes: int, weight: Shaped[AnyArray, " batch"] | None) -> PyTree:
    """What a module has made, one example after another; of tokens that do not count stand-ins."""
    rows = per_example(tree, batch_axes)
    return rows if batch_axes == 1 else stand_in(rows, weight)


def apply_borrowed(module: Module, variables: ModuleVariables, h: PyTree) -> PyTree:
    """Output of a module in evaluation mode, where nothing is drawn and no statistics are gathered."""
    return module.apply(variables.params, variables.state, h, jax.random.key(0), False)[0]


def lifted(borrows: Borrows | None, lift: Callable[[Estimator], Estimator]) -> Borrows | None:
    """Of an estimator that is made of another by `lift`."""
    if borrows is None:
        return None
    return borrows._replace(bind=lambda modules, batch_axes: lift(borrows.bind(modules, batch_axes)))
