"""Figures of the claim about the mechanism."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.claim import Drawing
from experiments.points_on_a_line import DATA_SETS, LABELS, Nearness, OnLine

_BLUE, _RED, _GREEN, _BLACK = "#0072b2", "#d55e00", "#009e73", "#000000"
_STYLES = ((_BLUE, "o", "-"), (_GREEN, "s", "--"), (_RED, "^", ":"))
_FLOOR = 1e-17
_COLUMNS = 4
_FEWEST_MISTAKES = 10
_NETWORK: dict[str, Any] = {"color": _BLACK, "linewidth": 1.6, "label": "network's prediction"}
_SG: dict[str, Any] = {
    "color": _RED,
    "linewidth": 1.6,
    "linestyle": "--",
    "label": "SG's implicit prediction",
}
_LABEL: dict[str, Any] = {
    "color": "white",
    "markeredgecolor": _BLACK,
    "markeredgewidth": 0.6,
    "marker": "o",
    "markersize": 3.5,
    "linestyle": "none",
    "label": "labels",
}


def draw_forms(logit_scales: np.ndarray, forms: Mapping[str, np.ndarray], fitted: np.ndarray) -> Drawing:
    """What each form of SG leaves of the gradient; residuals (seeds, scales) a form, fitted (fits,)."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, residuals), (colour, marker, line) in zip(forms.items(), _STYLES, strict=True):
        residuals = np.maximum(residuals, _FLOOR)
        middle = np.median(residuals, axis=0)
        axes.plot(logit_scales, middle, color=colour, marker=marker, linestyle=line, label=name)
        axes.fill_between(
            logit_scales, residuals.min(axis=0), residuals.max(axis=0), color=colour, alpha=0.2, linewidth=0
        )
    axes.plot(
        np.ones_like(fitted),
        np.maximum(fitted, _FLOOR),
        color=_BLACK,
        marker="x",
        linestyle="none",
        label="log loss, loss-shaped SG, fitted from its own start",
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(_FLOOR, 100)
    axes.set_xlabel("scale of the output layer's weights (1: logits of about 1)")
    axes.set_ylabel("|SG - dL/dh| / |dL/dh|, all examples")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(0, 0.6))
    caption = (
        "What the best SG of each form leaves of the gradient, below two linear layers, in double"
        " precision (line: median, band: all seeds). Double precision ends at about 1e-16. The more"
        " certain the network is, the further from linear is the gradient of its log loss."
    )
    return Drawing(figure, caption)


def draw_snapshots(name: str, found: OnLine) -> Drawing:
    """True and implicit loss of the first seed, at a few snapshots of training."""
    figure = Figure(figsize=(9.5, 8.4), layout="constrained")
    grid = figure.subplots(4, _COLUMNS, sharex=True, sharey=True, squeeze=False)
    chosen = np.linspace(1, len(found.steps) - 1, _COLUMNS).round().astype(int)
    image = None
    for data, label in enumerate(DATA_SETS):
        x, y = found.x[data, 0], found.y[data, 0]
        for column, k in enumerate(chosen):
            top = np.percentile(found.true[k, data, 0], 97)
            for row, losses in ((2 * data, found.true), (2 * data + 1, found.implicit)):
                axes = grid[row, column]
                image = axes.pcolormesh(
                    x, LABELS, losses[k, data, 0] / top, vmin=0, vmax=1, cmap="cividis_r", rasterized=True
                )
                axes.plot(x, found.prediction[k, data, 0], **_NETWORK)
                if row % 2:
                    axes.plot(x, found.implicit_prediction[k, data, 0], **_SG)
                axes.plot(x, y, **_LABEL)
                axes.set_ylim(-0.06, 1.06)
            title = f"{label}\nstep {found.steps[k]}, 1 = {top:.3g}"
            grid[2 * data, column].set_title(title, fontsize=9)
        grid[2 * data, 0].set_ylabel("true loss\ny", fontsize=9)
        grid[2 * data + 1, 0].set_ylabel("implicit loss\ny", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("x")
    assert image is not None
    text = "loss above its lowest value for that y, relative to the number over each column"
    figure.colorbar(image, ax=grid, shrink=0.7, extend="max", label=text)
    handles, labels = grid[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, facecolor="#bbbbbb")
    caption = (
        f"{name[0].upper()}{name[1:]}: for each point x of the line, the loss of its activation with each"
        " label y, from the network (first row of each pair) and from the SG (second row, same colours),"
        " as learning proceeds. Each valley is a prediction: the network's and, dashed, the label at"
        " which the SG vanishes. First seed."
    )
    return Drawing(figure, caption)


def draw_nearness(steps: Any, near: Mapping[str, Nearness]) -> Drawing:
    """Measures of nearness over the steps of training, mean over seeds, a column a data set."""
    figure = Figure(figsize=(9.5, 7.5), layout="constrained")
    grid = figure.subplots(3, len(DATA_SETS), sharex=True, sharey="row")
    for data, label in enumerate(DATA_SETS):
        grid[0, data].set_title(label)
        for (name, found), (colour, marker, line) in zip(near.items(), _STYLES, strict=False):
            style = {"color": colour, "marker": marker, "markersize": 4, "linestyle": line, "label": name}
            grid[0, data].plot(steps, np.median(found.correlation[:, data], axis=1), **style)
            grid[1, data].plot(steps, np.median(found.error[:, data], axis=1), **style)
            mistakes, seen = (f[:, data].sum(axis=1) for f in (found.mistakes, found.seen))
            enough = mistakes >= _FEWEST_MISTAKES
            grid[2, data].plot(steps[enough], seen[enough] / mistakes[enough], **style)
        grid[0, data].set_xscale("log")
        grid[1, data].set_yscale("log")
        grid[2, data].set_xlabel("step of training")
    grid[0, 0].set_ylabel("correlation of implicit\nand true loss, median")
    grid[1, 0].set_ylabel("|implicit - true|\n/ |true loss|, median")
    grid[2, 0].set_ylabel("share of mistakes\nthat the SG makes too")
    grid[2, 0].set_ylim(-0.05, 1.05)
    grid[0, 0].legend(fontsize=8)
    caption = (
        "How near the extracted loss and prediction are to the true ones, over all points and labels"
        " between 0 and 1, and all seeds. A mistake is a point that the network puts into the wrong"
        f" class; where all networks together make fewer than {_FEWEST_MISTAKES} the share is left out."
    )
    return Drawing(figure, caption)
