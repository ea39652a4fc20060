"""One module's own update, and the fit of one estimator: what every way of training a chain is made of.

Whatever runs them (the fused step, a stack in a loop, a pipeline's stage, a worker of its own), a module is
differentiated on its own, so that no gradient can cross a boundary.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from decoupled.estimators.checks import checked_estimate
from decoupled.estimators.synthetic_gradient import power
from decoupled.learning.examples import Examples
from decoupled.learning.state import BoundaryMetrics, EstimatorState, ModuleState
from decoupled.leaves import like, per_example, real_part, with_real_part
from decoupled.losses import output_error
from decoupled.precision import at_least_float32
from decoupled.shapes import Bool, Float, Shaped
from decoupled.types import Array, Estimator, Key, Loss, Module, PyTree
from decoupled.weights import as_cotangent, as_gradient, divided, stand_in, zeroed

_State = TypeVar("_State", ModuleState, EstimatorState)


class Rules(NamedTuple):
    """What all updates of a chain have in common.

    Attributes:
      loss: (output, y) -> (batch,), of the last module's output.
      optimizer: of modules that have none of their own.
      estimator_optimizer: of estimators, but for what these solve for themselves.
      axis_name: of a mapped axis over which the batch is split; None without one.
      batch_axes: leading axes that count examples, to estimators and the loss: 1 for (batch, ...), 2 for
        (batch, time, ...) where every token is one.
      microbatches: parts in which a batch is gone through, one after the other.
    """

    loss: Loss
    optimizer: optax.GradientTransformation
    estimator_optimizer: optax.GradientTransformation
    axis_name: str | None = None
    batch_axes: int = 1
    microbatches: int = 1

    def optimizer_for(self, module: Module) -> optax.GradientTransformation:
        """The one that moves a module's parameters."""
        return module.optimizer or self.optimizer

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
      pullback: grad_h_out -> (grad_params,) or (grad_params, grad_h_in), of the real parts.
    """

    h_out: PyTree
    state: PyTree
    pullback: Callable[[PyTree], tuple[PyTree, ...]]


def forward(rules: Rules, module: Module, state: ModuleState, h: PyTree, key: Key, lowest: bool) -> Passed:
    """Runs a module.

    Args:
      key: the module's own; folded with the device's place on the mapped axis.
      lowest: nothing is below, so the gradient of x would be wasted.
    """
    if rules.axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(rules.axis_name))
    params = vary_over(rules.axis_name, state.params)

    def run(params: PyTree, real: PyTree) -> tuple[PyTree, tuple[PyTree, PyTree]]:
        h_out, new_state = module.apply(params, state.state, with_real_part(h, real), key, True)
        return real_part(h_out), (h_out, new_state)

    real = real_part(h)
    if lowest:
        _, pullback, (h_out, new_state) = jax.vjp(lambda p: run(p, real), params, has_aux=True)
    else:
        _, pullback, (h_out, new_state) = jax.vjp(run, params, real, has_aux=True)
    return Passed(h_out, new_state, pullback)


def backward(
    rules: Rules,
    module: Module,
    state: ModuleState,
    passed: Passed,
    grad_h_out: PyTree,
    weight: Shaped[Array, " rows"] | None = None,
) -> tuple[ModuleState, PyTree]:
    """Own backward and own update; returns the module's new state and grad_h_in (None for the lowest).

    Args:
      grad_h_out: per-example gradient of the real part of its output, zero where an example does not count.
      weight: of examples, in one axis; None: all count alike.
    """
    cotangent = by_rows(rules, as_cotangent, grad_h_out, weight)
    grad_params, *grad_h_in = passed.pullback(cotangent)
    # The only division by the batch: per-example gradients become the gradient of a mean.
    if weight is None:
        batch = math.prod(jax.tree.leaves(grad_h_out)[0].shape[: rules.batch_axes])
        grad_params = mean_over(rules.axis_name, jax.tree.map(lambda g: g / batch, grad_params))
    else:
        grad_params = _divided_over(rules.axis_name, grad_params, at_least_float32(weight).sum())
    new = moved(rules.optimizer_for(module), state, grad_params)
    new = new._replace(state=_mutable_over(rules, passed.state, state.state, weight))
    below = None if not grad_h_in else by_rows(rules, as_gradient, grad_h_in[0], weight)
    return new, below


def moved(tx: optax.GradientTransformation, state: _State, gradient: PyTree) -> _State:
    """The state of a module or an estimator after one update by its optimizer."""
    updates, opt_state = tx.update(gradient, state.opt_state, state.params)
    return state._replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state)


def by_rows(
    rules: Rules,
    scale: Callable[[PyTree, Array | None], PyTree],
    gradient: PyTree,
    weight: Shaped[Array, " rows"] | None,
) -> PyTree:
    """A gradient scaled example by example, in the shape it has."""
    return like(scale(per_example(gradient, rules.batch_axes), weight), gradient)


def counted(rules: Rules, rows: PyTree, examples: Examples) -> PyTree:
    """Activations with nothing in them of tokens that do not count; other examples came without."""
    return rows if rules.batch_axes == 1 else stand_in(rows, examples.weight)


def estimate_at(
    rules: Rules,
    where: str,
    spec: Estimator,
    est_params: PyTree,
    h: PyTree,
    examples: Examples,
    signal: PyTree,
) -> PyTree:
    """An estimate for the real part of an activation, once what it is made of has been checked.

    Args:
      where: how to call the boundary.
      signal: what the estimator reads beyond (h, y).
    """
    real = real_part(h)
    rows, signal = per_example((real, signal), rules.batch_axes)
    rows = counted(rules, rows, examples)
    whole = h if spec.sees_whole_h else None
    estimate = checked_estimate(where, spec, est_params, rows, examples.y, signal, examples.weight, whole)
    return like(estimate, real)


def error_of(rules: Rules, output: PyTree, examples: Examples) -> tuple[Float[Array, " rows"], PyTree]:
    """The losses of all examples, in one axis, and the output error, shape of the output's real part."""
    rows = counted(rules, per_example(output, rules.batch_axes), examples)
    losses, error = output_error(rules.loss, rows, examples.y, examples.weight)
    return losses, like(error, real_part(output))


