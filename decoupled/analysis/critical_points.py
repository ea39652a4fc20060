"""Whether a point is critical: for the loss, and for the system in which synthetic gradients take part.

Backprop stops where dL/dθ = 0. With SGs the system stops where three things vanish (U17):
dL/dθ of what lies above the boundary, SG(h, y) dh/dθ of what lies below it, and dL_SG/dφ of the SG. With
many boundaries each module but the last is below one, and each SG's target comes from the SG above it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from decoupled.analysis.scaled import length
from decoupled.estimators.synthetic_gradient import sg_loss
from decoupled.learning.learner import Learner
from decoupled.learning.module_update import forward
from decoupled.learning.state import LearnerState
from decoupled.losses import output_error
from decoupled.shapes import AnyArray, Shaped
from decoupled.types import Array, Estimator, Key, PyTree


class CriticalPoint(NamedTuple):
    """How far a point is from critical: norms of gradients of means over the examples, all scalars.

    Attributes:
      loss: the mean itself.
      gradient: |dL/dθ| of the whole network, as backprop has it.
      above: |dL/dθ| of the module above the highest boundary.
      below: one a boundary, |SG(h, y) dh/dθ| of the module below it.
      fit: one a boundary, |dL_SG/dφ| (or of an estimator's own loss); 0 where nothing is trained.
    """

    loss: Array
    gradient: Array
    above: Array
    below: tuple[Array, ...]
    fit: tuple[Array, ...]

    @property
    def worst(self) -> Array:
        """Of the three conditions: 0 at a critical point of the system, whatever `gradient` is."""
        return functools.reduce(jnp.maximum, (self.above, *self.below, *self.fit))


def critical_point(
    learner: Learner, state: LearnerState, x: Shaped[AnyArray, "batch *shape"], y: PyTree, key: Key
) -> CriticalPoint:
    """Measures the conditions on one set of examples.

    Args:
      learner: modules run in training mode, as in `learner.update(state, x, y, key)`.
      state: not changed.
      x, y: the examples; y leads with the same ones.
      key: as given to `update`.

    References:
      U17, on critical points.
    """
    state = learner.unstack(state)
    keys = [jax.random.fold_in(key, i) for i in range(len(learner.modules))]

    def mean_loss(params_of_each: list[PyTree]) -> Array:
        h = x
        for i, (module, params) in enumerate(zip(learner.modules, params_of_each, strict=True)):
            # Where a backward rule is in force, the module's own gradient is not the true one.
            h, _ = (module.exact or module).apply(params, state.modules[i].state, h, keys[i], True)
        return learner.loss(h, y).mean()

    loss, gradient = jax.value_and_grad(mean_loss)([module.params for module in state.modules])

    rules = learner.rules._replace(axis_name=None)
    h, passed = x, []
    for i, module in enumerate(learner.modules):
        passed.append(forward(rules, module, state.modules[i], h, keys[i], lowest=i == 0))
        h = passed[i].h_out

    def mean_norm(per_example_sum: PyTree) -> Array:
        return length(per_example_sum) / x.shape[0]

    _, error = output_error(learner.loss, h, y)
    grad_params, *target = passed[-1].pullback(error)
    above, below, fit = mean_norm(grad_params), [], []
    for i in reversed(range(len(learner.estimators))):
        estimator, est_params, h = learner.estimators[i], state.estimators[i].est_params, passed[i].h_out
        signal = estimator.reads.choose(error=error, incoming=target[0])
        fit.append(length(_fit_gradient(estimator, est_params, h, y, target[0], signal)))
        grad_h_hat = estimator.estimate(est_params, h, y, signal).astype(h.dtype)
        grad_params, *target = passed[i].pullback(grad_h_hat)
        below.append(mean_norm(grad_params))
    return CriticalPoint(loss, length(gradient), above, tuple(below[::-1]), tuple(fit[::-1]))


def _fit_gradient(
    estimator: Estimator, est_params: PyTree, h: Array, y: PyTree, target: Array, signal: Array | None
) -> PyTree:
    if estimator.training_gradient is None:
        return jnp.zeros(())
    if estimator.optimizer is None:
        return estimator.training_gradient(est_params, h, y, target)[1]
    # What it hands an optimizer of its own need not be a gradient.
    return jax.grad(lambda p: sg_loss(estimator.estimate(p, h, y, signal), target))(est_params)
