"""Learners that a worker can make in its own process."""

import optax

import decoupled
from decoupled import estimators
from tests import helpers

FEATURES = 5


def tiny(depth=2):
    """An MLP with a linear synthetic gradient after every layer, Adam and dropout."""
    modules = helpers.mlp_modules(depth, width=6, norm="batch", dropout=0.2)
    boundaries = [estimators.linear(estimators.one_hot(helpers.CLASSES))] * depth
    loss = decoupled.losses.softmax_cross_entropy
    return decoupled.make_learner(modules, boundaries, loss, optax.adam(0.02), optax.adam(0.02))
