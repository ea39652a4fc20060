"""The updates of a stack, each a loop over its blocks that writes their states in place.

Where blocks are updated at once, one loop goes up (`update_on_the_way_up`). Where they wait for what is
above, one loop goes up and keeps what the way down needs (`run_up`), and one goes down and updates each
block as soon as its gradient is there (`update_on_the_way_down`): gradients never exist for more than one.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from decoupled.learning.chain import Chain, ChainState, ChainStep
from decoupled.learning.module_update import Passed, Rules, at_once, forward, no_metrics, vary_over
from decoupled.learning.residuals import made_of, packed, strongly_typed, unpacked
from decoupled.learning.stack import Index, Stack, put, take
from decoupled.learning.state import BoundaryMetrics, EstimatorState, ModuleState
from decoupled.shapes import Bool, Shaped
from decoupled.types import Array, Key, PyTree

# (piece of the chain, its state, h) -> what its walk returns.
Run: TypeAlias = Callable[[Chain, ChainState, PyTree], ChainStep]


def update_on_the_way_up(stack: Stack, run: Run, opaque_true: Bool[Array, ""] | None) -> Run:
    """The update of a stack whose estimators read nothing: in each turn a block is run as a piece.

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

        def turn(i: Index, carry: PyTree) -> PyTree:
            modules, estimators, below, above, h, metrics = carry
            piece = Chain((block,), (spec,), chain.first + i, spec)
            result = run(piece, ChainState((take(modules, i),), (above,), below), h)
            modules = put(modules, result.state.modules[0], i)
            estimators = put(estimators, result.state.below, i - 1)
            ahead = take(estimators, jnp.minimum(i + 1, depth - 1))
            return modules, estimators, above, ahead, result.h_out, put(metrics, result.below, i - 1)

        # Also read as a piece: else the compiler would copy the array before the loop writes to it.
        below, above = at_once(opaque_true, lambda all: (take(all, 0), take(all, 1)), estimators)
        carry = (modules, estimators, below, above, lowest.h_out, no_metrics(spec, (depth,)))
        modules, estimators, _, _, h, metrics = jax.lax.fori_loop(1, depth, turn, carry)
        state = ChainState((modules,), (estimators,), lowest.state.below)
        return ChainStep(state, h, lowest.grad_h_in, None, (metrics,), lowest.below)

    return update


class Slot(NamedTuple):
    """What the way down needs of a block, or along a leading axis of all, besides its input.

    Attributes:
      state: its new mutable state.
      residuals: arrays of its pullback, but for its input and what parameters alone give again.
    """

    state: PyTree
    residuals: list[Shaped[Array, "..."]]


class PassedStack(NamedTuple):
    """A stack that has run forward and waits for its gradient.

    Attributes:
      depth: number of blocks.
      h_out: of the highest block.
      slots: of all blocks.
      h_in: (index of a block, states of all) -> its input; what is above it may have been updated.
      block: (its index, its state, its input, its slot) -> a block as it has run forward.
    """

    depth: int
    h_out: PyTree
    slots: Slot
    h_in: Callable[[Index, ModuleState], PyTree]
    block: Callable[[Index, ModuleState, PyTree, Slot], Passed]


