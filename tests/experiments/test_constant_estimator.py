"""The supplement's example of new critical points, by hand."""

import pytest

from experiments.constant_estimator import POINTS, conditions


@pytest.mark.parametrize("a", [-3.0, 0.5, 20.0])
def test_every_slope_is_critical_and_none_is_for_the_loss(a):
    point = conditions(a)
    assert point.worst == 0
    assert point.gradient == pytest.approx(1.5)
    assert point.loss == pytest.approx(abs(a) * sum(map(abs, POINTS)) / 4)
