"""A chain cut into stages that run at different times, each on its own minibatch.

A stage is a piece of the chain with the estimator above its highest module. It runs forward and updates all
its modules from one minibatch without waiting for anything above. What it cannot do at once is to fit the
estimator on top: the target for that arrives later, from the stage above, and belongs to a minibatch seen
before. Whoever runs stages keeps (h_out, y) of that minibatch until then.
"""

import itertools
from collections.abc import Sequence

from decoupled.errors import UsageError
from decoupled.learning.chain import Chain, ChainState
from decoupled.learning.examples import Examples
from decoupled.learning.module_update import Rules, fit
from decoupled.learning.stack import Stack
from decoupled.learning.state import BoundaryMetrics, LearnerState
from decoupled.shapes import Integer
from decoupled.types import Array, PyTree, Reads


def cut_into_stages(chain: Chain, num_stages: int) -> tuple[Chain, ...]:
    """Stages of nearly equal numbers of links, lowest first; the lower ones get what is left over.

    Args:
      chain: a whole network.
      num_stages: from 1 to the number of links.

    Raises:
      UsageError: there are fewer links than stages, or an estimator between stages would have to wait.
    """
    links = len(chain.links)
    if not 1 <= num_stages <= links:
        raise UsageError(
            f"cannot make {num_stages} stages of {links} modules: choose 1 to {links}, or more boundaries"
        )
    sizes = [links // num_stages + (i < links % num_stages) for i in range(num_stages)]
    edges = list(itertools.accumulate(sizes, initial=0))
    stages = []
    for start, stop in itertools.pairwise(edges):
        if stop < links and isinstance(chain.links[stop - 1], Stack):
            raise UsageError(
                f"{chain.links[stop - 1].name} is a stack: it cannot end a stage; give modules one by one"
            )
        stages.append(Chain(chain.links[start:stop], chain.estimators[start:stop], chain.offsets[start]))
        if stop < links and chain.estimators[stop - 1].reads is not Reads.NOTHING:
            name, reads = chain.estimators[stop - 1].name, chain.estimators[stop - 1].reads.value
            raise UsageError(
                f"{chain.where(stop - 1)}: {name} reads the {reads} signal, which a stage would wait"
                " for; choose an estimator that reads nothing between stages"
            )
    return tuple(stages)


def split_state(stages: Sequence[Chain], state: LearnerState) -> tuple[ChainState, ...]:
    """The state of each stage."""
    split, start = [], 0
    for stage in stages:
        stop = start + len(stage.links)
        split.append(ChainState(state.modules[start:stop], state.estimators[start:stop]))
        start = stop
    return tuple(split)


def join_states(step: Integer[Array, ""], states: Sequence[ChainState]) -> LearnerState:
    """The state of the whole chain, from those of its stages."""
    modules = tuple(module for state in states for module in state.modules)
    estimators = tuple(estimator for state in states for estimator in state.estimators)
    return LearnerState(step, modules, estimators)


def fit_top(
    rules: Rules, stage: Chain, state: ChainState, h: PyTree, examples: Examples, target: PyTree
) -> tuple[ChainState, BoundaryMetrics | None]:
    """Fits the estimator above a stage to the target that has come down for an earlier minibatch.

    Args:
      h: output of the stage when it saw that minibatch, whose `examples` these are.
      target: grad_h_in that the stage above computed for it, shape of h.
    """
    *others, top = state.estimators
    fitted, metrics = fit(rules, stage.estimators[-1], top, h, examples, target)
    return state._replace(estimators=(*others, fitted)), metrics
