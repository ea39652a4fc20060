"""Learners that a worker can make in its own process, and an oracle for what it should do with them."""

import multiprocessing

import jax
import numpy as np
import optax

import decoupled
from decoupled import estimators
from tests import helpers

KEY = jax.random.key(7)


def tiny():
    """Three modules with dropout and batch norm, a linear synthetic gradient between them, Adam."""
    modules = helpers.mlp_modules(depth=2, width=6, norm="batch", dropout=0.2)
    return _learner(modules)


def alike():
    """The same, but that its modules are all called alike."""
    modules = helpers.mlp_modules(depth=2, width=6, norm="batch", dropout=0.2)
    return _learner([module._replace(name="layer") for module in modules])


def like_layers_above():
    """The same, with SGs built like the layers above them, of which some are in another stage."""
    return _learner(
        helpers.mlp_modules(depth=2, width=6, norm="batch", dropout=0.2),
        estimators.surrogate(),
    )


def failing_in_workers():
    """The same, but a module of it cannot be run outside of the first process."""
    first, *others = helpers.mlp_modules(depth=2, width=6)

    def apply(*arguments):
        if multiprocessing.parent_process() is not None:
            raise ZeroDivisionError("planted in a module")
        return first.apply(*arguments)

    return _learner([first._replace(apply=apply), *others])


def _learner(modules, estimator=None):
    estimator = estimator or estimators.linear(estimators.one_hot(helpers.CLASSES))
    boundaries = [estimator] * (len(modules) - 1)
    loss = decoupled.losses.softmax_cross_entropy
    return decoupled.make_learner(modules, boundaries, loss, optax.adam(0.02), optax.adam(0.02))


def batches(count, seed=0):
    """Minibatches that can be learnt, with labels of their own."""
    rng = np.random.default_rng(seed)
    teacher = rng.normal(size=(5, helpers.CLASSES))
    xs = rng.normal(size=(count, 16, 5)).astype(np.float32)
    return [(x, np.argmax(x @ teacher, -1).astype(np.int32)) for x in xs]


def start(learner):
    """An initial state whose estimates are not zero."""
    return helpers.noisy(learner.init(jax.random.key(0), *batches(1)[0]), scale=0.1)


def key_of(number):
    """The key of a fused step, written down again."""
    return jax.random.split(jax.random.fold_in(KEY, number))[1]


def adam_steps(module_or_estimator_state):
    """Number of updates that are in a state, as Adam counts them."""
    return int(module_or_estimator_state.opt_state[0].count)


class Oracle:
    """Two stages, the lower of two modules, replayed from the learner's functions for single modules."""

    def __init__(self, learner, state):
        self.modules, self.estimators = list(state.modules), list(state.estimators)
        self._update_module = [jax.jit(update) for update in learner.update_module]
        self._update_estimator = [jax.jit(update) for update in learner.update_estimator]
        self._outputs, self._targets = {}, {}

    def _step(self, i, h, y, number):
        est_params = self.estimators[i].params if i < len(self.estimators) else None
        step = self._update_module[i](self.modules[i], est_params, h, y, key_of(number))
        self.modules[i] = step.module
        return step

    def update_lower(self, number, x, y):
        first = self._step(0, x, y, number)
        second = self._step(1, first.h_out, y, number)
        fitted, _ = self._update_estimator[0](self.estimators[0], first.h_out, y, second.grad_h_in)
        self.estimators[0] = fitted
        self._outputs[number] = second.h_out, y
        return second.h_out

    def update_upper(self, number):
        self._targets[number] = self._step(2, *self._outputs[number], number).grad_h_in

    def fit_lower(self, number, target=None):
        target = self._targets[number] if target is None else target
        fitted, _ = self._update_estimator[1](self.estimators[1], *self._outputs[number], target)
        self.estimators[1] = fitted

    def replay(self, lower, upper, batches):
        """Does all that two stages did, in the orders in which they did it."""
        lower, upper = list(lower), list(upper)
        while lower or upper:
            if upper and upper[0][1] in self._outputs:
                self.update_upper(upper.pop(0)[1])
            elif lower[0][0] == "update":
                number = lower.pop(0)[1]
                self.update_lower(number, *batches[number])
            else:
                self.fit_lower(lower.pop(0)[1])
