"""The functions that are compiled: a training step that keeps running totals, and evaluation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decoupled.analysis import boundary_gradients, cosine
from decoupled.data import Preprocess
from decoupled.data.dataset import AnySplit, batches_in_order
from decoupled.data.stream import Stream
from decoupled.learning.learner import Learner
from decoupled.learning.module_update import mean_of, no_metrics
from decoupled.learning.stack import Stack
from decoupled.learning.state import BoundaryMetrics, LearnerState, Metrics
from decoupled.leaves import joined_rows, per_example
from decoupled.shapes import AnyArray, Bool, Float, Integer, Shaped
from decoupled.training.average import evaluated
from decoupled.training.execution import Execution
from decoupled.training.objectives import ACCURACY, Metric
from decoupled.types import Array, Estimator, Key, Module, PyTree
from decoupled.weights import mean


class Totals(NamedTuple):
    """Sums over the steps since they were last read; on the device, so that no step waits for the host.

    Attributes:
      steps: whose loss has come in; where examples have weights, the sum of these, and all others are
        sums of means times it.
      loss: sum of batch means.
      score: sum of batch means of the run's metric.
      boundaries: sums of each boundary's metrics, those of a stack in one array; None where the estimator
        is not trained.
    """

    steps: Float[Array, ""]
    loss: Float[Array, ""]
    score: Float[Array, ""]
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
    labels: PyTree,
    axis_name: str | None = None,
    metric: Metric = ACCURACY,
    weight: Shaped[AnyArray, "*examples"] | None = None,
    batch_axes: int = 1,
) -> Totals:
    """Totals with one step more; `axis_name` and `batch_axes` are the learner's."""
    output, labels, weight = per_example((metrics.output, labels, weight), batch_axes)
    score = mean_of(axis_name, mean(metric.function(output, labels), weight), weight)
    new = Totals(jnp.ones(()), metrics.loss, score, metrics.boundaries)
    if weight is not None:
        count = weight.sum() if axis_name is None else jax.lax.psum(weight.sum(), axis_name)
        new = jax.tree.map(lambda value: value * count, new)
    return jax.tree.map(lambda total, value: total + value.astype(total.dtype), totals, new)


def means(totals: Totals, metric: str) -> dict[str, Any]:
    """Of the steps in totals that have been read, and whose boundaries are one by one; plain numbers.

    Returns:
      "loss" and the metric by its name; "estimator_loss" and "r2", lists of one entry a boundary: None
      where nothing is trained, and of R2 where there is no target, or none but zeros.
    """
    boundaries, steps = totals.boundaries, float(totals.steps) or 1.0
    return {
        "loss": float(totals.loss) / steps,
        metric: float(totals.score) / steps,
        "estimator_loss": [None if b is None else float(b.loss) / steps for b in boundaries],
        "r2": [
            1 - float(b.loss) / float(b.target_power) if b is not None and b.target_power else None
            for b in boundaries
        ],
    }


def prepare(
    preprocess: Preprocess, step: Integer[Array, ""], images: PyTree, key: Key
) -> tuple[PyTree, Key]:
    """The inputs of a step, augmented as one batch, and the key of its update.

    Each step's randomness comes from `key` and the step's number, so the same `key` serves a whole run.
    """
    prepare_key, update_key = jax.random.split(jax.random.fold_in(key, step))
    return preprocess.train(prepare_key, images), update_key


def advance(learner: Learner, metric: Metric = ACCURACY) -> Callable:
    """A pure (state, totals, inputs, labels, update_key, weight=None) -> (state, totals).

    Under the learner's mapped axis, if it has one, each device gives its part of the batch.
    """

    def update(
        state: LearnerState,
        totals: Totals,
        inputs: PyTree,
        labels: PyTree,
        key: Key,
        weight: Shaped[AnyArray, "*examples"] | None = None,
    ) -> tuple[LearnerState, Totals]:
        state, metrics = learner.update(state, inputs, labels, key, weight)
        rules = learner.rules
        return state, add_step(totals, metrics, labels, rules.axis_name, metric, weight, rules.batch_axes)

    return update


def train_step(
    learner: Learner,
    preprocess: Preprocess,
    update: Callable | None = None,
    metric: Metric = ACCURACY,
) -> Callable:
    """A pure (state, totals, images, labels, key, weight=None) -> (state, totals).

    Args:
      update: in place of `advance(learner, metric)`, to the same effect.
    """
    update = update or advance(learner, metric)

    def step(
        state: LearnerState,
        totals: Totals,
        images: PyTree,
        labels: PyTree,
        key: Key,
        weight: Shaped[AnyArray, "*examples"] | None = None,
    ) -> tuple[LearnerState, Totals]:
        inputs, update_key = prepare(preprocess, state.step, images, key)
        return update(state, totals, inputs, labels, update_key, weight)

    return step


