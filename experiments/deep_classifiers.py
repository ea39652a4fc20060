"""One deep ReLU network with batch normalisation, trained in several ways from the same initial parameters.

Every layer is a module in all of them, and backprop's are those with the true gradient at a boundary: so
the initial parameters, the batches and the layers that can be looked at are the same.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

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
    """

    depth: int
    width: int
    classes: int
    examples: int
    batch_size: int
    epochs: int
    rate: float = 1e-3

    @property
    def steps_per_epoch(self) -> int:
        return self.examples // self.batch_size

    @property
    def middle(self) -> int:
        """Number of hidden layers below the one SG."""
        return self.depth // 2


def make(training: Training, method: str) -> Learner:
    """The network as it is trained by one of METHODS.

    The SG is the library's default, of the form that the gradient of a log loss has. Two are controls:
    one SG without what U17 gives it, the labels; and a network that keeps its parameters and lets batch
    statistics settle, without which its layers could not be compared.
    """
    layers = decoupled.models.mlp(training.depth, training.width, training.classes, norm="batch")
    true = estimators.backprop()
    synthetic = estimators.loss_shaped(training.classes, estimators.one_hot(training.classes))
    boundaries = [true] * training.depth
    if method == "one SG":
        boundaries[training.middle - 1] = synthetic
    elif method == "one SG, labels unseen":
        boundaries[training.middle - 1] = estimators.loss_shaped(training.classes)
    elif method == "SGs everywhere":
        boundaries = [synthetic] * training.depth
    steps = training.epochs * training.steps_per_epoch
    adam = optax.adam(optax.cosine_decay_schedule(training.rate, steps))
    optimizer = optax.set_to_zero() if method == "untrained" else adam
    return decoupled.make_learner(layers, boundaries, softmax_cross_entropy, optimizer, adam)


def train(learner: Learner, training: Training, seeds: int, x: Array, y: Array) -> LearnerState:
    """Trains as many networks at once, each run in one loop on the device.

    The seed alone decides on initial parameters and batches, whatever the method.

    Args:
      x, y: training set, (examples, features) and (examples,).

    Returns:
      States stacked over the seeds 0, 1, ...
    """
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), 3))(jnp.arange(seeds))
    size = training.batch_size
    # Left to JAX operation by operation: equal layers then share what is compiled, as do all methods.
    states = jax.vmap(lambda key: learner.init(key, x[:size], y[:size]))(keys[:, 0])
    rows = _rows_of_batches(keys[:, 1], training)

    def run(state: LearnerState, rows: Array, key: Key) -> LearnerState:
        def step(state: LearnerState, rows: Array) -> tuple[LearnerState, None]:
            return learner.update(state, x[rows], y[rows], key)[0], None

        return jax.lax.scan(step, state, rows)[0]

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
