"""Small problems, and oracles written without the code under test."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import decoupled
from decoupled import estimators

CLASSES = 3


def batch(seed=0, size=8, features=5, classes=CLASSES):
    """A random classification batch: x (size, features), y (size,)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, features)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(rng.integers(classes, size=size), jnp.int32)


def mlp_modules(depth=2, width=4, **options):
    layers = decoupled.models.mlp(depth, width, CLASSES, **options)
    return decoupled.cut(layers, range(depth))


def make_learner(modules, estimator, rate=1.0, est_rate=1.0, loss=None, **options):
    """A learner with plain SGD, whose step shows its gradient as a difference of parameters."""
    loss = loss or decoupled.losses.softmax_cross_entropy
    boundaries = [estimator] * (len(modules) - 1)
    sgd, est_sgd = optax.sgd(rate), optax.sgd(est_rate)
    return decoupled.make_learner(modules, boundaries, loss, sgd, est_sgd, **options)


def steps_taken(before, after):
    """What SGD with rate 1 subtracted from each module's parameters: its gradient."""
    return [
        jax.tree.map(jnp.subtract, b.params, a.params)
        for b, a in zip(before.modules, after.modules, strict=True)
    ]


def mean_loss_gradients(modules, state, x, y, key, loss=None):
    """Oracle: `jax.grad` of the mean loss of the whole network, one tree a module."""
    loss = loss or decoupled.losses.softmax_cross_entropy

    @jax.jit
    @jax.grad
    def gradients(all_params):
        h = x
        for i, (module, params) in enumerate(zip(modules, all_params, strict=True)):
            h, _ = module.apply(params, state.modules[i].state, h, jax.random.fold_in(key, i), True)
        return loss(h, y).mean()

    return gradients([m.params for m in state.modules])


def noisy(state, seed=1, scale=0.3):
    """The state with all estimator parameters moved off zero, so that estimates are not trivial."""
    rng = np.random.default_rng(seed)

    def move(leaf):
        return leaf + scale * rng.normal(size=leaf.shape).astype(leaf.dtype)

    moved = [e._replace(params=jax.tree.map(move, e.params)) for e in state.estimators]
    return state._replace(estimators=tuple(moved))


def synthetic_gradients():
    """Every trained estimator for flat activations, conditioned on labels."""
    context = estimators.one_hot(CLASSES)
    return {
        "linear": estimators.linear(context),
        "loss_shaped": estimators.loss_shaped(CLASSES, context),
        "mlp": estimators.mlp((6,), context),
        "recursive_least_squares": estimators.recursive_least_squares(context),
    }


def output_error_estimator():
    """Direct Feedback Alignment in its simplest form: reads the error, sends it through a matrix."""
    rng = np.random.default_rng(5)

    def init(key, h, y):
        return {"B": jnp.asarray(rng.normal(size=(CLASSES, h.shape[1])), jnp.float32)}

    def estimate(est_params, h, y, signal):
        return signal @ est_params["B"]

    return decoupled.Estimator("direct", init, estimate, None, decoupled.Reads.ERROR)
