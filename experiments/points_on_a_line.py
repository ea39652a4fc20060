"""Joint training of a network and its SG on points on a line, and the loss the SG stands for meanwhile.

Two hidden ReLU layers, one unit h with the boundary above it, and a linear output of that unit.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from decoupled.analysis import implicit_loss, implicit_prediction
from decoupled.estimators import as_given, linear, loss_shaped
from decoupled.learning.learner import Learner, make_learner
from decoupled.learning.state import LearnerState
from decoupled.losses import squared_error
from decoupled.models import mlp
from decoupled.modules import compose, from_functions
from decoupled.types import Array, Estimator, Key, Loss
from experiments.toy_data import binary_log_loss

DATA_SETS = ("separable labels", "random labels")
# Labels between the classes 0 and 1. At the ends a log loss has its minimum at infinity.
LABELS = np.linspace(0.02, 0.98, 25)
_POINTS, _WIDTH = 64, 32
_BRACKET = (-20.0, 20.0)  # of h
_LABEL_BRACKET = (-5.0, 6.0)


class Case(NamedTuple):
    """One loss with one SG.

    Attributes:
      name: for figures.
      loss: (output, y) -> (batch,).
      estimator: at the boundary.
      prediction: of the output, in units of y.
      excess: (output, y) -> loss above the lowest that any output has with this y.
    """

    name: str
    loss: Loss
    estimator: Estimator
    prediction: Callable[[Array], Array]
    excess: Callable[[Array, Array], Array]


class OnLine(NamedTuple):
    """Training on points on a line, (2 data sets, seeds, ...) each: separable labels, then random ones.

    Attributes:
      x, y: (..., points), the points and their classes.
      steps: (snapshots,), when they were taken; the rest is (snapshots, 2, seeds, ...).
      true, implicit: (..., labels, points), loss of each point's h with each label of LABELS.
      prediction: (..., points), the network's, in units of y.
      implicit_prediction: (..., points), of the SG; NaN where it has none.
    """

    x: Any
    y: Any
    steps: Any
    true: Any
    implicit: Any
    prediction: Any
    implicit_prediction: Any


def _divergence(output: Array, y: Array) -> Array:
    entropy = -y * jnp.log(y) - (1 - y) * jnp.log1p(-y)
    return binary_log_loss(output, y) - entropy.sum(axis=1)


def _both_classes(y: Array) -> Array:
    """(batch, 1), the share of class 1 -> (batch, 2)."""
    return jnp.concatenate([1 - y, y], axis=1)


CASES = (
    Case("squared error, linear SG", squared_error, linear(as_given), lambda out: out, squared_error),
    Case(
        "log loss, loss-shaped SG",
        binary_log_loss,
        loss_shaped(2, _both_classes),
        jax.nn.sigmoid,
        _divergence,
    ),
    Case("log loss, linear SG", binary_log_loss, linear(as_given), jax.nn.sigmoid, _divergence),
)


def _learner(case: Case) -> Learner:
    below = compose(mlp(2, _WIDTH, 1), "below")
    above = from_functions(
        lambda key, h: {"w": jnp.ones((1, 1)), "b": jnp.zeros((1,))},
        lambda params, h: h @ params["w"] + params["b"][None, :],
        "above",
    )
    return make_learner([below, above], [case.estimator], case.loss, optax.adam(3e-3), optax.adam(1e-2))


def _data(key: Key) -> tuple[Array, Array]:
    """x, (2, points, 1), and y, alike: separable, then random labels."""
    x = jnp.linspace(-1, 1, _POINTS)
    y = jnp.stack([x > 0, jax.random.bernoulli(key, 0.5, x.shape)]).astype(x.dtype)
    return jnp.broadcast_to(x[None, :, None], (2, _POINTS, 1)), y[:, :, None]


def train(case: Case, seeds: int, last_step: int, snapshots: int) -> OnLine:
    """Trains `seeds` networks on each data set; looks at them `snapshots` times up to `last_step`."""
    learner = _learner(case)
    steps = np.unique(np.geomspace(10, last_step, snapshots).round().astype(int))
    keys = jax.random.split(jax.random.key(0), seeds)
    x, y = jax.vmap(_data, out_axes=1)(keys)

    def run(key: Key, x: Array, y: Array) -> tuple[Array, ...]:
        def advance(state: LearnerState, count: Array) -> tuple[LearnerState, tuple[Array, ...]]:
            nothing_drawn = jax.random.key(0)
            state = jax.lax.fori_loop(
                0, count, lambda _, s: learner.update(s, x, y, nothing_drawn)[0], state
            )
            return state, _extract(case, learner, state, x)

        return jax.lax.scan(advance, learner.init(key, x, y), jnp.diff(steps, prepend=0))[1]

    every_seed = jax.vmap(jax.vmap(run, out_axes=1), in_axes=(None, 0, 0), out_axes=1)
    found = jax.device_get(jax.jit(every_seed)(keys, x, y))
    return OnLine(np.asarray(x)[..., 0], np.asarray(y)[..., 0], steps, *found)


def _extract(case: Case, learner: Learner, state: LearnerState, x: Array) -> tuple[Array, ...]:
    """The last four fields of `OnLine`, of one network."""
    below, above = state.modules
    key = jax.random.key(0)
    h, _ = learner.modules[0].apply(below.params, below.state, x, key, False)
    output, _ = learner.modules[1].apply(above.params, above.state, h, key, False)
    estimate, est_params = case.estimator.estimate, state.estimators[0].params

    def with_label(label: Array) -> tuple[Array, Array]:
        y = jnp.full_like(h, label)
        return case.excess(output, y), implicit_loss(estimate, est_params, h, y, *_BRACKET)

    true, implicit = jax.vmap(with_label)(jnp.asarray(LABELS, h.dtype))
    label = implicit_prediction(estimate, est_params, h, *_LABEL_BRACKET)
    return true, implicit, case.prediction(output)[:, 0], label[:, 0]


class Nearness(NamedTuple):
    """How near what was extracted is to the truth, (snapshots, 2 data sets, seeds) each.

    Attributes:
      correlation: of the implicit loss with the true one, over points and labels.
      error: |implicit - true| / |true|, over points and labels.
      mistakes: number of points that the network puts into the wrong class.
      seen: of these, those that the SG's implicit prediction puts there too.
    """

    correlation: Any
    error: Any
    mistakes: Any
    seen: Any


def nearness(found: OnLine) -> Nearness:
    shape = found.true.shape[:3]
    true, implicit = (loss.reshape(*shape, -1) for loss in (found.true, found.implicit))
    error = np.linalg.norm(implicit - true, axis=-1) / np.linalg.norm(true, axis=-1)
    says_1 = found.prediction > 0.5
    mistaken = says_1 != (found.y > 0.5)[None]
    # No implicit prediction, NaN, is neither above 0.5 nor below.
    agrees = np.where(says_1, found.implicit_prediction > 0.5, found.implicit_prediction <= 0.5)
    mistakes, seen = mistaken.sum(axis=-1), (mistaken & agrees).sum(axis=-1)
    return Nearness(_correlation(true, implicit), error, mistakes, seen)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (v - v.mean(axis=-1, keepdims=True) for v in (a, b))
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return (a * b).sum(axis=-1) / np.maximum(norms, np.finfo(a.dtype).tiny)
