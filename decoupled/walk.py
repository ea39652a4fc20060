"""The walk through a chain, or a piece of one: module by module, each settled as soon as it can be.

A module whose estimator reads nothing settles at once: forward, estimate, own backward, own update, and
then the fit of the estimator below to the input gradient that the backward pass produced (J16, section 2).
After that nothing of it is kept, so memory does not grow with depth. A module whose estimator reads the
incoming gradient or the output error waits until that arrives. Backprop is the chain in which all wait.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decoupled.chain import Chain, ChainState
from decoupled.checks import checked_estimate
from decoupled.errors import UsageError
from decoupled.losses import output_error
from decoupled.module_update import Passed, Rules, at_once, backward, fit, forward
from decoupled.stack import Stack, put, take, update_upper_blocks
from decoupled.state import BoundaryMetrics, EstimatorState, ModuleState
from decoupled.types import Array, Key, Module, PyTree, Reads


class ChainStep(NamedTuple):
    """What a walk returns.

    Attributes:
      state: new states.
      h_out: output of the highest link, (batch, ...).
      grad_h_in: target for the estimator below the chain; None where nothing is below.
      losses: one an example, (batch,); None where an estimator stands above the highest link.
      boundaries: one entry for each of `Chain.estimators`: the metrics of its fit, if there was one.
    """

    state: ChainState
    h_out: Array
    grad_h_in: Array | None
    losses: Any
    boundaries: tuple[BoundaryMetrics | None, ...]


def update_chain(
    rules: Rules,
    chain: Chain,
    state: ChainState,
    h: Array,
    y: Array,
    key: Key,
    *,
    always: Array,
    active: Callable[[Array | int], Array | None] = lambda index: None,
) -> ChainStep:
    """Updates every module of a chain, and every estimator but the one above its highest link.

    Args:
      h, y: what the lowest link is fed, and the labels.
      key: of the step; every module folds its index in the network into it.
      always: a scalar that is true, though no compiler can know (see `at_once`).
      active: index of a module in the network -> whether it takes part in this step; None: it always does.
    """
    links, specs, offsets = chain.links, chain.estimators, chain.offsets
    modules, estimators = list(state.modules), list(state.estimators)
    boundaries: list[BoundaryMetrics | None] = [None] * len(specs)
    h_ins: list[Array] = []
    waiting: dict[int, Passed] = {}
    grad_h_in = None

    def key_of(index: Array | int) -> Key:
        return jax.random.fold_in(key, index)

    def estimate(k: int, h: Array, signal: Array | None) -> Array:
        est_params = state.estimators[k].params  # as they were before the step
        return checked_estimate(chain.where(k), specs[k], est_params, h, y, signal)

    def settle(k: int, module: ModuleState, passed: Passed, grad_h_out: Array, below, h_in: Array):
        """Own backward and update of module k, and the fit of the estimator below; all as values."""
        new, grad_h_in = backward(rules, module, passed, grad_h_out)
        new = _chosen(active(offsets[k]), new, module)
        metrics = None
        if below is not None:
            fitted, metrics = fit(rules, specs[k - 1], below, h_in, y, grad_h_in)
            below = _chosen(active(offsets[k]), fitted, below)
        return new, below, metrics, grad_h_in

    def record(k: int, new: ModuleState, below: EstimatorState | None, metrics) -> None:
        modules[k] = new
        if below is not None:
            estimators[k - 1] = _with_highest(links[k - 1], estimators[k - 1], below)
            boundaries[k - 1] = _with_last(boundaries[k - 1], metrics)

    def below_of(k: int) -> EstimatorState | None:
        """State of the estimator below link k, where it is of this chain."""
        return _highest(links[k - 1], estimators[k - 1]) if k > 0 else None

    def settle_waiting(k: int, grad_h_out: Array) -> None:
        """Settles module k, and downwards whatever waits for the gradient that this frees."""
        nonlocal grad_h_in
        while True:
            module, passed = modules[k], waiting.pop(k)
            new, below, metrics, grad = settle(k, module, passed, grad_h_out, below_of(k), h_ins[k])
            record(k, new, below, metrics)
            if k == 0:
                grad_h_in = grad
            if k == 0 or specs[k - 1].reads is not Reads.INCOMING:
                return
            grad_h_out = estimate(k - 1, h_ins[k], grad)
            k -= 1

    def run_at_once(k: int, h: Array) -> Array:
        """Module k, or the lowest block of stack k, from forward to the fit below."""
        nonlocal grad_h_in
        link, index = links[k], offsets[k]
        module = link.block if isinstance(link, Stack) else link
        own = take(modules[k], 0) if isinstance(link, Stack) else modules[k]
        above = take(estimators[k], 0) if isinstance(link, Stack) else estimators[k]
        needed = (chain.first > 0) if k == 0 else specs[k - 1].reads is Reads.INCOMING

        def run(
            own: ModuleState, above: PyTree, below: EstimatorState | None, h: Array, y: Array, key: Key
        ):
            passed = forward(rules, module, own, h, key, lowest=index == 0)
            grad_h_out = checked_estimate(chain.where(k), specs[k], above, passed.h_out, y, None)
            new, below, metrics, grad = settle(k, own, passed, grad_h_out, below, h)
            return new, below, metrics, passed.h_out, grad if needed else None

        below = below_of(k)
        new, below, metrics, h_out, grad = at_once(
            always, run, own, above.params, below, h, y, key_of(index)
        )
        record(k, put(modules[k], new, 0) if isinstance(link, Stack) else new, below, metrics)
        if k == 0:
            grad_h_in = grad
        elif needed:
            settle_waiting(k - 1, estimate(k - 1, h, grad))
        return h_out

    def run_stack(k: int, stack: Stack, h: Array) -> Array:
        h = run_at_once(k, h)

        def turn(i: Array | int, own: ModuleState, below: EstimatorState, above: EstimatorState, h: Array):
            index = offsets[k] + i

            def run(own: ModuleState, below: EstimatorState, above: PyTree, h: Array, y: Array, key: Key):
                passed = forward(rules, stack.block, own, h, key, lowest=False)
                grad_h_out = checked_estimate(chain.where(k), specs[k], above, passed.h_out, y, None)
                new, target = backward(rules, own, passed, grad_h_out)
                fitted, metrics = fit(rules, specs[k], below, h, y, target)
                chosen = active(index)
                return _chosen(chosen, new, own), _chosen(chosen, fitted, below), passed.h_out, metrics

            return at_once(always, run, own, below, above.params, h, y, key_of(index))

        result = update_upper_blocks(modules[k], estimators[k], h, turn)
        modules[k], estimators[k], boundaries[k] = result.modules, result.estimators, result.metrics
        return result.h_out

    for k, link in enumerate(links):
        h_ins.append(h)
        reads = specs[k].reads if k < len(specs) else None
        if reads is Reads.NOTHING:
            h = run_stack(k, link, h) if isinstance(link, Stack) else run_at_once(k, h)
        elif isinstance(link, Stack):
            raise UsageError(
                f"{link.name} cannot be a stack: {specs[k].name if reads else 'the loss'} above it lets its"
                " blocks wait for one another; give the learner its modules one by one"
            )
        else:
            waiting[k] = forward(rules, link, modules[k], h, key_of(offsets[k]), lowest=offsets[k] == 0)
            h = waiting[k].h_out

    losses, top = None, len(links) - 1
    if len(specs) < len(links):
        losses, error = output_error(rules.loss, h, y)
        settle_waiting(top, error)
        for k in reversed(range(top)):
            if specs[k].reads is Reads.ERROR:
                settle_waiting(k, estimate(k, h_ins[k + 1], error))
    elif waiting:
        k = max(waiting)
        raise UsageError(
            f"{chain.where(k)}: {specs[k].name} waits for what is above, where no module may wait: choose"
            " an estimator that reads nothing"
        )
    return ChainStep(ChainState(tuple(modules), tuple(estimators)), h, grad_h_in, losses, tuple(boundaries))


def _chosen(active: Array | None, new: PyTree, old: PyTree) -> PyTree:
    """The new values, or the old ones bit for bit where a module sits out."""
    if active is None:
        return new
    return jax.tree.map(lambda n, o: jnp.where(active, n, o), new, old)


def _highest(link: Module | Stack, estimator: EstimatorState) -> EstimatorState:
    """The estimator above a link: that of its highest block."""
    return take(estimator, len(link.names) - 1) if isinstance(link, Stack) else estimator


def _with_highest(link: Module | Stack, estimator: EstimatorState, new: EstimatorState) -> EstimatorState:
    return put(estimator, new, len(link.names) - 1) if isinstance(link, Stack) else new


def _with_last(measured: BoundaryMetrics | None, new: BoundaryMetrics | None) -> BoundaryMetrics | None:
    """The metrics of a link's highest boundary beside those of a stack's others."""
    if measured is None or new is None:
        return new
    return jax.tree.map(lambda inner, last: put(inner, last, inner.shape[0] - 1), measured, new)
