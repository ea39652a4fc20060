"""The statistics of the claim on representations, by hand; what its networks have in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.deep_classifiers import Training, make, train
from experiments.intervals import interval
from experiments.representations import Layers, differences, likeness
from tests import helpers

TRAINING = Training(depth=2, width=4, classes=helpers.CLASSES, examples=16, batch_size=8, epochs=2)


def test_interval():
    # Mean 2, deviation 1, and Student's t of 2 degrees of freedom, 4.3027, from a table.
    mean, low, high = interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert interval(np.array([5, 5])) == (5, 5, 5)


def layers(contrast, hidden):
    depth = contrast.shape[1]
    probes = np.linspace(0.5, 1, depth)[None, :] * np.ones((len(hidden), 1))
    return Layers(np.ones(len(hidden)), np.ones(len(hidden)), hidden, probes, contrast)


def test_differences_below_the_middle_are_paired():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 4, 9, 3))
    low = np.array([[0.2, 0.4, 9.0, 9.0], [0.3, 0.6, 7.0, 7.0]])
    more = np.array([[0.1, 0.2, 0.0, 0.0], [0.1, 0.2, 0.0, 0.0]])
    # Backprop's layers in another order of seeds are those of the other seed: as alike as can be.
    found = {"backprop": layers(low + more, hidden), "one SG": layers(low, hidden[::-1])}
    alike = {m: likeness(f.hidden, hidden) for m, f in found.items()}
    np.testing.assert_allclose(alike["one SG"].with_backprop, np.ones((2, 4)), atol=1e-5)
    np.testing.assert_allclose(alike["backprop"].with_own, alike["one SG"].with_own, atol=1e-5)
    within = alike["backprop"].with_own
    assert (within < 0.99).all()
    lacking = differences(found, alike, "one SG", middle=2)
    assert lacking.contrast == pytest.approx((0.15, 0.15, 0.15))
    assert lacking.probe == (0, 0, 0)
    assert lacking.cka.mean == pytest.approx(within.mean() - 1, abs=1e-5)
    assert lacking.cka_with_backprop.mean == pytest.approx(within.mean() - 1, abs=1e-5)


@pytest.mark.slow
def test_all_methods_start_alike_and_only_the_untrained_stays():
    x, y = helpers.batch(size=16)
    learners = {method: make(TRAINING, method) for method in ("backprop", "one SG", "untrained")}
    init_key = jax.random.split(jax.random.key(1), 3)[0]
    first, other = (
        [module.params for module in learners[method].init(init_key, x[:8], y[:8]).modules]
        for method in ("backprop", "one SG")
    )
    jax.tree.map(np.testing.assert_array_equal, first, other)

    def ended(method):
        states, losses = train(learners[method], TRAINING, 2, x, y)
        assert losses.shape == (2, 4)
        assert states.step.tolist() == [4, 4]
        return jax.tree.map(lambda leaf: leaf[1], states.modules)

    untrained, moved = ended("untrained"), ended("one SG")
    jax.tree.map(np.testing.assert_array_equal, first, [module.params for module in untrained])
    for now, before in zip(moved, first, strict=True):
        assert jnp.abs(now.params["Dense_0"]["kernel"] - before["Dense_0"]["kernel"]).max() > 1e-5
    means = untrained[0].state["batch_stats"]["BatchNorm_0"]["mean"]
    assert jnp.abs(means).max() > 1e-3
    assert [e.name for e in learners["one SG"].estimators] == ["loss_shaped", "backprop"]
