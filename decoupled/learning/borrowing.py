"""What estimators borrow: copies of modules above their boundary, made at the start and again now and then.

Between two renewals a copy is state like any other, and what happens above does not reach it: the module
below stays update-unlocked. In the step after a renewal it has waited, once, for the update before.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from decoupled.errors import UsageError
from decoupled.learning.binding import with_bound
from decoupled.learning.chain import Chain
from decoupled.learning.stack import Stack, modules_of, take
from decoupled.learning.state import EstimatorState, ModuleState, Shared
from decoupled.precision import at_least_float32
from decoupled.shapes import Integer
from decoupled.types import Array, Borrows, Module, ModuleVariables, PyTree


def bound(chain: Chain, batch_axes: int) -> Chain:
    """The chain, where estimators that borrow know of which modules.

    Args:
      chain: a whole network.
      batch_axes: that count examples.

    Raises:
      UsageError: above the blocks of a stack there are not the same modules.
    """

    def arguments(k: int, borrows: Borrows) -> tuple[tuple[Module, ...], int]:
        lenders = _lenders(chain, k, borrows)
        return tuple(module._replace(name="") for module in lenders), batch_axes

    return with_bound(chain, lambda spec: spec.borrows, arguments)


def first_copies(
    chain: Chain, modules: tuple[ModuleState, ...], estimators: tuple[EstimatorState, ...]
) -> tuple[EstimatorState, ...]:
    """The estimators' states with copies of what they borrow."""
    # Arrays of their own, since states are donated.
    return tuple(
        estimator
        if spec.borrows is None
        else estimator._replace(borrowed=jax.tree.map(jnp.array, lent(chain, k, modules)))
        for k, (spec, estimator) in enumerate(zip(chain.estimators, estimators, strict=True))
    )


def renewed(
    chain: Chain,
    modules: tuple[ModuleState, ...],
    estimators: tuple[EstimatorState, ...],
    steps: Integer[Array, ""],
) -> tuple[EstimatorState, ...]:
    """The estimators' states at the end of a step, with new copies where it is time for them.

    Args:
      modules: as the step has left them.
      steps: that have been taken, this one included.
    """

    def renew(k: int, estimator: EstimatorState) -> EstimatorState:
        borrows = chain.estimators[k].borrows
        if borrows is None:
            return estimator
        copies = jax.lax.cond(
            steps % borrows.every == 0,
            lambda old: moved(borrows.decay, old, lent(chain, k, modules)),
            lambda old: old,
            estimator.borrowed,
        )
        return estimator._replace(borrowed=copies)

    return tuple(renew(k, estimator) for k, estimator in enumerate(estimators))


def moved(decay: float, old: PyTree, now: PyTree) -> PyTree:
    """Copies at a renewal: the new values, or averages with the old ones."""

    def move(old: Array, now: Array) -> Array:
        if decay == 0 or not jnp.issubdtype(now.dtype, jnp.inexact):
            return now
        before = at_least_float32(old)
        return (before + (1 - decay) * (now - before)).astype(old.dtype)

    return jax.tree.map(move, old, now)


def lent(chain: Chain, k: int, modules: tuple[ModuleState, ...]) -> PyTree:
    """What the estimator above link k borrows, as it is now.

    Args:
      chain: a whole network.
      modules: one entry a link of it.

    Returns:
      A tuple of `ModuleVariables`; above a stack `Shared` by its blocks where it is the network's last
      module, and otherwise with one slot a block.
    """
    link, borrows = chain.links[k], chain.estimators[k].borrows
    assert borrows is not None
    places = _places(chain, k, borrows)
    if not isinstance(link, Stack):
        return tuple(_variables(chain, modules, place) for place in places)
    if borrows.next_modules is None:
        return Shared(tuple(_variables(chain, modules, place) for place in places))
    own = ModuleVariables(modules[k].params, modules[k].state)
    top = int(chain.offsets[k]) + len(link.names)

    def slots(ahead: int) -> ModuleVariables:
        """Of each block, the module so many above it."""
        above = [_variables(chain, modules, top + i) for i in range(ahead)]

        def shift(stacked: Array, *leaves: Array) -> Array:
            return jnp.concatenate([stacked[ahead:], *(leaf[None] for leaf in leaves)])

        return jax.tree.map(shift, own, *above)

    return tuple(slots(ahead) for ahead in range(1, borrows.next_modules + 1))


def _places(chain: Chain, k: int, borrows: Borrows) -> list[int]:
    """Places in the network of what is borrowed above link k; above a stack, that of its highest block."""
    end, above = len(chain.modules), int(chain.offsets[k]) + len(modules_of(chain.links[k]))
    if borrows.next_modules is None:
        return [end - 1]
    return list(range(above, min(above + borrows.next_modules, end)))


def _lenders(chain: Chain, k: int, borrows: Borrows) -> tuple[Module, ...]:
    """The modules that are borrowed above link k: of all blocks alike, where it is a stack."""
    link, places = chain.links[k], _places(chain, k, borrows)
    lenders = tuple(chain.modules[place] for place in places)
    if isinstance(link, Stack) and borrows.next_modules is not None:
        number = borrows.next_modules
        if len(lenders) < number or any(_functions([m]) != _functions([link.block]) for m in lenders):
            raise UsageError(
                f"{chain.where(k)}: {chain.estimators[k].name} borrows the next {number}, which above the"
                f" highest blocks are others than above the lowest: keep the {number} highest out of the"
                " stack"
            )
    return lenders


def _functions(modules: Iterable[Module]) -> list[Any]:
    return [(module.init, module.apply) for module in modules]


def _variables(chain: Chain, modules: tuple[ModuleState, ...], place: int) -> ModuleVariables:
    """Of a module of the network."""
    for link, entry, offset in zip(chain.links, modules, chain.offsets, strict=True):
        if offset <= place < offset + len(modules_of(link)):
            state = take(entry, place - offset) if isinstance(link, Stack) else entry
            return ModuleVariables(state.params, state.state)
    raise AssertionError("a module of another network")
