"""The statistics of the claim on representations, by hand; what its four networks have in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.deep_classifiers import METHODS, Training, make, trainer
from experiments.representations import half_rise, interval
from tests import helpers

TRAINING = Training(depth=2, width=4, classes=helpers.CLASSES, examples=16, batch_size=8, epochs=2)


def test_interval():
    # Mean 2, deviation 1, and Student's t of 2 degrees of freedom, 4.3027, from a table.
    mean, low, high = interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert interval(np.array([5, 5])) == (5, 5, 5)


def test_half_rise():
    curves = np.array([[0.0, 0.3, 0.6, 1.0], [0.9, 0.1, 0.2, 1.0], [0.1, 0.2, 0.2, 0.5]])
    assert half_rise(curves).tolist() == [3, 1, 4]


def test_all_methods_start_alike_and_only_the_untrained_stays():
    x, y = helpers.batch(size=16)
    key = jax.random.key(0)
    init_key = jax.random.split(key, 3)[0]
    learners = {method: make(TRAINING, method) for method in METHODS}
    starts = {m: learner.init(init_key, x[:8], y[:8]) for m, learner in learners.items()}
    first = [module.params for module in starts["backprop"].modules]
    for start in starts.values():
        jax.tree.map(np.testing.assert_array_equal, first, [module.params for module in start.modules])

    def ended(method):
        state = jax.jit(trainer(learners[method], TRAINING))(key, x, y)
        assert state.step == 4
        return state.modules

    untrained, trained = ended("untrained"), ended("one SG")
    jax.tree.map(np.testing.assert_array_equal, first, [module.params for module in untrained])
    moved = [
        np.abs(t.params["Dense_0"]["kernel"] - f["Dense_0"]["kernel"]).max()
        for t, f in zip(trained, first, strict=True)
    ]
    assert min(moved) > 1e-5
    means = untrained[0].state["batch_stats"]["BatchNorm_0"]["mean"]
    assert jnp.abs(means).max() > 1e-3
    assert [e.name for e in learners["one SG"].estimators] == ["loss_shaped", "backprop"]
