"""The report of small, deep and very deep networks: curves are seen, and each has its name or place."""

import numpy as np
import pytest

from decoupled.training import report

STEPS = range(0, 200, 20)


def drawn(monkeypatch, names):
    """The figures of a run with these modules."""
    figures = []
    monkeypatch.setattr(report, "svg", lambda figure: figures.append(figure) or "<svg/>")
    boundaries = len(names) - 1
    metrics = [
        {
            "kind": "train",
            "step": step,
            "loss": 1.0,
            "accuracy": 0.5,
            "estimator_loss": [1.0 + i for i in range(boundaries)],
            "r2": [i / 1000 for i in range(boundaries)],
        }
        for step in STEPS
    ]
    modules = [{"name": name, "parameters": 1} for name in names]
    summary = {"method": "linear", "dataset": "digits", "modules": modules, "versions": {}}
    page = report.render_report(summary, metrics)
    assert page.count("<svg/>") == len(figures) == 4
    return figures


LONG = "convolution_{0}+normalisation_{0}+attention_{0}"


@pytest.mark.parametrize(
    ("depth", "name"), [(3, "hidden_{}"), (3, LONG), (20, LONG), (100, "hidden_{}"), (100, "Dense")]
)
def test_curves_are_not_covered(depth, name, monkeypatch):
    names = [*(name.format(i) for i in range(depth - 1)), "output"]
    *_, r2 = drawn(monkeypatch, names)
    r2.draw_without_rendering()  # a warning, of axes that collapse, is an error here
    axes, *scales = r2.axes
    width, height = axes.get_window_extent().size / r2.bbox.size
    assert width > 0.5
    assert height > 0.6
    for legend in r2.legends:
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
        assert r2.bbox.contains(*legend.get_window_extent().min)
        assert len(legend.get_texts()) == depth - 1
    assert len(r2.legends) + len(scales) == 1
    # One curve a boundary, though modules may have one name; the first and the last are told apart.
    curves = axes.get_lines()
    assert [line.get_ydata()[0] for line in curves] == [i / 1000 for i in range(depth - 1)]
    assert np.abs(np.subtract(curves[0].get_color(), curves[-1].get_color())).max() > 0.3
    for scale in scales:
        labels = [text.get_text() for text in scale.get_yticklabels()]
        assert 2 < len(labels) <= 7
        assert labels[0].startswith(f"after {name.format(0)[:5]}")
