"""The smallest system with critical points that its loss has not: a line, and a number for an SG.

At x = -2, -1, 1, 2 a line f = ax + b is to be 0; the loss is |f|, and SG(h) a number c. The best c is the
mean of the signs of f. Where b = 0 these cancel, whatever a is, and with c = 0 nothing moves: all a are
critical. The loss itself falls as |a| does: its gradient there is the mean of |x|, 1.5.
"""

import jax
import jax.numpy as jnp
import optax

from decoupled.analysis import CriticalPoint, critical_point
from decoupled.estimators.synthetic_gradient import by_gradient
from decoupled.learning.learner import make_learner
from decoupled.modules import from_functions
from decoupled.types import Array, Estimator
from experiments.linear_networks import identity_module

POINTS = (-2.0, -1.0, 1.0, 2.0)


def constant() -> Estimator:
    """One number a feature, whatever h and y are."""

    def estimate(est_params: Array, h: Array, y: Array, signal: None = None) -> Array:
        return jnp.broadcast_to(est_params[None], h.shape)

    return Estimator(
        "constant",
        lambda key, h, y: jnp.zeros(h.shape[1:], h.dtype),
        estimate,
        by_gradient(estimate),
        sees_y=False,
    )


def conditions(a: float) -> CriticalPoint:
    """Of the system at slope a, b = c = 0."""
    line = from_functions(
        lambda key, x: {"a": jnp.full((), a), "b": jnp.zeros(())},
        lambda params, x: x * params["a"] + params["b"],
        "line",
    )
    sgd, key = optax.sgd(0.1), jax.random.key(0)  # Nothing is drawn.
    modules = [line, identity_module("output")]
    learner = make_learner(modules, [constant()], lambda f, y: jnp.abs(f).sum(axis=1), sgd, sgd)
    x = jnp.asarray(POINTS)[:, None]
    return critical_point(learner, learner.init(key, x, x), x, x, key)
