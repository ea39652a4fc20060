"""Trains a chain of modules, each from the gradient its boundary's estimator supplies.

One fused step goes module by module: forward, estimate, own backward, own update, and then the fit of
the estimator below to the input gradient that the backward pass produced (J16, section 2). A boundary whose
estimator reads nothing settles its module at once; one that reads the incoming gradient or the output
error leaves it waiting until that arrives. Backprop is the chain in which every boundary waits.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from decoupled.checks import checked_estimate, naming
from decoupled.errors import UsageError
from decoupled.estimators.synthetic_gradient import power
from decoupled.losses import output_error
from decoupled.modules import init_chain, like_output
from decoupled.state import (
    BoundaryMetrics,
    EstimatorState,
    LearnerState,
    Metrics,
    ModuleState,
    ModuleStep,
)
from decoupled.types import Array, Estimator, Key, Loss, Module, PyTree, Reads


class Learner(NamedTuple):
    """Pure functions that train a chain of modules.

    Attributes:
      init: (key, x, y) -> LearnerState, from one example batch.
      update: (state, x, y, key) -> (state, Metrics): every module, in one step.
      predict: (state, x) -> output of the last module, in evaluation mode.
      update_module: one function a module, (module_state, est_params, h_in, y, key, signal=None)
        -> ModuleStep. `est_params` are those of the boundary above it (None for the last module);
        `signal` is what that boundary's estimator reads beyond (h, y). It always updates: when to call
        it is the caller's choice, whatever `update_probability` says of the fused step.
      update_estimator: one function a boundary, (estimator_state, h, y, target)
        -> (estimator_state, BoundaryMetrics | None). One with a loss of its own ignores `target`.
      modules, estimators, loss: as given.
    """

    init: Callable[[Key, Array, Array], LearnerState]
    update: Callable[[LearnerState, Array, Array, Key], tuple[LearnerState, Metrics]]
    predict: Callable[[LearnerState, Array], Array]
    update_module: tuple[Callable[..., ModuleStep], ...]
    update_estimator: tuple[Callable[..., tuple[EstimatorState, BoundaryMetrics | None]], ...]
    modules: tuple[Module, ...]
    estimators: tuple[Estimator, ...]
    loss: Loss


def make_learner(
    modules: Sequence[Module],
    estimators: Sequence[Estimator],
    loss: Loss,
    optimizer: optax.GradientTransformation,
    estimator_optimizer: optax.GradientTransformation,
    *,
    update_probability: float | Sequence[float] = 1.0,
    axis_name: str | None = None,
) -> Learner:
    """Builds the pure functions that train `modules`, decoupled by `estimators`.

    Args:
      modules: the chain, first to last.
      estimators: one a boundary, so one fewer than modules.
      loss: (output, y) -> (batch,), applied to the last module's output.
      optimizer: for modules; every module has its own state of it.
      estimator_optimizer: for estimators that do not bring their own; one state each.
      update_probability: of each module in each step, one number for all or one a module (J16, section
        3.1). A module that sits out runs forward but stays bit for bit as it is: parameters, optimizer
        state and batch statistics. The estimator below it, whose target it supplies, sits out with it
        (as does one with a loss of its own).
      axis_name: of a `pmap` or `shard_map` axis over which the batch is split; gradients, fitting
        statistics, mutable state and metrics are averaged over it.

    Raises:
      UsageError: the numbers of modules, estimators and probabilities do not go together.
    """
    modules, estimators = tuple(modules), tuple(estimators)
    last = len(modules) - 1
    probabilities = _check_chain(modules, estimators, update_probability)

    def mean(tree: PyTree) -> PyTree:
        return _mean_over(axis_name, tree)

    def where(i: int) -> str:
        return f"boundary {i} (after {modules[i].name})"

    def estimate(i: int, est_params: PyTree, h: Array, y: Array, signal: Array | None) -> Array:
        return checked_estimate(where(i), estimators[i], est_params, h, y, signal)

    def forward(i: int, module: ModuleState, h: Array, key: Key):
        """Runs module i; returns h_out, its new mutable state and the pullback of its output.

        Each module is differentiated on its own: no gradient can cross a boundary.
        """
        key = jax.random.fold_in(key, i)
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        params = _vary_over(axis_name, module.params)

        def run(params: PyTree, h: Array) -> tuple[Array, PyTree]:
            return modules[i].apply(params, module.state, h, key, True)

        if i == 0:  # Nothing is below: x may be integers, and its gradient would be wasted.
            h_out, pullback, state = jax.vjp(lambda p: run(p, h), params, has_aux=True)
        else:
            h_out, pullback, state = jax.vjp(run, params, h, has_aux=True)
        return h_out, state, pullback

    def backward(module: ModuleState, new_state: PyTree, pullback, grad_h_out: Array, batch: int):
        """Own backward and own update; returns the module's new state and grad_h_in (or None)."""
        grad_params, *grad_h_in = pullback(grad_h_out)
        # The only division by the batch: per-example gradients become the gradient of a mean.
        grad_params = mean(jax.tree.map(lambda g: g / batch, grad_params))
        updates, opt_state = optimizer.update(grad_params, module.opt_state, module.params)
        params = optax.apply_updates(module.params, updates)
        return ModuleState(params, mean(new_state), opt_state), *(grad_h_in or [None])

    def fit(i: int, estimator: EstimatorState, h: Array, y: Array, target: Array):
        """Moves the estimator of boundary i towards `target`."""
        spec = estimators[i]
        if spec.training_gradient is None:
            return estimator, None
        est_params = _vary_over(axis_name, estimator.params)
        fit_loss, gradient = mean(spec.training_gradient(est_params, h, y, target))
        tx = spec.optimizer or estimator_optimizer
        updates, opt_state = tx.update(gradient, estimator.opt_state, estimator.params)
        params = optax.apply_updates(estimator.params, updates)
        target_power = None if spec.own_loss else mean(power(target))
        return EstimatorState(params, opt_state), BoundaryMetrics(fit_loss, target_power)

    def init(key: Key, x: Array, y: Array) -> LearnerState:
        module_key, estimator_key = jax.random.split(key)
        variables = init_chain(modules, module_key, x)
        module_states, estimator_states = [], []
        h = x
        for i, module in enumerate(modules):
            opt_state = optimizer.init(variables[i].params)
            module_states.append(ModuleState(*variables[i], opt_state))
            h = like_output(module, variables[i], h)
            if i < last:
                with naming(where(i)):
                    est_params = estimators[i].init(jax.random.fold_in(estimator_key, i), h, y)
                trained = estimators[i].training_gradient is not None
                tx = (estimators[i].optimizer or estimator_optimizer) if trained else optax.identity()
                estimator_states.append(EstimatorState(est_params, tx.init(est_params)))
        return LearnerState(jnp.zeros((), jnp.int32), tuple(module_states), tuple(estimator_states))

    def update(state: LearnerState, x: Array, y: Array, key: Key) -> tuple[LearnerState, Metrics]:
        # Modules fold their own index into the key; the next number is free for the coins.
        coin_key = jax.random.fold_in(key, len(modules))
        active = jax.random.bernoulli(coin_key, jnp.asarray(probabilities), (len(modules),))
        new_modules, new_estimators = list(state.modules), list(state.estimators)
        boundaries: list[BoundaryMetrics | None] = [None] * last
        h_ins, new_states, pullbacks = [], [], []

        def keep_if_inactive(i: int, new: PyTree, old: PyTree) -> PyTree:
            if probabilities[i] == 1.0:
                return new
            return jax.tree.map(lambda n, o: jnp.where(active[i], n, o), new, old)

        def settle(i: int, grad_h_out: Array) -> None:
            """Updates module i, fits the estimator below, and settles what was waiting for its gradient."""
            new, grad_h_in = backward(state.modules[i], new_states[i], pullbacks[i], grad_h_out, x.shape[0])
            new_modules[i] = keep_if_inactive(i, new, state.modules[i])
            if i == 0:
                return
            below = i - 1
            fitted, boundaries[below] = fit(below, state.estimators[below], h_ins[i], y, grad_h_in)
            new_estimators[below] = keep_if_inactive(i, fitted, state.estimators[below])
            if estimators[below].reads is Reads.INCOMING:
                est_params = state.estimators[below].params
                settle(below, estimate(below, est_params, h_ins[i], y, grad_h_in))

        h = x
        for i in range(len(modules)):
            h_ins.append(h)
            h, new_state, pullback = forward(i, state.modules[i], h, key)
            new_states.append(new_state)
            pullbacks.append(pullback)
            if i < last and estimators[i].reads is Reads.NOTHING:
                settle(i, estimate(i, state.estimators[i].params, h, y, None))
        losses, error = output_error(loss, h, y)
        settle(last, error)
        for i in reversed(range(last)):
            if estimators[i].reads is Reads.ERROR:
                settle(i, estimate(i, state.estimators[i].params, h_ins[i + 1], y, error))

        metrics = Metrics(mean(losses.mean()), h, tuple(boundaries))
        return LearnerState(state.step + 1, tuple(new_modules), tuple(new_estimators)), metrics

    def predict(state: LearnerState, x: Array) -> Array:
        h = x
        for module, spec in zip(state.modules, modules, strict=True):
            # Evaluation draws nothing at random, so any key will do.
            h, _ = spec.apply(module.params, module.state, h, jax.random.key(0), False)
        return h

    def module_update(i: int):
        def update_module(
            module: ModuleState,
            est_params: PyTree,
            h_in: Array,
            y: Array,
            key: Key,
            signal: Array | None = None,
        ) -> ModuleStep:
            h_out, new_state, pullback = forward(i, module, h_in, key)
            losses = None
            if i == last:
                losses, grad_h_out = output_error(loss, h_out, y)
            else:
                grad_h_out = estimate(i, est_params, h_out, y, signal)
            new, grad_h_in = backward(module, new_state, pullback, grad_h_out, h_in.shape[0])
            return ModuleStep(new, h_out, grad_h_in, losses)

        return update_module

    def estimator_update(i: int):
        return lambda estimator, h, y, target: fit(i, estimator, h, y, target)

    return Learner(
        init,
        update,
        predict,
        tuple(module_update(i) for i in range(len(modules))),
        tuple(estimator_update(i) for i in range(last)),
        modules,
        estimators,
        loss,
    )


