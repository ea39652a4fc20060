"""The functions that are compiled: a training step that keeps running totals, and evaluation."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decoupled.analysis import boundary_gradients, cosine
from decoupled.data import Preprocess, Split
from decoupled.learning.learner import Learner
from decoupled.learning.module_update import mean_over, no_metrics
from decoupled.learning.stack import Stack
from decoupled.learning.state import BoundaryMetrics, LearnerState, Metrics
from decoupled.training.average import evaluated
from decoupled.training.execution import Execution
from decoupled.training.objectives import ACCURACY, Metric
from decoupled.types import Array, Estimator, Key, Module


class Totals(NamedTuple):
    """Sums over the steps since they were last read; on the device, so that no step waits for the host.

    Attributes:
      steps: whose loss has come in.
      loss: sum of batch means.
      score: sum of batch means of the run's metric.
      boundaries: sums of each boundary's metrics, those of a stack in one array; None where the estimator
        is not trained.
    """

    steps: Array
    loss: Array
    score: Array
    boundaries: tuple[BoundaryMetrics | None, ...]


def no_totals(learner: Learner) -> Totals:
    """Totals of no step."""

    def zeros(link: Module | Stack, spec: Estimator) -> BoundaryMetrics | None:
        return no_metrics(spec, (len(link.names),) if isinstance(link, Stack) else ())

    boundaries = tuple(map(zeros, learner.chain.links, learner.chain.estimators))
    steps, loss, score = (jnp.zeros((), jnp.float32) for _ in range(3))  # apart, since they are donated
    return Totals(steps, loss, score, boundaries)


def add_step(
    totals: Totals,
    metrics: Metrics,
    labels: Array,
    axis_name: str | None = None,
    metric: Metric = ACCURACY,
) -> Totals:
    """Totals with one step more; `axis_name` is the learner's."""
    score = mean_over(axis_name, jnp.mean(metric.function(metrics.output, labels)))
    new = Totals(jnp.ones(()), metrics.loss, score, metrics.boundaries)
    return jax.tree.map(jnp.add, totals, new)


def prepare(preprocess: Preprocess, step: Array, images: Array, key: Key) -> tuple[Array, Key]:
    """The inputs of a step, augmented as one batch, and the key of its update.

    Each step's randomness comes from `key` and the step's number, so the same `key` serves a whole run.
    """
    prepare_key, update_key = jax.random.split(jax.random.fold_in(key, step))
    return preprocess.train(prepare_key, images), update_key


def advance(learner: Learner, metric: Metric = ACCURACY) -> Callable:
    """A pure (state, totals, inputs, labels, update_key) -> (state, totals).

    Under the learner's mapped axis, if it has one, each device gives its part of the batch.
    """

    def update(
        state: LearnerState, totals: Totals, inputs: Array, labels: Array, key: Key
    ) -> tuple[LearnerState, Totals]:
        state, metrics = learner.update(state, inputs, labels, key)
        return state, add_step(totals, metrics, labels, learner.rules.axis_name, metric)

    return update


def train_step(
    learner: Learner,
    preprocess: Preprocess,
    update: Callable | None = None,
    metric: Metric = ACCURACY,
) -> Callable:
    """A pure (state, totals, images, labels, key) -> (state, totals).

    Args:
      update: in place of `advance(learner, metric)`, to the same effect.
    """
    update = update or advance(learner, metric)

    def step(
        state: LearnerState, totals: Totals, images: Array, labels: Array, key: Key
    ) -> tuple[LearnerState, Totals]:
        inputs, update_key = prepare(preprocess, state.step, images, key)
        return update(state, totals, inputs, labels, update_key)

    return step


def alignment_step(learner: Learner, preprocess: Preprocess) -> Callable:
    """A pure (state, images, labels, key) -> cosine of estimate and true gradient, (boundaries,)."""

    def measure(state: LearnerState, images: Array, labels: Array, key: Key) -> Array:
        gradients = boundary_gradients(learner, state, preprocess.evaluate(images), labels, key)
        return jnp.stack([cosine(t, e) for t, e in zip(*gradients, strict=True)])

    return measure


def evaluator(
    learner: Learner,
    preprocess: Preprocess,
    batch_size: int,
    execution: Execution | None = None,
    metric: Metric = ACCURACY,
) -> Callable[[LearnerState, Split], dict[str, float]]:
    """A function (state, split) -> means over all its examples of the metric, by its name, and of the loss.

    They are those of `evaluated(state)`.

    Args:
      batch_size: at least; rounded up to what the devices can share alike.
      execution: says which devices; without it, wherever the state is.
    """
    rows: slice | np.ndarray = slice(None)
    if execution is not None:
        batch_size = -(-batch_size // execution.devices) * execution.devices
        rows = execution.rows(batch_size)

    def sums(state: LearnerState, images: Array, labels: Array, real: Array) -> Array:
        output = learner.predict(evaluated(state), preprocess.evaluate(images))
        losses, scores = learner.loss(output, labels), metric.function(output, labels)
        return jnp.stack([jnp.sum(jnp.where(real, values, 0)) for values in (losses, scores)])

    compiled = jax.jit(sums) if execution is None else execution.measure(sums)

    def evaluate(state: LearnerState, split: Split) -> dict[str, float]:
        totals = []
        for start in range(0, len(split), batch_size):
            images, labels = (part[start : start + batch_size] for part in split)
            # The last batch is filled up, so that one compiled shape serves all.
            missing = batch_size - len(labels)
            real = np.arange(batch_size) < len(labels)
            images, labels = (
                np.pad(part, ((0, missing), *[(0, 0)] * (part.ndim - 1))) for part in (images, labels)
            )
            batch = (images[rows], labels[rows], real[rows])
            totals.append(compiled(state, *(batch if execution is None else execution.place_batch(batch))))
        loss, score = np.stack(jax.device_get(totals)).astype(np.float64).sum(0).tolist()
        return {metric.name: score / len(split), "loss": loss / len(split)}

    return evaluate
