"""Deep ReLU networks that tell a disc from a ring around it, with one boundary in their middle."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from decoupled import models
from decoupled.estimators import backprop, linear, loss_shaped, mlp, one_hot
from decoupled.learning.learner import make_learner
from decoupled.learning.state import BoundaryMetrics, LearnerState
from decoupled.losses import softmax_cross_entropy
from decoupled.modules import cut
from decoupled.types import Array, Estimator
from experiments.toy_data import ring

EXAMPLES, WIDTH = 160, 20
_NEW_EXAMPLES = 2000
METHODS: dict[str, Estimator] = {
    "backprop": backprop(),
    "linear SG": linear(one_hot(2)),
    "loss-shaped SG": loss_shaped(2, one_hot(2)),
    "MLP SG": mlp((64,), one_hot(2)),
}
# The share of labels that is flipped. Without any a network reaches zero loss, where any SG can be exact.
RINGS = {"clean labels": 0.0, "one label in eight flipped": 0.125}
GRID = np.linspace(-2.4, 2.4, 61)


class OnRings(NamedTuple):
    """Networks of one method after training, (kinds of RINGS, seeds, ...) each.

    Attributes:
      x, y: (..., examples, 2) and (..., examples).
      losses: (..., steps), log loss in nats.
      loss, accuracy: on the training set, at the end.
      held_out: accuracy on new points with clean labels, at the end.
      r2: of the SG against zero, at the end.
      slope: mean |d(logit 1 - logit 0)/dx| over the training set: how steep the decision is.
      probability: (..., grid, grid) of class 1, on GRID x GRID, second coordinate first.
    """

    x: Any
    y: Any
    losses: Any
    loss: Any
    accuracy: Any
    held_out: Any
    r2: Any
    slope: Any
    probability: Any


def _r2(boundary: BoundaryMetrics | None) -> Array:
    if boundary is None or boundary.target_power is None:
        return jnp.ones(())
    return 1 - boundary.loss / boundary.target_power


def train_on_rings(estimator: Estimator, seeds: int, steps: int, depth: int) -> OnRings:
    modules = cut(models.mlp(depth, WIDTH, 2), [depth // 2 - 1])
    learner = make_learner(modules, [estimator], softmax_cross_entropy, optax.adam(2e-3), optax.adam(2e-3))
    on_grid = jnp.stack(jnp.meshgrid(GRID, GRID), axis=-1).reshape(-1, 2).astype(jnp.float32)

    def run(seed: Array, flipped: Array) -> OnRings:
        data_key, flip_key, new_key, init_key = jax.random.split(jax.random.key(seed), 4)
        x, y = ring(data_key, EXAMPLES, 2)
        y = jnp.where(jax.random.uniform(flip_key, y.shape) < flipped, 1 - y, y)
        new_x, new_y = ring(new_key, _NEW_EXAMPLES, 2)

        def step(state: LearnerState, _: None) -> tuple[LearnerState, tuple[Array, Array]]:
            state, metrics = learner.update(state, x, y, jax.random.key(0))
            (boundary,) = metrics.boundaries
            return state, (metrics.loss, _r2(boundary))

        state, (losses, r2) = jax.lax.scan(step, learner.init(init_key, x, y), length=steps)

        def margin(x: Array) -> Array:
            logits = learner.predict(state, x)
            return logits[:, 1] - logits[:, 0]

        slope = jax.vmap(jax.grad(lambda point: margin(point[None, :])[0]))(x)
        return OnRings(
            x,
            y,
            losses,
            softmax_cross_entropy(learner.predict(state, x), y).mean(),
            jnp.mean((margin(x) > 0) == (y == 1)),
            jnp.mean((margin(new_x) > 0) == (new_y == 1)),
            r2[-1],
            jnp.linalg.norm(slope, axis=1).mean(),
            jax.nn.sigmoid(margin(on_grid)).reshape(len(GRID), -1),
        )

    seed, flipped = jnp.meshgrid(jnp.arange(seeds), jnp.asarray(list(RINGS.values())))
    pairs = (seed.ravel(), flipped.ravel())
    # One after another: batched products of small matrices are slow on a CPU.
    found = jax.device_get(jax.jit(lambda pairs: jax.lax.map(lambda pair: run(*pair), pairs))(pairs))
    return jax.tree.map(lambda leaf: leaf.reshape(len(RINGS), seeds, *leaf.shape[1:]), found)
