"""Figures of a network: what is drawn, against instruments and oracles; their texts."""

import jax
import numpy as np
import pytest

from decoupled import estimators
from decoupled.analysis import activations, dissimilarity_matrix, label_order
from decoupled.analysis.figures import (
    alignment_figure,
    all_figures,
    cka_figure,
    dissimilarity_figure,
    evenly,
)
from decoupled.errors import UsageError
from decoupled.training.html import svg
from tests import helpers

KEY = jax.random.key(1)


@pytest.fixture(scope="module")
def network():
    """A network at its start, with the true gradient at every boundary."""
    x, y = helpers.batch(size=40)
    learner = helpers.make_learner(helpers.mlp_modules(depth=1, norm="batch"), estimators.backprop())
    return learner, learner.init(jax.random.key(0), x, y), x, y


def curves(figure):
    return [axes.get_lines()[0].get_ydata() for axes in figure.axes]


@pytest.mark.slow
def test_every_figure_is_drawn(network):
    learner, state, x, y = network
    figures = all_figures(learner, state, x, y, KEY)
    assert len(figures) == 4
    drawings = {title: svg(figure) for title, figure in figures.items()}
    assert all(drawing.startswith("<svg") for drawing in drawings.values())
    (probes,) = curves(figures["Linear probes"])
    assert len(probes) == 3  # the input and two modules
    assert ((probes >= 0) & (probes <= 1)).all()
    _, columns = figures["Representational dissimilarity"].axes[:2]
    chosen = jax.random.permutation(KEY, 40)[:100]
    chosen = chosen[label_order(y[chosen])]
    expected = dissimilarity_matrix(activations(learner, state, x)[1][chosen])
    np.testing.assert_allclose(columns.get_images()[0].get_array(), expected, atol=1e-5)


def test_equal_modules_are_told_apart(network):
    learner, state, x, y = network
    alike = tuple(module._replace(name="layer") for module in learner.modules)
    learner = learner._replace(chain=learner.chain._replace(links=alike))
    figure = dissimilarity_figure(learner, state, x, y, KEY)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["layer_0", "layer_1"]


def test_alignment_of_the_true_gradient(network):
    # Oracle: the estimate is the true gradient, so cosine, signs, length and R² are all 1.
    for values in curves(alignment_figure(*network, KEY)):
        np.testing.assert_allclose(values, np.ones(1), atol=1e-5)


def test_layers_are_like_themselves(network):
    learner, state, x, y = network
    (matrix, _) = cka_figure(learner, state, x).axes
    np.testing.assert_allclose(np.diagonal(matrix.get_images()[0].get_array()), np.ones(2), atol=1e-5)
    other = learner.init(jax.random.key(9), x, y)
    (matrix, _) = cka_figure(learner, state, x, other).axes
    assert (np.diagonal(matrix.get_images()[0].get_array()) < 0.99).all()


def test_no_boundary_no_alignment(network):
    x, y = network[2:]
    learner = helpers.make_learner(helpers.mlp_modules(depth=0), estimators.backprop())
    state = learner.init(jax.random.key(0), x, y)
    assert len(all_figures(learner, state, x, y, KEY)) == 3
    with pytest.raises(UsageError, match="cut it"):
        alignment_figure(learner, state, x, y, KEY)


def test_evenly():
    assert evenly(3, 6) == [0, 1, 2]
    assert evenly(21, 6) == [0, 4, 8, 12, 16, 20]
