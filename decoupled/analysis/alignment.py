"""How well the gradient a module is given agrees with the one backprop would give it."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from decoupled.analysis.scaled import length, unit_length
from decoupled.learning.examples import examples_of
from decoupled.learning.learner import Learner
from decoupled.learning.module_update import by_rows, error_of, estimate_at
from decoupled.learning.state import LearnerState
from decoupled.leaves import real_part, with_real_part
from decoupled.precision import at_least_float32
from decoupled.shapes import AnyArray, Float
from decoupled.types import Array, Key, Module, PyTree
from decoupled.weights import as_cotangent, as_gradient


class BoundaryGradients(NamedTuple):
    """Per-example gradients at every boundary, each the shape of the real part of h there.

    Attributes:
      true: dL/dh of the whole network.
      estimated: what the module below is given in its place.
    """

    true: tuple[PyTree, ...]
    estimated: tuple[PyTree, ...]


def boundary_gradients(
    learner: Learner, state: LearnerState, x: PyTree, y: PyTree, key: Key, weight: Array | None = None
) -> BoundaryGradients:
    """The true and the estimated gradient at every boundary, for the batch an `update` would see.

    Args:
      learner: its modules run in training mode, as in `learner.update(state, x, y, key)`.
      state: not changed.
      x, y: a batch; y leads with the same examples.
      key: as given to `update`, so that dropout falls alike.
      weight: as given to `update`.
    """
    state, rules = learner.unstack(state), learner.rules
    x, examples = examples_of(x, y, weight, rules.batch_axes)

    def run(i: int, module: Module, h: PyTree) -> tuple[Callable, PyTree]:
        """The way back through a module, between real parts, and its output."""
        part_key = jax.random.fold_in(key, i)

        def forward(real: PyTree) -> tuple[PyTree, PyTree]:
            out = module.apply(*state.modules[i][:2], with_real_part(h, real), part_key, True)[0]
            return real_part(out), out

        _, pullback, out = jax.vjp(forward, real_part(h), has_aux=True)

        def back(grad_h: PyTree) -> PyTree:
            (cotangent,) = pullback(by_rows(rules, as_cotangent, grad_h, examples.weight))
            return by_rows(rules, as_gradient, cotangent, examples.weight)

        return back, out

    _, h = run(0, learner.modules[0], x)
    activations, pullbacks, exact_pullbacks = [h], [], []
    for i, module in enumerate(learner.modules[1:], start=1):
        pullback, h = run(i, module, h)
        pullbacks.append(pullback)
        # Where a backward rule is in force, the module's own pullback is not the true one.
        exact = run(i, module.exact, activations[-1])[0] if module.exact else pullback
        exact_pullbacks.append(exact)
        activations.append(h)

    _, error = error_of(rules, h, examples)
    true, estimated = [], []
    grad_h, grad_h_hat = error, error
    for i in reversed(range(len(learner.estimators))):
        grad_h, incoming = exact_pullbacks[i](grad_h), pullbacks[i](grad_h_hat)
        estimator, h = learner.estimators[i], activations[i]
        signal = estimator.reads.choose(error=error, incoming=incoming)
        where = f"the boundary after {learner.chain.names[i]}"
        grad_h_hat = estimate_at(
            rules, where, estimator, state.estimators[i].est_params, h, examples, signal
        )
        true.append(grad_h)
        estimated.append(grad_h_hat)
    return BoundaryGradients(tuple(reversed(true)), tuple(reversed(estimated)))


def cosine(a: Float[AnyArray, "*shape"], b: Float[AnyArray, "*shape"]) -> Float[Array, ""]:
    """Cosine of the angle between two arrays taken as one vector each; 0 where either is zero.

    Args:
      a, b: here gradients of a whole batch, (batch, ...).

    Returns:
      In [-1, 1].
    """
    chex.assert_equal_shape([a, b])
    return jnp.vdot(unit_length(a), unit_length(b))


def sign_agreement(
    estimated: Float[AnyArray, "*shape"], true: Float[AnyArray, "*shape"]
) -> Float[Array, ""]:
    """Fraction of the true gradient's nonzero entries whose sign the estimate has.

    Entries with a true gradient of zero have no sign to agree with and are left out; an estimate of
    zero agrees with none. A random guess reaches a half.

    Args:
      estimated, true: here gradients of a whole batch, (batch, ...).

    Returns:
      In [0, 1]; 0 where the true gradient is zero throughout.
    """
    chex.assert_equal_shape([estimated, true])
    counted = true != 0
    agree = counted & (jnp.sign(estimated) == jnp.sign(true))
    return jnp.sum(agree) / jnp.maximum(jnp.sum(counted), 1)


def norm_ratio(estimated: Float[AnyArray, "*shape"], true: Float[AnyArray, "*shape"]) -> Float[Array, ""]:
    """Length of the estimate relative to the true gradient's, each taken as one vector: 1 is right.

    Args:
      estimated, true: here gradients of a whole batch, (batch, ...).

    Returns:
      At least 0; 1 where both are zero, infinite where only the true gradient is.
    """
    chex.assert_equal_shape([estimated, true])
    return _quotient(length(estimated), length(true))


def r_squared(estimated: Float[AnyArray, "*shape"], true: Float[AnyArray, "*shape"]) -> Float[Array, ""]:
    """R² of the estimate against the zero estimate: 1 - |estimated - true|² / |true|².

    Below 0 the estimate is worse than none. Unlike the cosine it also asks for the right length.

    Args:
      estimated, true: here gradients of a whole batch, (batch, ...).

    Returns:
      At most 1; where the true gradient is zero 0 if the estimate is too, else minus infinity.
    """
    chex.assert_equal_shape([estimated, true])
    difference = at_least_float32(estimated) - at_least_float32(true)
    return 1 - jnp.square(_quotient(length(difference), length(true)))


def _quotient(a: Float[Array, ""], b: Float[Array, ""]) -> Float[Array, ""]:
    """a / b of numbers from 0; 1 where both are zero, infinite where only b is."""
    return jnp.where(b == 0, jnp.where(a == 0, 1.0, a + jnp.inf), a / jnp.where(b == 0, 1.0, b))
