"""The fused update of a chain: in pieces that do not wait for one another, so that memory stays flat.

Once a piece is done, nothing of it is needed but its output and new state. The compiler does not see that
on its own: it puts off small operations and keeps the large arrays they need. So each piece is made whole.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from decoupled.errors import UsageError
from decoupled.learning.chain import Chain, ChainState
from decoupled.learning.examples import Examples
from decoupled.learning.microbatches import walk_in_parts
from decoupled.learning.module_update import Rules, at_once, no_metrics
from decoupled.learning.stack import Stack, put, take
from decoupled.learning.state import EstimatorState
from decoupled.learning.walk import Active, ChainStep
from decoupled.types import Array, Key, Module, PyTree, Reads

# (piece of the chain, its state, h) -> what its walk returns.
Run: TypeAlias = Callable[[Chain, ChainState, PyTree], ChainStep]

# So many modules make a piece. Within one, the update of a module and the forward pass of the next run side
# by side where they can, which gains up to a third of the time where a module does not fill the machine.
_MODULES_A_PIECE = 8


def update_chain(
    rules: Rules,
    chain: Chain,
    state: ChainState,
    h: PyTree,
    examples: Examples,
    key: Key,
    *,
    always: Array,
    active: Active = lambda index: None,
) -> ChainStep:
    """Updates every module of a chain, and every estimator that a target reaches.

    Args:
      h: what the lowest link is fed, with stand-ins for examples that do not count.
      examples: what is told of them.
      key: of the step; every module folds its index in the network into it.
      always: a scalar that is true, though no compiler can know (see `at_once`).
      active: which modules take part.

    Raises:
      UsageError: a stack, or the highest link, would have to wait for what is above it.
    """
    pieces = pieces_of(chain, _MODULES_A_PIECE)

    def run_whole(piece: Chain, state: ChainState, h: PyTree) -> ChainStep:
        def step(state: ChainState, h: PyTree, examples: Examples, key: Key) -> ChainStep:
            return walk_in_parts(rules, piece, state, h, examples, key, active)

        return at_once(always, step, state, h, examples, key)

    if pieces == [(0, len(chain.links))] and not isinstance(chain.links[0], Stack):
        return walk_in_parts(rules, chain, state, h, examples, key, active)

    def run(piece: Chain, state: ChainState, h: PyTree) -> ChainStep:
        link = piece.links[0]
        update = _update_stack(link, run_whole, always) if isinstance(link, Stack) else run_whole
        return update(piece, state, h)

    return run_pieces(chain, pieces, state, h, run)


def run_pieces(
    chain: Chain, pieces: list[tuple[int, int]], state: ChainState, h: PyTree, run: Run
) -> ChainStep:
    """Runs one piece after another, each fitting the estimator below it.

    Args:
      pieces: as `pieces_of` gives them.
      run: a piece's update.
    """
    modules, estimators = list(state.modules), list[Any](state.estimators)
    boundaries: list[Any] = [None] * len(chain.estimators)
    results: list[ChainStep] = []
    for start, stop in pieces:
        lower = chain.links[start - 1] if start > 0 else None
        below = _highest(lower, estimators[start - 1]) if lower is not None else state.below
        own = ChainState(tuple(modules[start:stop]), tuple(estimators[start:stop]), below)
        result = run(chain.piece(start, stop), own, h)
        results.append(result)
        h = result.h_out
        modules[start:stop], estimators[start:stop] = result.state.modules, result.state.estimators
        boundaries[start:stop] = result.boundaries
        if lower is not None:
            estimators[start - 1] = _with_highest(lower, estimators[start - 1], result.state.below)
            boundaries[start - 1] = _with_last(boundaries[start - 1], result.below)
    lowest, highest = results[0], results[-1]
    state = ChainState(tuple(modules), tuple(estimators), lowest.state.below)
    return ChainStep(state, h, lowest.grad_h_in, highest.losses, tuple(boundaries), lowest.below)


def pieces_of(chain: Chain, size: int) -> list[tuple[int, int]]:
    """First link of each piece, and the one after its last; a stack is a piece of its own.

    Args:
      size: least number of modules that make a piece.

    Raises:
      UsageError: a stack, or the highest link, would have to wait for what is above it.
    """
    reads = [estimator.reads for estimator in chain.estimators]
    # Whether all modules up to link k have settled once it has.
    free = [read is Reads.NOTHING and Reads.ERROR not in reads[:k] for k, read in enumerate(reads)]
    pieces, start, end = [], 0, len(chain.links)
    for k, link in enumerate(chain.links):
        if isinstance(link, Stack):
            if not (k < len(free) and free[k] and (k == 0 or free[k - 1])):
                raise UsageError(
                    f"{link.name} cannot be a stack: blocks, and what is below them, must not wait for what"
                    " is above; choose estimators that read nothing, or give the learner modules one by one"
                )
            pieces += [(start, k)] * (start < k) + [(k, k + 1)]
            start = k + 1
        elif k < len(free) and free[k] and k + 1 - start >= size:
            pieces.append((start, k + 1))
            start = k + 1
    if len(free) == end and not free[-1]:
        raise UsageError(
            f"{chain.where(end - 1)}: {chain.estimators[-1].name} waits for what is above, where no module"
            " may wait: choose an estimator that reads nothing"
        )
    return pieces + [(start, end)] * (start < end)


def _update_stack(stack: Stack, run: Run, always: Array) -> Run:
    """The update of a stack: a loop in which each block is run as a piece.

    In turn i the loop reads the state of block i and of the estimator above it, and writes block i and the
    estimator *below* it. Reading and writing neighbouring slots of one array in the same turn would have
    the compiler copy the array; so an estimator's slot is read one turn ahead, from the array that the turn
    before has just written.
    """
    block, depth = stack.block._replace(name=stack.name), len(stack.names)

    def update(chain: Chain, state: ChainState, h: PyTree) -> ChainStep:
        (modules,), (estimators,), (spec,) = state.modules, state.estimators, chain.estimators

        # What is below the lowest block may be of another kind, so it runs ahead of the loop.
        lowest_state = ChainState((take(modules, 0),), (take(estimators, 0),), state.below)
        lowest = run(Chain((block,), (spec,), chain.first, chain.below), lowest_state, h)
        modules = put(modules, lowest.state.modules[0], 0)

        def turn(i: Array | int, carry: Any) -> Any:
            modules, estimators, below, above, h, metrics = carry
            piece = Chain((block,), (spec,), chain.first + i, spec)
            result = run(piece, ChainState((take(modules, i),), (above,), below), h)
            modules = put(modules, result.state.modules[0], i)
            estimators = put(estimators, result.state.below, i - 1)
            ahead = take(estimators, jnp.minimum(i + 1, depth - 1))
            return modules, estimators, above, ahead, result.h_out, put(metrics, result.below, i - 1)

        # Also read as a piece: else the compiler would copy the array before the loop writes to it.
        below, above = at_once(always, lambda all: (take(all, 0), take(all, 1)), estimators)
        carry = (modules, estimators, below, above, lowest.h_out, no_metrics(spec, (depth,)))
        modules, estimators, _, _, h, metrics = jax.lax.fori_loop(1, depth, turn, carry)
        state = ChainState((modules,), (estimators,), lowest.state.below)
        return ChainStep(state, h, lowest.grad_h_in, None, (metrics,), lowest.below)

    return update


def _highest(link: Module | Stack, estimator: EstimatorState) -> EstimatorState:
    """The estimator above a link: that of its highest block."""
    return take(estimator, -1) if isinstance(link, Stack) else estimator


def _with_highest(link: Module | Stack, estimator: EstimatorState, new: Any) -> EstimatorState:
    return put(estimator, new, len(link.names) - 1) if isinstance(link, Stack) else new


def _with_last(measured: Any, new: Any) -> Any:
    """The metrics of a link's highest boundary, beside those of a stack's others."""
    if measured is None or new is None:
        return new
    return jax.tree.map(lambda inner, last: put(inner, last, inner.shape[0] - 1), measured, new)
