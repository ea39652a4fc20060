"""Small problems, and oracles written without the code under test."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import decoupled
from decoupled import estimators
from decoupled.training import own_names
from decoupled.training.methods import METHODS, make_estimator

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
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return leaf + scale * rng.normal(size=leaf.shape).astype(leaf.dtype)

    moved = [e._replace(params=jax.tree.map(move, e.params)) for e in state.estimators]
    return state._replace(estimators=tuple(moved))


def gate(names, *in_gate):
    """Parameters of a test: those `in_gate` in every run, the others where slow tests run too."""
    return [name if name in in_gate else pytest.param(name, marks=pytest.mark.slow) for name in names]


def folder_with(module, source):
    """A fixture: a folder with a module of someone's own in it, from which all is run."""

    @pytest.fixture
    def here(tmp_path, monkeypatch):
        (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setattr(own_names.tempfile, "tempdir", str(tmp_path))
        yield tmp_path
        sys.modules.pop(module, None)

    return here


def every_method():
    """Every estimator that a config can name and needs no module above, conditioned where it can be."""
    context = estimators.one_hot(CLASSES)
    linear = {"estimator": estimators.linear(context)}
    options = {"mlp": {"hidden": (6,)}, "bp_lambda": linear, "sg_prop": linear}
    return {
        name: make_estimator(name, CLASSES, context, **options.get(name, {}))
        for name in METHODS
        if name not in ("convolutional", "auxiliary_network", "surrogate")
        and not name.startswith("borrowed")
    }


def synthetic_gradients():
    """Those of them that are fitted to the gradient from above, and read nothing else."""
    return {
        name: estimator
        for name, estimator in every_method().items()
        if estimator.reads is decoupled.Reads.NOTHING and is_fitted(estimator)
    }


def is_fitted(estimator):
    return estimator.training_gradient is not None and not estimator.own_loss