def fit(
    rules: Rules,
    spec: Estimator,
    estimator: EstimatorState,
    h: PyTree,
    examples: Examples,
    target: PyTree,
) -> tuple[EstimatorState, BoundaryMetrics | None]:
    """Moves an estimator towards `target`, or down a loss of its own.

    Args:
      h: an activation.
      target: a per-example gradient of its real part.
    """
    if spec.training_gradient is None:
        return estimator, None
    est_params = estimator._replace(params=vary_over(rules.axis_name, estimator.params)).est_params
    real, weight = real_part(h), examples.weight
    rows, target = per_example((real, target), rules.batch_axes)
    target = None if target is None else zeroed(target, weight)
    given = (counted(rules, rows, examples), target)
    if spec.sees_whole_h:
        given = h, None if target is None else like(target, real)
    weights_too = () if weight is None else (weight,)
    means = spec.training_gradient(est_params, given[0], examples.y, given[1], *weights_too)
    fit_loss, gradient = mean_of(rules.axis_name, means, weight)
    target_power = None
    if not spec.own_loss:
        powers = [power(leaf, weight) for leaf in jax.tree.leaves(target)]
        target_power = mean_of(rules.axis_name, sum(powers), weight)
    fitted = moved(rules.optimizer_of(spec), estimator, gradient)
    return fitted, BoundaryMetrics(fit_loss, target_power)


def no_metrics(spec: Estimator, shape: tuple[int, ...] = ()) -> BoundaryMetrics | None:
    """Zeros in the form of what `fit` measures; `shape` is () but for the boundaries of a stack."""
    if spec.training_gradient is None:
        return None
    zero = jnp.zeros(shape, jnp.float32)
    # Two arrays, since totals are donated.
    return BoundaryMetrics(zero, None if spec.own_loss else jnp.zeros_like(zero))


