"""A network, data, an estimator, a loss and a metric of one's own, for train.py to find by name.

Points in the plane, and how far from the origin they are: a regression that no linear model can do.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from decoupled import estimators, from_linen
from decoupled.training.objectives import Metric


class Points:
    """Any object with a length and examples by number will do."""

    def __init__(self, seed, examples):
        self.points = np.random.default_rng(seed).normal(size=(examples, 2)).astype(np.float32)

    def __len__(self):
        return len(self.points)

    def __getitem__(self, i):
        return self.points[i], np.linalg.norm(self.points[i])


def data():
    """What to train on, and what to test with; arrays would do too."""
    return Points(0, 2000), Points(1, 500)


class Layer(nn.Module):
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h):
        return nn.gelu(nn.Dense(self.width, dtype=self.dtype)(h))


def network(num_outputs, dtype, width, depth=2):
    """Layers, which the config cuts. `width` and `depth` are in config.model.options."""
    return [*[from_linen(Layer(width, dtype))] * depth, from_linen(nn.Dense(num_outputs))]


def estimator(num_outputs, loss, hidden=16):
    """A local loss: a head above each layer descends the loss of the whole network."""
    return estimators.local_loss(num_outputs, hidden=(hidden,), loss=loss)


def huber(output, y):
    """One number an example: large errors count by their size, small ones by their square."""
    error = jnp.abs(output - y)
    return jnp.where(error < 1, 0.5 * error**2, error - 0.5).sum(1)


worst_error = Metric("worst_error", lambda output, y: jnp.abs(output - y).max(1), larger_is_better=False)
