"""The fused update of a chain: in pieces that do not wait for one another, so that memory stays flat.

Once a piece is done, nothing of it is needed but its output and new state. The compiler does not see that
on its own: it puts off small operations and keeps the large arrays they need. So each piece is run apart.
"""

from typing import Any

from decoupled.errors import UsageError
from decoupled.learning.chain import Chain, ChainState, ChainStep
from decoupled.learning.examples import Examples
from decoupled.learning.microbatches import walk_in_parts
from decoupled.learning.module_update import Rules, at_once
from decoupled.learning.stack import Stack, highest, with_highest
from decoupled.learning.stack_loops import Run, update_on_the_way_up
from decoupled.learning.state import BoundaryMetrics
from decoupled.learning.walk import Active
from decoupled.shapes import Bool
from decoupled.types import Array, Key, PyTree, Reads

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
    opaque_true: Bool[Array, ""],
    active: Active = lambda index: None,
) -> ChainStep:
    """Updates every module of a chain, and every estimator that a target reaches.

    Args:
      h: what the lowest link is fed, with stand-ins for examples that do not count.
      examples: what is told of them.
      key: of the step; every module folds its index in the network into it.
      opaque_true: a scalar that is true, though no compiler can know (see `at_once`).
      active: which modules take part.

    Raises:
      UsageError: the highest link would have to wait for what is above it.
    """
    pieces = pieces_of(chain, _MODULES_A_PIECE)

    def run_apart(piece: Chain, state: ChainState, h: PyTree) -> ChainStep:
        def step(state: ChainState, h: PyTree, examples: Examples, key: Key) -> ChainStep:
            return walk_in_parts(rules, piece, state, h, examples, key, active)

        return at_once(opaque_true, step, state, h, examples, key)

    def run(piece: Chain, state: ChainState, h: PyTree) -> ChainStep:
        first, *others = piece.links
        if isinstance(first, Stack) and not others:
            return update_on_the_way_up(first, run_apart, opaque_true)(piece, state, h)
        # A stack is passed from loop to loop, not as what a piece is given: it would be copied.
        if len(pieces) == 1 or any(isinstance(link, Stack) for link in piece.links):
            return walk_in_parts(rules, piece, state, h, examples, key, active, opaque_true)
        return run_apart(piece, state, h)

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
    boundaries: list[BoundaryMetrics | None] = [None] * len(chain.estimators)
    results: list[ChainStep] = []
    for start, stop in pieces:
        lower = chain.links[start - 1] if start > 0 else None
        below = highest(lower, estimators[start - 1]) if lower is not None else state.below
        own = ChainState(tuple(modules[start:stop]), tuple(estimators[start:stop]), below)
        result = run(chain.piece(start, stop), own, h)
        results.append(result)
        h = result.h_out
        modules[start:stop], estimators[start:stop] = result.state.modules, result.state.estimators
        boundaries[start:stop] = result.boundaries
        if lower is not None:
            estimators[start - 1] = with_highest(lower, estimators[start - 1], result.state.below)
            boundaries[start - 1] = with_highest(lower, boundaries[start - 1], result.below)
    lowest = results[0]
    state = ChainState(tuple(modules), tuple(estimators), lowest.state.below)
    return ChainStep(state, h, lowest.grad_h_in, results[-1].losses, tuple(boundaries), lowest.below)


def pieces_of(chain: Chain, size: int) -> list[tuple[int, int]]:
    """First link of each piece, and the one after its last; a stack that does not wait is one of its own.

    Args:
      size: least number of modules that make a piece.

    Raises:
      UsageError: the highest link would have to wait for what is above it.
    """
    reads = [estimator.reads for estimator in chain.estimators]
    # Whether all modules up to link k have been updated once it has.
    free = [read is Reads.NOTHING and Reads.ERROR not in reads[:k] for k, read in enumerate(reads)]
    pieces, start, end = [], 0, len(chain.links)
    for k, link in enumerate(chain.links):
        if isinstance(link, Stack) and free[k] and (k == 0 or free[k - 1]):
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
