"""A point that is critical for a system with synthetic gradients, and not for its loss.

The smallest network that has a new critical point: x, (n, 2) -> h = xw + b -> logit = hv + d.

Let r be what the best linear SG leaves of dL/dh. Least squares makes r orthogonal to h, to y and to 1, so
that E[SG x] = E[dL/dh x] - E[r x] where only the part of x that h does not tell is left in E[r x]. At a
critical point E[SG x] = 0: then w solves the normal equations of a regression of y on x, whatever the
loss. Above the boundary dL/dθ is exact: scale and offset are those of logistic regression along this w.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from decoupled.analysis import CriticalPoint, best_linear, critical_point
from decoupled.estimators import as_given, linear, loss_shaped
from decoupled.learning.learner import Learner, make_learner
from decoupled.learning.state import LearnerState
from decoupled.modules import from_functions
from decoupled.types import Array, Estimator, Key, Module, PyTree
from experiments.toy_data import binary_log_loss

EXAMPLES = 200
_SG_RATE = 0.02  # at 0.05 the linear SG's own descent diverges from one start in 60, where h is large


class Point(NamedTuple):
    """A critical point of the SG system, and what backprop would find.

    Attributes:
      x, y: (n, 2) and (n, 1), classes 0.0 and 1.0.
      w, b: of the lower module, where the SG system is at rest; the upper one has v = 1, d = 0.
      optimum: (w, b) of logistic regression, alike.
      conditions: at the critical point.
      at_optimum: with the best linear SG, at the optimum.
      excess: loss at the critical point above the optimum's.
    """

    x: Any
    y: Any
    w: Any
    b: Any
    optimum: tuple[Any, Any]
    conditions: CriticalPoint
    at_optimum: CriticalPoint
    excess: float


def _both_classes(y: Array) -> Array:
    return jnp.concatenate([1 - y, y], axis=1)


SGS: dict[str, Estimator] = {
    "linear SG": linear(as_given),
    "loss-shaped SG": loss_shaped(2, _both_classes),
}


def _affine(name: str, inputs: int, start: Callable[[Key, Any], Array]) -> Module:
    def init(key: Key, h: Array) -> PyTree:
        return {"w": start(key, (inputs, 1)), "b": jnp.zeros((1,), h.dtype)}

    return from_functions(init, lambda params, h: h @ params["w"] + params["b"][None, :], name)


def _learner(estimator: Estimator) -> Learner:
    modules = [
        _affine("below", 2, jax.random.normal),
        _affine("above", 1, lambda key, shape: jnp.ones(shape)),
    ]

    return make_learner(modules, [estimator], binary_log_loss, optax.sgd(0.1), optax.sgd(_SG_RATE))


def _clouds(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping Gaussian clouds, and some of class 1 far out on the right side of the line."""
    rng = np.random.default_rng(seed)
    y = (np.arange(EXAMPLES) % 2).astype(float)[:, None]
    x = rng.normal(size=(EXAMPLES, 2)) + (2 * y - 1) * np.array([[1.0, 0.0]])
    far = (y[:, 0] == 1) & (rng.random(EXAMPLES) < 0.3)
    return x + far[:, None] * np.array([[2.0, -4.0]]), y


def _logistic_regression(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Slopes and offset, (features + 1, 1), by Newton's method."""
    inputs = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    weights = np.zeros((inputs.shape[1], 1))
    for _ in range(50):
        p = 1 / (1 + np.exp(-inputs @ weights))
        weights -= np.linalg.solve(inputs.T @ (p * (1 - p) * inputs), inputs.T @ (p - y))
    return weights


def _conditions(learner: Learner, state: LearnerState, x: Array, y: Array) -> CriticalPoint:
    return critical_point(learner, state, x, y, jax.random.key(0))  # Nothing is drawn.


def critical_points(count: int) -> list[Point]:
    """Of as many training sets; in double precision, if that is enabled."""
    learner = _learner(SGS["linear SG"])
    measured = jax.jit(lambda state, x, y: _conditions(learner, state, x, y))
    start = jax.jit(learner.init)

    def at(x: np.ndarray, y: np.ndarray, w: np.ndarray, b: np.ndarray) -> tuple[CriticalPoint, float]:
        """The conditions with the best linear SG, and the loss."""
        h = x @ w + b
        target = 1 / (1 + np.exp(-h)) - y
        state = start(jax.random.key(0), x, y)
        below, above = state.modules
        below = below._replace(params={"w": jnp.asarray(w), "b": jnp.asarray(b)})
        fit = best_linear(jnp.asarray(h), jnp.asarray(target), jnp.asarray(y))
        estimator = state.estimators[0]._replace(params=fit.params)
        state = state._replace(modules=(below, above), estimators=(estimator,))
        loss = float(np.mean(np.logaddexp(0, h) - y * h))
        return jax.tree.map(float, measured(state, x, y)), loss

    def find(seed: int) -> Point:
        x, y = _clouds(seed)
        inputs = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        direction = np.linalg.lstsq(inputs, y, rcond=None)[0][:2]
        scale, b = _logistic_regression(x @ direction, y)
        w = direction * scale
        optimum = _logistic_regression(x, y)
        found, loss = at(x, y, w, b)
        at_optimum, lowest = at(x, y, optimum[:2], optimum[2])
        return Point(x, y, w, b, (optimum[:2], optimum[2]), found, at_optimum, loss - lowest)

    return [find(seed) for seed in range(count)]


class Run(NamedTuple):
    """Joint training of the small network and an SG, from random starts.

    Attributes:
      steps: (looks,).
      conditions: (points, looks) each.
      w: (points, 2), the lower module's at the end.
    """

    steps: Any
    conditions: CriticalPoint
    w: Any


def train_from_random_starts(estimator: Estimator, points: list[Point], last_step: int) -> Run:
    learner = _learner(estimator)
    steps = np.unique(np.geomspace(1, last_step, 30).round().astype(int))

    def run(seed: Array, x: Array, y: Array) -> tuple[CriticalPoint, Array]:
        start = learner.init(jax.random.key(seed), x, y)
        # The library's estimators start in single precision.
        start = jax.tree.map(
            lambda leaf: leaf.astype(x.dtype) if leaf.dtype == jnp.float32 else leaf, start
        )

        def look(state: LearnerState, count: Array) -> tuple[LearnerState, CriticalPoint]:
            def step(_: Any, state: LearnerState) -> LearnerState:
                return learner.update(state, x, y, jax.random.key(0))[0]

            state = jax.lax.fori_loop(0, count, step, state)
            return state, _conditions(learner, state, x, y)

        state, seen = jax.lax.scan(look, start, jnp.diff(steps, prepend=0))
        return seen, state.modules[0].params["w"][:, 0]

    x, y = (jnp.asarray(np.stack([getattr(p, field) for p in points])) for field in ("x", "y"))
    return Run(steps, *jax.device_get(jax.jit(jax.vmap(run))(jnp.arange(len(points)), x, y)))