def run_up(
    rules: Rules, stack: Stack, modules: ModuleState, h: PyTree, key: Key, first: Index
) -> PassedStack:
    """Runs the blocks of a stack.

    Args:
      first: number of modules below the stack.
    """
    depth, every = len(stack.names), stack.recompute_every

    def run(state: ModuleState, h: PyTree, i: Index) -> Passed:
        # Loops make strong types of weak ones, and a pullback's arrays must be the same in all of them. And
        # what is alike on all devices below one block (a mask of ones) need not be so above it.
        state, h = strongly_typed((state, vary_over(rules.axis_name, h)))
        passed = forward(rules, stack.block, state, h, jax.random.fold_in(key, first + i), lowest=False)
        return passed._replace(h_out=vary_over(rules.axis_name, passed.h_out))

    def pullback_of(params: PyTree, h: PyTree, others: tuple[PyTree, Array]) -> list[Array]:
        mutable, i = others
        return jax.tree.leaves(run(ModuleState(params, mutable, ()), h, i).pullback)

    def place(i: Index) -> Index:
        """Of an input among those that are kept; one that is not has the place of the next."""
        return i - (i + every - 2) // every if every else i

    lowest, h = strongly_typed((take(modules, 0), vary_over(rules.axis_name, h)))
    is_kept = made_of(pullback_of, lowest.params, h, (lowest.state, jnp.int32(0)))
    room = jax.tree.map(lambda leaf: jnp.zeros((place(depth - 1) + 1, *leaf.shape), leaf.dtype), h)

    def turn(carry: tuple[PyTree, PyTree], block: tuple[PyTree, PyTree, Array]) -> PyTree:
        (h, inputs), (params, mutable, i) = carry, block
        passed = run(ModuleState(params, mutable, ()), h, i)
        leaves = jax.tree.leaves(passed.pullback)
        kept = [packed(leaf) for leaf, keep in zip(leaves, is_kept, strict=True) if keep]
        return (passed.h_out, put(inputs, h, place(i))), Slot(passed.state, kept)

    each = (modules.params, modules.state, jnp.arange(depth, dtype=jnp.int32))
    (h_out, inputs), slots = jax.lax.scan(turn, (h, vary_over(rules.axis_name, room)), each)

    def h_in(i: Index, modules: ModuleState) -> PyTree:
        def kept(i: Index) -> PyTree:
            return take(inputs, place(i))

        def computed_again(i: Index) -> PyTree:
            return run(take(modules, i - 1), kept(i - 1), i - 1).h_out

        return jax.lax.cond(i % every == 1, computed_again, kept, i) if every else kept(i)

    def block(i: Index, state: ModuleState, h: PyTree, slot: Slot) -> Passed:
        # Only what parameters alone give is computed again: nothing else of this is used.
        again = run(state, h, i)
        leaves, structure = jax.tree.flatten(again.pullback)
        kept = iter(slot.residuals)
        leaves = [
            unpacked(next(kept), leaf) if keep else leaf for leaf, keep in zip(leaves, is_kept, strict=True)
        ]
        return Passed(again.h_out, slot.state, structure.unflatten(leaves))

    return PassedStack(depth, h_out, slots, h_in, block)


def update_on_the_way_down(
    opaque_true: Bool[Array, ""] | None,
    passed: PassedStack,
    state: tuple[ModuleState, EstimatorState, BoundaryMetrics | None],
    grad_h_out: PyTree,
    update_block: Callable[[Index, ModuleState, Passed, PyTree], tuple[ModuleState, PyTree]],
    update_below: Callable[
        [Index, EstimatorState, PyTree, PyTree],
        tuple[EstimatorState, BoundaryMetrics | None, PyTree],
    ],
) -> tuple[tuple[ModuleState, EstimatorState, BoundaryMetrics | None], PyTree]:
    """Updates the blocks of a stack, the highest first, and the estimators between them.

    Args:
      opaque_true: see `at_once`.
      passed: the stack.
      state: of all blocks and the estimators above them, with these estimators' metrics.
      grad_h_out: gradient of the highest block's output.
      update_block: (index, state, the block as it has run, gradient of its output) -> new state, gradient
        of its input.
      update_below: (index of a block, state of the estimator below it, the block's input and its gradient)
        -> new state, metrics, gradient of the output of the block below.

    Returns:
      The new state, and the gradient of the lowest block's input.
    """
    highest = passed.depth - 1

    def turn(n: Index, carry: PyTree) -> PyTree:
        i = highest - n

        def update(modules: ModuleState, estimators: EstimatorState, slots: Slot, grad: PyTree) -> PyTree:
            old, h = take(modules, i), passed.h_in(i, modules)
            module, grad = update_block(i, old, passed.block(i, old, h, take(slots, i)), grad)
            return module, *update_below(i, take(estimators, i - 1), h, grad)

        (modules, estimators, metrics), grad = carry
        module, below, measured, grad = at_once(
            opaque_true, update, modules, estimators, passed.slots, grad
        )
        modules, estimators = put(modules, module, i), put(estimators, below, i - 1)
        return (modules, estimators, put(metrics, measured, i - 1)), grad

    def update_lowest(modules: ModuleState, slots: Slot, grad: PyTree) -> tuple[ModuleState, PyTree]:
        old, h = take(modules, 0), passed.h_in(0, modules)
        return update_block(0, old, passed.block(0, old, h, take(slots, 0)), grad)

    (modules, estimators, metrics), grad = jax.lax.fori_loop(0, highest, turn, (state, grad_h_out))
    # What is below the lowest block may be of another kind.
    lowest, grad = at_once(opaque_true, update_lowest, modules, passed.slots, grad)
    return (put(modules, lowest, 0), estimators, metrics), grad
