"""The walk through a chain, or a piece of one: module by module, each settled as soon as it can be.

A module whose estimator reads nothing settles at once: forward, estimate, own backward, own update, and
then the fit of the estimator below to the input gradient that the backward pass produced (J16, section 2).
A module whose estimator reads the incoming gradient or the output error waits until that arrives. Backprop
is the chain in which all wait.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from decoupled.learning.chain import Chain, ChainState
from decoupled.learning.examples import Examples
from decoupled.learning.module_update import Passed, Rules, backward, error_of, estimate_at, fit, forward
from decoupled.learning.state import BoundaryMetrics
from decoupled.types import Array, Key, PyTree, Reads

# Index of a module in the network -> whether it takes part in this step; None: it always does.
Active: TypeAlias = Callable[[Array | int], Array | None]


class ChainStep(NamedTuple):
    """What a walk returns.

    Attributes:
      state: new states.
      h_out: output of the highest link, (batch, ...).
      grad_h_in: target for the estimator below the chain; None where nothing is below.
      losses: one an example, in one axis; None where an estimator stands above the highest link.
      boundaries: one entry for each of `Chain.estimators`: the metrics of its fit, if there was one.
      below: the same for `Chain.below`.
    """

    state: ChainState
    h_out: PyTree
    grad_h_in: PyTree
    losses: Any
    boundaries: tuple[BoundaryMetrics | None, ...]
    below: BoundaryMetrics | None


def walk(
    rules: Rules,
    chain: Chain,
    state: ChainState,
    h: PyTree,
    examples: Examples,
    key: Key,
    active: Active,
) -> ChainStep:
    """Updates every module of a chain without stacks, and every estimator that a target reaches.

    Args:
      h: what the lowest link is fed, with stand-ins for examples that do not count.
      examples: what is told of them.
      key: of the step; every module folds its index in the network into it.
      active: which modules take part. The estimator below a module that does not sits out with it.
    """
    links, specs, offsets = chain.modules, chain.estimators, chain.offsets
    modules, estimators, below = list(state.modules), list(state.estimators), state.below
    boundaries: list[BoundaryMetrics | None] = [None] * len(specs)
    h_ins: list[PyTree] = []
    waiting: dict[int, Passed] = {}
    grad_h_in = losses = below_metrics = None

    def estimate(k: int, h: PyTree, signal: PyTree) -> PyTree:
        est_params = state.estimators[k].params  # as they were before the step
        return estimate_at(rules, chain.where(k), specs[k], est_params, h, examples, signal)

    def settle(k: int, grad_h_out: PyTree) -> None:
        """Updates module k, fits the estimator below, and goes on with what waited for its gradient."""
        nonlocal grad_h_in, below, below_metrics
        while True:
            taking_part = active(offsets[k])
            new, grad = backward(rules, links[k], modules[k], waiting.pop(k), grad_h_out, examples.weight)
            modules[k] = chosen(taking_part, new, modules[k])
            if k == 0:
                grad_h_in = grad
                if chain.below is not None and below is not None:
                    fitted, below_metrics = fit(rules, chain.below, below, h_ins[0], examples, grad)
                    below = chosen(taking_part, fitted, below)
                return
            fitted, boundaries[k - 1] = fit(
                rules, specs[k - 1], estimators[k - 1], h_ins[k], examples, grad
            )
            estimators[k - 1] = chosen(taking_part, fitted, estimators[k - 1])
            if specs[k - 1].reads is not Reads.INCOMING:
                return
            grad_h_out = estimate(k - 1, h_ins[k], grad)
            k -= 1

    for k, link in enumerate(links):
        h_ins.append(h)
        # Nothing is below the first module of a network: its gradient would be wasted.
        lowest = k == 0 and isinstance(chain.first, int) and chain.first == 0
        waiting[k] = forward(rules, link, modules[k], h, jax.random.fold_in(key, offsets[k]), lowest)
        h = waiting[k].h_out
        if k < len(specs) and specs[k].reads is Reads.NOTHING:
            settle(k, estimate(k, h, None))
    if len(specs) < len(links):
        losses, error = error_of(rules, h, examples)
        settle(len(links) - 1, error)
        for k in reversed(range(len(specs))):
            if specs[k].reads is Reads.ERROR:
                settle(k, estimate(k, h_ins[k + 1], error))
    state = ChainState(tuple(modules), tuple(estimators), below)
    return ChainStep(state, h, grad_h_in, losses, tuple(boundaries), below_metrics)


def chosen(active: Array | None, new: PyTree, old: PyTree) -> PyTree:
    """The new values, or the old ones bit for bit where a module sits out."""
    if active is None:
        return new
    return jax.tree.map(lambda n, o: jnp.where(active, n, o), new, old)
