"""The boundary as a function: what `jax.grad` sees of an estimator.

A mean loss hands down the gradient of a mean: each example's own gradient, divided by the number of
examples. Estimators deal in per-example gradients, so here, and only here, that number is multiplied in and
divided out again:

    incoming   = N * cotangent of h / w                   per example, as in the chain form
    cotangent of h below    = w * grad_h_hat / N
    cotangent of est_params = est_gradient * n / N        n of the N examples are here
    cotangent of the tap    = sums over the n examples    see `metrics`

With N the number of examples the loss is a mean over, gradients may be summed or averaged over devices
exactly as those of all other parameters are. Where examples have weights w, n and N are sums of these.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from decoupled.argument_checks import check_estimator
from decoupled.boundaries.metrics import measured
from decoupled.errors import UsageError
from decoupled.estimators.checks import (
    check_activation,
    check_arrays,
    check_examples,
    check_weight,
    checked_estimate,
)
from decoupled.leaves import like, per_example, real_part, with_real_part
from decoupled.precision import at_least_float32
from decoupled.shapes import AnyArray, Bool, Float, Real, Shaped
from decoupled.types import Array, Estimator, PyTree
from decoupled.weights import as_cotangent, as_gradient, stand_in, zeroed


def boundary(
    estimator: Estimator,
    est_params: PyTree,
    h: PyTree,
    y: PyTree = None,
    error: PyTree = None,
    *,
    weight: Shaped[AnyArray, "*examples"] | None = None,
    use_estimate: bool | Bool[AnyArray, ""] = True,
    num_examples: float | Real[AnyArray, ""] | None = None,
    batch_axes: int = 1,
    tap: Float[AnyArray, " sums"] | None = None,
    name: str = "boundary",
) -> PyTree:
    """h itself; but under `jax.grad`, what is below gets the estimator's gradient in place of the true one.

    The gradient with respect to `est_params` is the estimator's own training gradient, for its optimizer.
    Nothing is asked of y and error while no gradient is taken, so evaluation can leave them out.

    Only where the backward pass comes by can anything be handed down, or fitted. JAX leaves out what the
    loss does not depend on, such as the last of the steps that a Python loop unrolls if nobody uses its h;
    but not in a loop of its own: what leaves `lax.scan` as its carry has at least a gradient of zero. `tie`
    makes both alike.

    Args:
      estimator: whose estimate is handed down.
      est_params: its parameters; frozen where no gradient is taken with respect to them.
      h: activation; the first `batch_axes` axes count examples. An array, or a pytree of such: leaves that
        are no real numbers have no gradient; for several that are, `joined` or `each` makes estimators.
      y: context, with the same leading axes: labels, where the estimator sees them.
      error: per-example dL/d(output), (batch, ...), for estimators that read it: from a forward pass of
        the same parameters and `losses.output_error`.
      weight: of each example, in the axes that count them: 0 for padding, whose h and y are not read. The
        loss is then the weighted mean, sum(weight * losses) / sum(weight).
      use_estimate: False (or a traced boolean that is) hands the true gradient down, while the
        estimator goes on learning: for a warm-up, or every k-th step.
      num_examples: the loss is a mean over so many examples; those of h, or the sum of their weights, where
        it is not given. Give
        it where these differ: 1 for a loss that is a sum; time * batch inside a scan over time, if the
        loss is a mean over both; the examples of all devices, if the loss is averaged over devices
        before it is differentiated; those that `jax.vmap` runs over, where the mean of what it gives is
        differentiated; divided by the scale of a loss that is scaled.
      batch_axes: 1 for (batch, ...); 2 for (batch, time, ...), where every token counts as an example
        and is given a gradient of its own; 0 under `jax.vmap` over examples.
      tap: zeros from `new_tap`, whose gradient is what `read_taps` reads; nothing is measured without.
      name: how errors call this boundary.

    Returns:
      h.

    Raises:
      UsageError: the estimator is none; h holds no real numbers or has no axis of features; or, where a
        gradient is taken, y or error is missing, or a shape does not fit.
    """
    check_estimator(name, estimator)
    if estimator.borrows is not None or estimator.structure is not None or estimator.sees_whole_h:
        raise UsageError(
            f"{name}: {estimator.name} needs what only a learner can give it, the modules above or all that"
            " these are fed: take another estimator, or make_learner"
        )
    check_activation(name, h, batch_axes)
    real = real_part(h)
    check_arrays(name, estimator, real)
    count: Any = math.prod(jax.tree.leaves(real)[0].shape[:batch_axes])
    if weight is not None:
        check_weight(name, weight, real, batch_axes)
        weight = at_least_float32(jnp.asarray(weight))
        count = weight.sum()
    _check_number(name, num_examples)
    total = at_least_float32(jnp.asarray(count if num_examples is None else num_examples))
    if weight is not None:  # where nothing counts, there is nothing to divide either
        total = jnp.where(total == 0, 1, total)

    @jax.custom_vjp
    def identity(
        est_params: PyTree,
        tap: AnyArray | None,
        real: PyTree,
        y: PyTree,
        error: PyTree,
        weight: Array | None,
        use_estimate: Array,
        total: Array,
    ):
        del est_params, tap, y, error, weight, use_estimate, total
        return real

    def forward(*arguments):
        return identity(*arguments), arguments

    def backward(arguments, cotangent: PyTree):
        est_params, tap, real, y, error, weight, use_estimate, total = arguments
        real = jax.tree.map(jnp.asarray, real)  # which may be a constant of NumPy
        check_examples(name, real, batch_axes, y=y, the_error=error)

        def scaled(gradient: PyTree, by: Callable[[Array, Array], Array]) -> PyTree:
            def scale(leaf: Array) -> Array:
                number = total.astype(jnp.promote_types(leaf.dtype, jnp.float32))
                return by(leaf, number).astype(leaf.dtype)

            return jax.tree.map(scale, gradient)

        rows, y, error, weight = per_example((real, y, error, weight), batch_axes)
        rows, y, error = stand_in((rows, y, error), weight)
        incoming = per_example(scaled(cotangent, jnp.multiply), batch_axes)
        incoming = as_gradient(incoming, weight)
        signal = estimator.reads.choose(error=error, incoming=incoming)
        grad_h_hat = checked_estimate(name, estimator, est_params, rows, y, signal, weight)
        estimated = scaled(like(as_cotangent(grad_h_hat, weight), real), jnp.divide)
        handed_down = jax.tree.map(partial(jnp.where, use_estimate), estimated, cotangent)
        est_gradient = fit_loss = None
        if estimator.training_gradient is not None:
            weights_too = () if weight is None else (weight,)
            incoming = zeroed(incoming, weight)
            fit_loss, means = estimator.training_gradient(est_params, rows, y, incoming, *weights_too)
            n = count if weight is None else weight.sum()
            est_gradient = jax.tree.map(lambda g, p: (g * n / total).astype(p.dtype), means, est_params)
        seen = None if tap is None else measured(fit_loss, grad_h_hat, incoming, weight).astype(tap.dtype)
        return est_gradient, seen, handed_down, None, None, None, None, None

    identity.defvjp(forward, backward)
    est_params, tap, real = _vary_like((real, y, error, weight), (est_params, tap, real))
    real = identity(est_params, tap, real, y, error, weight, jnp.asarray(use_estimate), total)
    return with_real_part(h, real)


def tie(loss: float | Float[AnyArray, ""], activations: PyTree) -> Float[Array, ""]:
    """The loss itself; but its backward pass comes by these activations too, with a gradient of zero.

    A boundary that nobody else uses, as at the end of a window of a recurrent network, then hands its
    estimate down like all others, unrolled or in `lax.scan`:

        return tie(loss, h), where h = boundary(estimator, est_params, h, y)

    Args:
      loss: of the window.
      activations: outputs of boundaries.
    """

    @jax.custom_vjp
    def identity(loss: Array, activations: PyTree) -> Array:
        del activations
        return loss

    def forward(loss: Array, activations: PyTree):
        return loss, activations

    def backward(activations: PyTree, cotangent: Array):
        return cotangent, jax.tree.map(jnp.zeros_like, activations)

    identity.defvjp(forward, backward)
    return identity(jnp.asarray(loss), real_part(activations))


def _check_number(where: str, num_examples: Any) -> None:
    if num_examples is None:
        return
    if isinstance(num_examples, jax.core.Tracer):
        wrong = num_examples.ndim != 0
    else:
        number = np.asarray(num_examples)
        is_one = number.ndim == 0 and jnp.issubdtype(number.dtype, jnp.number)
        wrong = not (is_one and 0 < float(number) < math.inf)
    if wrong:
        raise UsageError(f"{where}: num_examples is {num_examples}, but must be one number above zero")


def _vary_like(examples: PyTree, tree: PyTree) -> PyTree:
    """Inside `shard_map`, marks replicated parameters as each device's own, as examples are.

    Their cotangents are then summed over devices, like those of any replicated parameter.
    """

    varying = frozenset[Any]().union(*map(_varying_axes, jax.tree.leaves(examples)))

    def vary(leaf: ArrayLike) -> ArrayLike:
        missing = tuple(varying - _varying_axes(leaf))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, tree)


def _varying_axes(leaf: ArrayLike) -> frozenset[str]:
    """Names of the mesh axes over which an array differs from device to device."""
    kind: Any = jax.typeof(leaf)
    return kind.mat.varying if hasattr(kind, "mat") else getattr(kind, "vma", frozenset())  # jax < 0.10.2