def train_loop(step: Callable, spread: Callable[[PyTree], PyTree] = lambda batch: batch) -> Callable:
    """A pure (state, totals, data, order, first, count, key) -> (state, totals) that takes many steps.

    `data` are the images, labels and, where there are some, weights of a whole data set; `order` has the
    rows of each batch of an epoch, (batches, batch_size). Steps are taken on `count` of these, from number
    `first` on. How many is no part of what is compiled, so that a run's numbers do not depend on how it is
    cut into calls.

    Args:
      step: from `train_step`.
      spread: a batch -> the same, where devices want it.
    """

    def loop(
        state: PyTree,
        totals: PyTree,
        data: tuple[PyTree, ...],
        order: Integer[Array, "batches batch_size"],
        first: Integer[Array, ""],
        count: Integer[Array, ""],
        key: Key,
    ) -> tuple[PyTree, PyTree]:
        def take(i: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            rows = jax.lax.dynamic_index_in_dim(order, first + i, keepdims=False)
            batch = jax.tree.map(lambda leaf: leaf.at[rows].get(mode="promise_in_bounds"), data)
            images, labels, *weight = spread(batch)
            return step(*carry, images, labels, key, *weight)

        return jax.lax.fori_loop(0, count, take, (state, totals))

    return loop


def alignment_step(learner: Learner, preprocess: Preprocess) -> Callable:
    """A pure (state, images, labels, key, weight=None) -> cosine of estimate and true gradient,
    (boundaries,); of several arrays as if they were one."""

    def measure(
        state: LearnerState, images: PyTree, labels: PyTree, key: Key, weight: Array | None = None
    ) -> Array:
        gradients = boundary_gradients(learner, state, preprocess.evaluate(images), labels, key, weight)
        pairs = zip(*gradients, strict=True)
        return jnp.stack([cosine(joined_rows(true), joined_rows(estimated)) for true, estimated in pairs])

    return measure


def evaluator(
    learner: Learner,
    preprocess: Preprocess,
    batch_size: int,
    execution: Execution | None = None,
    metric: Metric = ACCURACY,
) -> Callable[[LearnerState, AnySplit | tuple[PyTree, ...]], dict[str, float]]:
    """A function (state, split) -> means over all its examples of the metric, by its name, and of the loss.

    They are those of `evaluated(state)`. A split is a pair of inputs and labels, or has weights besides.

    Args:
      batch_size: at least; rounded up to what the devices can share alike.
      execution: says which devices; without it, wherever the state is.
    """
    own_rows: slice | np.ndarray = slice(None)
    if execution is not None:
        batch_size = -(-batch_size // execution.devices) * execution.devices
        own_rows = execution.rows(batch_size)

    def sums(
        state: LearnerState,
        images: PyTree,
        labels: PyTree,
        real: Bool[Array, " batch"],
        weight: Shaped[Array, "batch *examples"] | None = None,
    ) -> Float[Array, "loss_score_count"]:
        output = learner.predict(evaluated(state), preprocess.evaluate(images))
        output, labels, weight = per_example((output, labels, weight), learner.rules.batch_axes)
        values = learner.loss(output, labels), metric.function(output, labels)
        counts = jnp.repeat(real, len(values[0]) // len(real))
        counts = counts if weight is None else jnp.where(counts, weight, 0)
        # What is in an example that does not count may be anything, and so is its loss.
        each = [jnp.where(counts != 0, value * counts, 0) for value in (*values, jnp.ones_like(values[0]))]
        return jnp.stack([jnp.sum(value) for value in each])

    compiled = jax.jit(sums) if execution is None else execution.measure(sums)

    def evaluate(state: LearnerState, split: AnySplit | tuple[PyTree, ...]) -> dict[str, float]:
        count = len(split) if isinstance(split, Stream) else len(jax.tree.leaves(split[0])[0])
        wanted = [np.arange(start, start + batch_size)[own_rows] for start in range(0, count, batch_size)]
        # The last batch is filled up, so that one compiled shape serves all.
        batches = batches_in_order(split, [np.minimum(rows, count - 1) for rows in wanted])
        totals = []
        for rows, (images, labels, *weight) in zip(wanted, batches, strict=True):
            batch = (images, labels, rows < count, *weight)
            totals.append(compiled(state, *(batch if execution is None else execution.place_batch(batch))))
        loss, score, all_counts = np.stack(jax.device_get(totals)).astype(np.float64).sum(0).tolist()
        return {metric.name: score / all_counts, "loss": loss / all_counts}

    return evaluate
