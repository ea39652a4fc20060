"""Estimators that are made of modules above their boundary are told of these, once the chain is known."""

from collections.abc import Callable
from typing import Any, TypeVar

from decoupled.learning.chain import Chain
from decoupled.types import Borrows, Estimator, Structure

_Asked = TypeVar("_Asked", Borrows, Structure)


def with_bound(
    chain: Chain,
    asks: Callable[[Estimator], _Asked | None],
    arguments: Callable[[int, _Asked], tuple[Any, ...]],
) -> Chain:
    """The chain, where estimators have the functions that their `bind` makes.

    Args:
      asks: an estimator -> what has a `bind`; None: it is left as it is.
      arguments: (number of a boundary, what its estimator asks) -> what that `bind` is called with.
    """
    # Equal estimators of equal modules stay equal, and are compiled once.
    made: dict[tuple[Any, ...], Estimator] = {}

    def bound(k: int, spec: Estimator) -> Estimator:
        if (asked := asks(spec)) is None:
            return spec
        told = arguments(k, asked)
        if (spec, told) not in made:
            own = asked.bind(*told)
            made[spec, told] = spec._replace(
                init=own.init, estimate=own.estimate, training_gradient=own.training_gradient
            )
        return made[spec, told]

    return chain._replace(estimators=tuple(bound(k, spec) for k, spec in enumerate(chain.estimators)))