def _check_chain(
    modules: tuple[Module, ...],
    estimators: tuple[Estimator, ...],
    update_probability: float | Sequence[float],
) -> tuple[float, ...]:
    """Returns one update probability a module."""
    if not modules:
        raise UsageError("a learner needs at least one module")
    if len(estimators) != len(modules) - 1:
        raise UsageError(
            f"{len(modules)} modules have {len(modules) - 1} boundaries between them,"
            f" but {len(estimators)} estimators were given: give one a boundary"
        )
    if isinstance(update_probability, Sequence):
        probabilities = tuple(float(p) for p in update_probability)
    else:
        probabilities = (float(update_probability),) * len(modules)
    if len(probabilities) != len(modules):
        raise UsageError(
            f"{len(probabilities)} update probabilities for {len(modules)} modules: give one for all"
            " or one a module"
        )
    for p in probabilities:
        if not 0.0 <= p <= 1.0:
            raise UsageError(f"update_probability is {p}: a probability lies between 0 and 1")
    return probabilities


def _mean_over(axis_name: str | None, tree: PyTree) -> PyTree:
    """Averages the real-valued leaves of a tree over a mapped axis, where there is one."""
    if axis_name is None:
        return tree

    def mean(leaf: Array) -> Array:
        return jax.lax.pmean(leaf, axis_name) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf

    return jax.tree.map(mean, tree)


def _vary_over(axis_name: str | None, tree: PyTree) -> PyTree:
    """Marks replicated parameters as a device's own, so that `shard_map` leaves their gradients so too.

    Without it the pullback would sum gradients over devices before `_mean_over` averages them.
    """
    if axis_name is None:
        return tree
    return jax.lax.pcast(tree, axis_name, to="varying")