def at_once(opaque_true: Bool[Array, ""] | None, run: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """`run(*args)` as one piece of the program, which the compiler cannot interleave with others.

    Left alone, XLA:CPU puts off the small pieces of an update and keeps the large arrays they need, module
    after module; in a loop it fuses the update into the write of a stack and copies the whole stack each
    time (`optimization_barrier` stops neither). It cannot look across a branch that it cannot foresee.

    Args:
      opaque_true: a scalar that is true, though no compiler can know (an opaque predicate); None: it may
        do as it likes.
    """
    if opaque_true is None:
        return run(*args)
    given = jax.tree.leaves(args)
    structure, passed = None, []

    def changed(*args: PyTree) -> list[Array]:
        """What `run` returns but for what it was given: a branch would copy that."""
        nonlocal structure, passed
        places = {id(leaf): place for place, leaf in enumerate(jax.tree.leaves(args))}
        leaves, structure = jax.tree.flatten(run(*args))
        passed = [places.get(id(leaf)) for leaf in leaves]
        return [leaf for leaf, place in zip(leaves, passed, strict=True) if place is None]

    like = jax.eval_shape(changed, *args)

    def never(*args: PyTree) -> list[Array]:
        del args
        return [_zeros(leaf) for leaf in like]

    new = iter(jax.lax.cond(opaque_true, changed, never, *args))
    assert structure is not None
    return structure.unflatten([next(new) if place is None else given[place] for place in passed])


def _zeros(like: Any) -> Array:
    zeros, varying = jnp.zeros(like.shape, like.dtype), _varying(like)
    # Inside shard_map both branches must vary over the same axes.
    return jax.lax.pcast(zeros, varying, to="varying") if varying else zeros


def _varying(like: Any) -> tuple[str, ...]:
    """The mapped axes over whose devices an array differs."""
    return () if like.manual_axis_type is None else tuple(like.manual_axis_type.varying)


def mean_over(axis_name: str | None, tree: PyTree) -> PyTree:
    """Averages the real-valued leaves of a tree over a mapped axis, where there is one."""
    if axis_name is None:
        return tree

    def mean(leaf: Array) -> Array:
        return jax.lax.pmean(leaf, axis_name) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf

    return jax.tree.map(mean, tree)


def mean_of(axis_name: str | None, means: PyTree, weight: Shaped[Array, " rows"] | None) -> PyTree:
    """Means over the examples of all devices, from those over the examples of each; 0 where none counts."""
    if weight is None:
        return mean_over(axis_name, means)
    total = at_least_float32(weight).sum()
    if axis_name is None:
        return jax.tree.map(lambda m: jnp.where(total == 0, 0, m), means)
    return _divided_over(axis_name, jax.tree.map(lambda m: m * total, means), total)


def _mutable_over(rules: Rules, new: PyTree, old: PyTree, weight: Shaped[Array, " rows"] | None) -> PyTree:
    """Mutable state of all devices, each by what counts there; the old one where nothing does."""
    if weight is None:
        return mean_over(rules.axis_name, new)
    total = at_least_float32(weight).sum()

    def over(new: Array, old: Array) -> Array:
        if rules.axis_name is not None and jnp.issubdtype(new.dtype, jnp.inexact):
            new = _divided_over(rules.axis_name, new * total, total).astype(old.dtype)
        return jnp.where(everywhere == 0, old, new)

    everywhere = total if rules.axis_name is None else jax.lax.psum(total, rules.axis_name)
    return jax.tree.map(over, new, old)


def _divided_over(axis_name: str | None, sums: PyTree, number: Float[Array, ""]) -> PyTree:
    """Sums divided by a number, both added up over a mapped axis; zero where that number is."""
    if axis_name is not None:
        # A device on which nothing counts may have computed anything.
        sums = jax.tree.map(lambda s: jnp.where(number == 0, 0, s), sums)
        sums, number = jax.lax.psum((sums, number), axis_name)
    return jax.tree.map(lambda s: divided(s, number), sums)


def vary_over(axis_name: str | None, tree: PyTree) -> PyTree:
    """Marks what is replicated as a device's own, so that `shard_map` leaves gradients of it so too.

    Without it the pullback would sum gradients over devices before `mean_over` averages them.
    """
    if axis_name is None:
        return tree

    def vary(leaf: Array) -> Array:
        varying = _varying(jax.typeof(leaf))
        return leaf if axis_name in varying else jax.lax.pcast(leaf, axis_name, to="varying")

    return jax.tree.map(vary, tree)
