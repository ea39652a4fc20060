"""The walk through a chain, or a piece of one: module by module, each updated as soon as it can be.

A module whose estimator reads nothing is updated at once: forward, estimate, own backward, own update, and
then the fit of the estimator below to the input gradient that the backward pass produced (J16).
A module whose estimator reads the incoming gradient or the output error waits until that arrives. Backprop
is the chain in which all wait.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from decoupled.learning.chain import Chain, ChainState, ChainStep
from decoupled.learning.examples import Examples
from decoupled.learning.module_update import (
    Passed,
    Rules,
    at_once,
    backward,
    error_of,
    estimate_at,
    fit,
    forward,
    no_metrics,
)
from decoupled.learning.stack import Index, Stack, highest, with_highest
from decoupled.learning.stack_loops import (
    PassedStack,
    run_up,
    update_on_the_way_down,
    update_on_the_way_up,
)
from decoupled.learning.state import BoundaryMetrics, EstimatorState, ModuleState
from decoupled.shapes import Bool
from decoupled.types import Array, Key, PyTree, Reads

# Index of a module in the network -> whether it takes part in this step; None: all do.
Active: TypeAlias = Callable[[Index], Bool[Array, ""] | None]


def walk(
    rules: Rules,
    chain: Chain,
    state: ChainState,
    h: PyTree,
    examples: Examples,
    key: Key,
    active: Active,
    opaque_true: Bool[Array, ""] | None = None,
) -> ChainStep:
    """Updates every module of a chain, and every estimator that a target reaches.

    Args:
      h: what the lowest link is fed, with stand-ins for examples that do not count.
      examples: what is told of them.
      key: of the step; every module folds its index in the network into it.
      active: which modules are updated; the estimator below one that is not stays as it is too.
      opaque_true: for the loops of stacks (see `at_once`).
    """
    links, specs, offsets = chain.links, chain.estimators, chain.offsets
    modules, estimators, below = list(state.modules), list(state.estimators), state.below
    boundaries: list[BoundaryMetrics | None] = [
        no_metrics(spec, (len(link.names),)) if isinstance(link, Stack) else None
        for link, spec in zip(links, specs, strict=False)
    ]
    h_ins: list[PyTree] = []
    waiting: dict[int, Passed] = {}
    waiting_stacks: dict[int, PassedStack] = {}
    grad_h_in = losses = error = below_metrics = None

    def estimate(k: int, h: PyTree, signal: PyTree) -> PyTree:
        est_params = highest(links[k], state.estimators[k]).est_params  # as they were before the step
        return estimate_at(rules, chain.where(k), specs[k], est_params, h, examples, signal)

    def update_link(k: int, grad_h_out: PyTree) -> None:
        """Updates link k, fits the estimator below, and goes on with what waited for its gradient."""
        nonlocal grad_h_in, below, below_metrics
        while True:
            taking_part, link = active(offsets[k]), links[k]
            if isinstance(link, Stack):
                grad = update_waiting_stack(k, link, grad_h_out)
            else:
                new, grad = backward(rules, link, modules[k], waiting.pop(k), grad_h_out, examples.weight)
                modules[k] = chosen(taking_part, new, modules[k])
            if k == 0:
                grad_h_in = grad
                if chain.below is not None and below is not None:
                    fitted, below_metrics = fit(rules, chain.below, below, h_ins[0], examples, grad)
                    below = chosen(taking_part, fitted, below)
                return
            old = highest(links[k - 1], estimators[k - 1])
            fitted, metrics = fit(rules, specs[k - 1], old, h_ins[k], examples, grad)
            fitted = chosen(taking_part, fitted, old)
            estimators[k - 1] = with_highest(links[k - 1], estimators[k - 1], fitted)
            boundaries[k - 1] = with_highest(links[k - 1], boundaries[k - 1], metrics)
            if specs[k - 1].reads is not Reads.INCOMING:
                return
            grad_h_out = estimate(k - 1, h_ins[k], grad)
            k -= 1

    def update_waiting_stack(k: int, stack: Stack, grad_h_out: PyTree) -> PyTree:
        """Updates a stack that waited, and the estimators within; returns the gradient of its input."""
        spec, passed = specs[k], waiting_stacks.pop(k)

        def update_block(
            i: Index, old: ModuleState, block: Passed, grad_h_out: PyTree
        ) -> tuple[ModuleState, PyTree]:
            new, grad = backward(rules, stack.block, old, block, grad_h_out, examples.weight)
            return chosen(active(offsets[k] + i), new, old), grad

        def update_below(
            i: Index, old: EstimatorState, h: PyTree, grad: PyTree
        ) -> tuple[EstimatorState, BoundaryMetrics | None, PyTree]:
            fitted, metrics = fit(rules, spec, old, h, examples, grad)
            signal = spec.reads.choose(error, grad)
            below = estimate_at(rules, chain.where(k), spec, old.est_params, h, examples, signal)
            return chosen(active(offsets[k] + i), fitted, old), metrics, below

        old = modules[k], estimators[k], boundaries[k]
        new, grad = update_on_the_way_down(opaque_true, passed, old, grad_h_out, update_block, update_below)
        modules[k], estimators[k], boundaries[k] = new
        return grad

    def update_stack(k: int, stack: Stack, h: PyTree) -> PyTree:
        """Updates a stack that waits for nothing, though what is below it does; returns its output."""

        def run(piece: Chain, state: ChainState, h: PyTree) -> ChainStep:
            def step(state: ChainState, h: PyTree) -> ChainStep:
                return walk(rules, piece, state, h, examples, key, active)

            return at_once(opaque_true, step, state, h)

        below = highest(links[k - 1], estimators[k - 1])
        own = ChainState((modules[k],), (estimators[k],), below)
        result = update_on_the_way_up(stack, run, opaque_true)(chain.piece(k, k + 1), own, h)
        modules[k], estimators[k] = result.state.modules[0], result.state.estimators[0]
        boundaries[k] = result.boundaries[0]
        estimators[k - 1] = with_highest(links[k - 1], estimators[k - 1], result.state.below)
        boundaries[k - 1] = with_highest(links[k - 1], boundaries[k - 1], result.below)
        if specs[k - 1].reads is Reads.INCOMING:
            update_link(k - 1, estimate(k - 1, h_ins[k], result.grad_h_in))
        return result.h_out

    for k, link in enumerate(links):
        h_ins.append(h)
        if isinstance(link, Stack):
            if specs[k].reads is Reads.NOTHING:
                h = update_stack(k, link, h)
            else:
                waiting_stacks[k] = run_up(rules, link, modules[k], h, key, offsets[k])
                h = waiting_stacks[k].h_out
            continue
        # Nothing is below the first module of a network: its gradient would be wasted.
        lowest_of_all = k == 0 and isinstance(chain.first, int) and chain.first == 0
        waiting[k] = forward(rules, link, modules[k], h, jax.random.fold_in(key, offsets[k]), lowest_of_all)
        h = waiting[k].h_out
        if k < len(specs) and specs[k].reads is Reads.NOTHING:
            update_link(k, estimate(k, h, None))
    if len(specs) < len(links):
        losses, error = error_of(rules, h, examples)
        update_link(len(links) - 1, error)
        for k in reversed(range(len(specs))):
            if specs[k].reads is Reads.ERROR:
                update_link(k, estimate(k, h_ins[k + 1], error))
    state = ChainState(tuple(modules), tuple(estimators), below)
    return ChainStep(state, h, grad_h_in, losses, tuple(boundaries), below_metrics)


def chosen(active: Bool[Array, ""] | None, new: PyTree, old: PyTree) -> PyTree:
    """The new values, or the old ones bit for bit where a module is not updated."""
    if active is None:
        return new
    return jax.tree.map(lambda n, o: jnp.where(active, n, o), new, old)
