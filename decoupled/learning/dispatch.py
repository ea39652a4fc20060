"""The update as many small programs: one dispatch a piece, and one compilation for all equal pieces.

Flat in memory by construction: the state of a piece is donated to its own program, and nothing else of it
is left when that has run. It compiles in the time of one module, also where modules are not stacked; each
step pays for as many dispatches as there are modules.
"""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from decoupled.errors import UsageError
from decoupled.learning.borrowing import renewed
from decoupled.learning.chain import Chain, ChainState, ChainStep
from decoupled.learning.examples import Examples, examples_outside
from decoupled.learning.fused import pieces_of, run_pieces
from decoupled.learning.learner import Learner
from decoupled.learning.loss_value import remember
from decoupled.learning.microbatches import walk_in_parts
from decoupled.learning.stack import Stack
from decoupled.learning.state import LearnerState, Metrics
from decoupled.shapes import AnyArray, Integer, Shaped
from decoupled.types import Array, Key, PyTree
from decoupled.weights import mean


def dispatched(learner: Learner) -> Callable[..., tuple[LearnerState, Metrics]]:
    """`learner.update` as a function that is not to be jitted: it runs one jitted program a piece.

    A piece is a module, or several where they wait for one another (all of a backprop chain are one).
    The state that is given is donated: use the one that is returned.

    Raises:
      UsageError: the learner has stacks, or an update probability is below 1.
    """
    chain = learner.chain
    learner.must_update_every_step("a dispatched update")
    for link in chain.links:
        if isinstance(link, Stack):
            raise UsageError(f"{link.name} is a stack: a dispatched update takes its modules one by one")
    pieces = pieces_of(chain, size=1)
    programs: dict[tuple, Callable[..., ChainStep]] = {}

    def program_of(piece: Chain) -> Callable[..., ChainStep]:
        """The one for all pieces whose modules and estimators have the same functions."""
        lowest = piece.first == 0
        functions = tuple((module.init, module.apply, module.optimizer) for module in piece.modules)
        signature = (lowest, functions, piece.estimators, piece.below)
        if signature not in programs:

            def run(
                state: ChainState, first: Integer[Array, ""], h: PyTree, examples: Examples, key: Key
            ) -> ChainStep:
                here = piece._replace(first=0 if lowest else first)
                return walk_in_parts(learner.rules, here, state, h, examples, key, lambda index: None)

            programs[signature] = jax.jit(run, donate_argnums=0)
        return programs[signature]

    renew = jax.jit(partial(renewed, chain), donate_argnums=1)
    mean_loss = jax.jit(lambda losses, weight: mean(losses, weight))

    def update(
        state: LearnerState,
        x: PyTree,
        y: PyTree,
        key: Key,
        weight: Shaped[AnyArray, "*examples"] | None = None,
    ) -> tuple[LearnerState, Metrics]:
        x, examples = examples_outside(x, y, weight, learner.rules.batch_axes)

        def run(piece: Chain, state: ChainState, h: PyTree) -> ChainStep:
            return program_of(piece)(state, np.int32(piece.first), h, examples, key)

        parts = ChainState(state.modules, state.estimators)
        result = run_pieces(chain, pieces, parts, x, run)
        loss = mean_loss(result.losses, examples.weight)
        modules, estimators = remember(
            result.state.modules, result.state.estimators, loss, result.boundaries
        )
        if any(spec.borrows for spec in chain.estimators):
            estimators = renew(modules, estimators, state.step + 1)
        metrics = Metrics(loss, result.h_out, result.boundaries)
        return LearnerState(state.step + 1, modules, estimators), metrics

    return update
