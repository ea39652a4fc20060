"""Nearness of an extracted loss and prediction, of cases worked out by hand."""

import numpy as np
import pytest

from experiments.points_on_a_line import OnLine, nearness


def found(true, implicit, y, prediction, implicit_prediction):
    """One snapshot of one network on one data set."""
    one = [
        np.asarray(a, float)[None, None, None] for a in (true, implicit, prediction, implicit_prediction)
    ]
    labels = np.asarray(y, float)[None, None]
    return nearness(OnLine(labels, labels, np.array([1]), *one))


def test_a_loss_twice_the_true_one_has_its_shape_and_not_its_size():
    true = [[1.0, 2.0], [3.0, 5.0]]
    near = found(true, 2 * np.array(true), [0, 1], [0.2, 0.9], [0.2, 0.9])
    assert near.correlation.item() == pytest.approx(1)
    assert near.error.item() == pytest.approx(1)
    assert found(true, -np.array(true), [0, 1], [0.2, 0.9], [0.2, 0.9]).correlation.item() == pytest.approx(
        -1
    )


def test_mistakes_and_those_that_the_sg_makes_too():
    y = [0, 0, 0, 1, 1, 1]
    prediction = [0.2, 0.7, 0.8, 0.9, 0.3, 0.1]
    implicit_prediction = [0.9, 0.6, 0.9, 0.9, np.nan, -2.0]
    near = found(np.ones((2, 6)), np.ones((2, 6)), y, prediction, implicit_prediction)
    assert near.mistakes.item() == 4
    assert near.seen.item() == 3
