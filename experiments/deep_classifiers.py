"""One deep network with batch normalisation, trained in several ways from the same initial parameters.

Every layer is a module in all of them, and backprop's are those with the true gradient at a boundary: so
the initial parameters, the batches and the layers that can be looked at are the same.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import decoupled
from decoupled import estimators
from decoupled.learning.learner import Learner
from decoupled.learning.state import LearnerState
from decoupled.losses import softmax_cross_entropy
from decoupled.types import Array, Key

METHODS = ("backprop", "one SG", "SGs everywhere", "one SG, labels unseen", "untrained")


class Training(NamedTuple):
    """What is trained, and for how long.

    Attributes:
      depth, width: of the hidden layers.
      classes: of the labels.
      examples, batch_size: of the training set, and of it in each step.
      epochs: number of times that the examples come up.
      rate: Adam's, for modules and estimators, at the start; it falls to zero by a cosine.
      activation: of the hidden layers.
      linear: whether SGs are hA + yB + c, as U17 has them; else they have the form that the gradient of a
        log loss has.
    """

    depth: int
    width: int
    classes: int
    examples: int
    batch_size: int
    epochs: int
    rate: float = 1e-3
    activation: Callable[[Array], Array] = nn.relu
    linear: bool = False

    @property
    def steps_per_epoch(self) -> int:
        return self.examples // self.batch_size

    @property
    def middle(self) -> int:
        """Number of hidden layers below the one SG."""
        return self.depth // 2


def make(training: Training, method: str) -> Learner:
    """The network as it is trained by one of METHODS.

    Two are controls: one SG without what U17 gives it, the labels; and a network that keeps its parameters
    and lets batch statistics settle, without which its layers could not be compared.
    """
    depth, width, classes = training.depth, training.width, training.classes
    layers = decoupled.models.mlp(depth, width, classes, norm="batch", activation=training.activation)
    true = estimators.backprop()
    labels = estimators.one_hot(classes)
    synthetic = estimators.linear(labels) if training.linear else estimators.loss_shaped(classes, labels)
    boundaries = [true] * depth
    if method == "one SG":
        boundaries[training.middle - 1] = synthetic
    elif method == "one SG, labels unseen":
        boundaries[training.middle - 1] = estimators.loss_shaped(classes)
    elif method == "SGs everywhere":
        boundaries = [synthetic] * depth
    steps = training.epochs * training.steps_per_epoch
    adam = optax.adam(optax.cosine_decay_schedule(training.rate, steps))
    optimizer = optax.set_to_zero() if method == "untrained" else adam
    return decoupled.make_learner(layers, boundaries, softmax_cross_entropy, optimizer, adam)


def train(
    learner: Learner, training: Training, seeds: int, x: Array, y: Array
) -> tuple[LearnerState, Array]:
    """Trains as many networks at once, each run in one loop on the device.

    The seed alone decides on initial parameters and batches, whatever the method.

    Args:
      x, y: training set, (examples, features) and (examples,).

    Returns:
      States stacked over the seeds 0, 1, ...; and the mean loss of each step's batch, (seeds, steps).
    """
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), 3))(jnp.arange(seeds))
    size = training.batch_size
    # Left to JAX operation by operation: equal layers then share what is compiled, as do all methods.
    states = jax.vmap(lambda key: learner.init(key, x[:size], y[:size]))(keys[:, 0])
    rows = _rows_of_batches(keys[:, 1], training)

    def run(state: LearnerState, rows: Array, key: Key) -> tuple[LearnerState, Array]:
        def step(state: LearnerState, rows: Array) -> tuple[LearnerState, Array]:
            state, metrics = learner.update(state, x[rows], y[rows], jax.random.fold_in(key, state.step))
            return state, metrics.loss

        return jax.lax.scan(step, state, rows)

    return jax.jit(jax.vmap(run))(states, rows, keys[:, 2])


@functools.partial(jax.jit, static_argnames="training")
def _rows_of_batches(keys: Key, training: Training) -> Array:
    """Which examples each step sees, every one once an epoch: (seeds,) -> (seeds, steps, batch_size)."""
    used = training.steps_per_epoch * training.batch_size

    def epoch(key: Key) -> Array:
        order = jax.random.permutation(key, training.examples)[:used]
        return order.reshape(training.steps_per_epoch, training.batch_size)

    def run(key: Key) -> Array:
        return jax.lax.map(epoch, jax.random.split(key, training.epochs)).reshape(-1, training.batch_size)

    return jax.vmap(run)(keys)
