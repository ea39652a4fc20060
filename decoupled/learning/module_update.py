"""One module's own update, and the fit of one estimator: what every way of training a chain is made of.

Whatever runs them (the fused step, a stack in a loop, a pipeline's stage, a worker of its own), a module is
differentiated on its own, so that no gradient can cross a boundary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from decoupled.estimators.synthetic_gradient import power
from decoupled.learning.state import BoundaryMetrics, EstimatorState, ModuleState
from decoupled.types import Array, Estimator, Key, Loss, Module, PyTree


class Rules(NamedTuple):
    """What all updates of a chain have in common.

    Attributes:
      loss: (output, y) -> (batch,), of the last module's output.
      optimizer: of modules.
      estimator_optimizer: of estimators, but for what these solve for themselves.
      axis_name: of a mapped axis over which the batch is split; None without one.
    """

    loss: Loss
    optimizer: optax.GradientTransformation
    estimator_optimizer: optax.GradientTransformation
    axis_name: str | None = None

    def optimizer_of(self, estimator: Estimator) -> optax.GradientTransformation:
        """The one that moves an estimator's parameters."""
        if estimator.training_gradient is None:
            return optax.identity()  # Nothing moves them, and no state is kept for it.
        if estimator.optimizer is None:
            return self.estimator_optimizer
        return estimator.optimizer(self.estimator_optimizer)


class Passed(NamedTuple):
    """A module that has run forward and waits for its gradient.

    Attributes:
      h_out: its output, (batch, ...).
      state: its new mutable state.
      pullback: grad_h_out -> (grad_params,) or (grad_params, grad_h_in).
    """

    h_out: Array
    state: PyTree
    pullback: Callable[[Array], tuple[Any, ...]]


def forward(rules: Rules, module: Module, state: ModuleState, h: Array, key: Key, lowest: bool) -> Passed:
    """Runs a module.

    Args:
      key: the module's own; folded with the device's place on the mapped axis.
      lowest: nothing is below, so x may be integers and its gradient would be wasted.
    """
    if rules.axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(rules.axis_name))
    params = _vary_over(rules.axis_name, state.params)

    def run(params: PyTree, h: Array) -> tuple[Array, PyTree]:
        return module.apply(params, state.state, h, key, True)

    if lowest:
        h_out, pullback, new_state = jax.vjp(lambda p: run(p, h), params, has_aux=True)
    else:
        h_out, pullback, new_state = jax.vjp(run, params, h, has_aux=True)
    return Passed(h_out, new_state, pullback)


def backward(
    rules: Rules, state: ModuleState, passed: Passed, grad_h_out: Array
) -> tuple[ModuleState, Array | None]:
    """Own backward and own update; returns the module's new state and grad_h_in (None for the lowest)."""
    grad_params, *grad_h_in = passed.pullback(grad_h_out)
    # The only division by the batch: per-example gradients become the gradient of a mean.
    batch = grad_h_out.shape[0]
    grad_params = mean_over(rules.axis_name, jax.tree.map(lambda g: g / batch, grad_params))
    updates, opt_state = rules.optimizer.update(grad_params, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    new_state = mean_over(rules.axis_name, passed.state)
    return ModuleState(params, new_state, opt_state), *(grad_h_in or [None])


def fit(
    rules: Rules, spec: Estimator, estimator: EstimatorState, h: Array, y: Array, target: Any
) -> tuple[EstimatorState, BoundaryMetrics | None]:
    """Moves an estimator towards `target`, or down a loss of its own."""
    if spec.training_gradient is None:
        return estimator, None
    est_params = _vary_over(rules.axis_name, estimator.params)
    fit_loss, gradient = mean_over(rules.axis_name, spec.training_gradient(est_params, h, y, target))
    tx = rules.optimizer_of(spec)
    updates, opt_state = tx.update(gradient, estimator.opt_state, estimator.params)
    params = optax.apply_updates(estimator.params, updates)
    target_power = None if spec.own_loss else mean_over(rules.axis_name, power(target))
    return EstimatorState(params, opt_state), BoundaryMetrics(fit_loss, target_power)


def no_metrics(spec: Estimator, shape: tuple[int, ...] = ()) -> BoundaryMetrics | None:
    """Zeros in the form of what `fit` measures; `shape` is () but for the boundaries of a stack."""
    if spec.training_gradient is None:
        return None
    zero = jnp.zeros(shape, jnp.float32)
    # Two arrays, since totals are donated.
    return BoundaryMetrics(zero, None if spec.own_loss else jnp.zeros_like(zero))


def at_once(always: Array, run: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """`run(*args)` as one piece of the program, which the compiler cannot interleave with others.

    Left alone, XLA:CPU puts off the small pieces of an update and keeps the large arrays they need, module
    after module; in a loop it fuses the update into the write of a stack and copies the whole stack each
    time (`optimization_barrier` stops neither). It cannot look across a branch that it cannot foresee.

    Args:
      always: a scalar that is true, though no compiler can know.
    """
    like = jax.eval_shape(run, *args)

    def never(*args: PyTree) -> PyTree:
        del args
        return jax.tree.map(_zeros, like)

    return jax.lax.cond(always, run, never, *args)


def _zeros(like: Any) -> Array:
    zeros = jnp.zeros(like.shape, like.dtype)
    if like.manual_axis_type is None or not like.manual_axis_type.varying:
        return zeros
    # Inside shard_map both branches must vary over the same axes.
    return jax.lax.pcast(zeros, tuple(like.manual_axis_type.varying), to="varying")


def mean_over(axis_name: str | None, tree: PyTree) -> PyTree:
    """Averages the real-valued leaves of a tree over a mapped axis, where there is one."""
    if axis_name is None:
        return tree

    def mean(leaf: Array) -> Array:
        return jax.lax.pmean(leaf, axis_name) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf

    return jax.tree.map(mean, tree)


def _vary_over(axis_name: str | None, tree: PyTree) -> PyTree:
    """Marks replicated parameters as a device's own, so that `shard_map` leaves their gradients so too.

    Without it the pullback would sum gradients over devices before `mean_over` averages them.
    """
    if axis_name is None:
        return tree
    return jax.lax.pcast(tree, axis_name, to="varying")
