"""The two functions that are compiled: a training step that keeps running totals, and evaluation."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decoupled.analysis import boundary_gradients, cosine
from decoupled.data import Preprocess, Split
from decoupled.learner import Learner
from decoupled.stack import Stack
from decoupled.state import BoundaryMetrics, LearnerState
from decoupled.types import Array, Estimator, Key, Module


class Totals(NamedTuple):
    """Sums over the steps since they were last read; on the device, so that no step waits for the host.

    Attributes:
      loss: sum of batch means.
      accuracy: sum of batch means.
      boundaries: sums of each boundary's metrics, those of a stack in one array; None where the estimator
        is not trained.
    """

    loss: Array
    accuracy: Array
    boundaries: tuple[BoundaryMetrics | None, ...]


def no_totals(learner: Learner) -> Totals:
    """Totals of no step."""

    def zero(*shape: int) -> Array:
        return jnp.zeros(shape, jnp.float32)

    def zeros(link: Module | Stack, spec: Estimator) -> BoundaryMetrics | None:
        if spec.training_gradient is None:
            return None
        shape = (len(link.names),) if isinstance(link, Stack) else ()
        return BoundaryMetrics(zero(*shape), None if spec.own_loss else zero(*shape))

    chain = learner.chain
    return Totals(zero(), zero(), tuple(map(zeros, chain.links, chain.estimators)))


def train_step(learner: Learner, preprocess: Preprocess) -> Callable:
    """A pure (state, totals, images, labels, key) -> (state, totals).

    Each step's randomness comes from `key` and the step's number, so the same `key` serves a whole run.
    """

    def step(
        state: LearnerState, totals: Totals, images: Array, labels: Array, key: Key
    ) -> tuple[LearnerState, Totals]:
        prepare_key, update_key = jax.random.split(jax.random.fold_in(key, state.step))
        inputs = preprocess.train(prepare_key, images)
        state, metrics = learner.update(state, inputs, labels, update_key)
        accuracy = jnp.mean(metrics.output.argmax(-1) == labels)
        new = Totals(metrics.loss, accuracy, metrics.boundaries)
        return state, jax.tree.map(jnp.add, totals, new)

    return step


def alignment_step(learner: Learner, preprocess: Preprocess) -> Callable:
    """A pure (state, images, labels, key) -> cosine of estimate and true gradient, (boundaries,)."""

    def measure(state: LearnerState, images: Array, labels: Array, key: Key) -> Array:
        gradients = boundary_gradients(learner, state, preprocess.evaluate(images), labels, key)
        return jnp.stack([cosine(t, e) for t, e in zip(*gradients, strict=True)])

    return measure


def evaluator(
    learner: Learner, preprocess: Preprocess, batch_size: int
) -> Callable[[LearnerState, Split], dict[str, float]]:
    """A function (state, split) -> accuracy and mean loss over all its examples."""

    @jax.jit
    def sums(state: LearnerState, images: Array, labels: Array, real: Array) -> Array:
        output = learner.predict(state, preprocess.evaluate(images))
        losses, correct = learner.loss(output, labels), output.argmax(-1) == labels
        return jnp.stack([jnp.sum(jnp.where(real, values, 0)) for values in (losses, correct)])

    def evaluate(state: LearnerState, split: Split) -> dict[str, float]:
        totals = []
        for start in range(0, len(split), batch_size):
            images, labels = (part[start : start + batch_size] for part in split)
            # The last batch is filled up, so that one compiled shape serves all.
            missing = batch_size - len(labels)
            real = np.arange(batch_size) < len(labels)
            images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
            totals.append(sums(state, images, np.pad(labels, (0, missing)), real))
        loss, correct = np.stack(jax.device_get(totals)).astype(np.float64).sum(0).tolist()
        return {"accuracy": correct / len(split), "loss": loss / len(split)}

    return evaluate
