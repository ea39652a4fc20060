"""Figures of the claim about synthetic gradients that cannot represent the gradient."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.claim import Drawing

_COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73")
_LINES = ("-", "--", ":", "-.")
_FLOOR = 1e-18


def draw_boundaries(grid: np.ndarray, kinds: Sequence[str], rings: Mapping[str, Any]) -> Drawing:
    """Probability of class 1 over the plane, a row a kind of rings, a column a method; the first seed."""
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    panels = figure.subplots(len(kinds), len(rings), sharex=True, sharey=True)
    image = None
    for row, kind in enumerate(kinds):
        for axes, (name, found) in zip(panels[row], rings.items(), strict=True):
            probability = found.probability[row, 0]
            image = axes.pcolormesh(grid, grid, probability, cmap="PuOr", vmin=0, vmax=1, rasterized=True)
            axes.contour(grid, grid, probability, [0.5], colors="black", linewidths=1.8)
            _scatter(axes, found.x[row, 0], found.y[row, 0])
            loss, accuracy = found.loss[row, 0], 100 * found.accuracy[row, 0]
            axes.set_title(f"{name}\nloss {loss:.2g} nats, accuracy {accuracy:.0f} %", fontsize=9)
            axes.set_aspect("equal")
        panels[row, 0].set_ylabel(f"{kind}\nx, second coordinate", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("x, first coordinate", fontsize=9)
    panels[0, 0].legend(fontsize=7, loc="upper right")
    assert image is not None
    figure.colorbar(image, ax=panels, label="probability of class 1", shrink=0.7)
    caption = (
        "What a deep ReLU network makes of a disc and a ring around it, with different gradients at its"
        " middle. Black line: the decision boundary. All four start from the same weights. First seed;"
        " loss and accuracy on the training set."
    )
    return Drawing(figure, caption)


def draw_training(kinds: Sequence[str], rings: Mapping[str, Any]) -> Drawing:
    """Loss over the steps on each kind of rings, and how the ends differ on the last; a colour a method."""
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    (*curves, _), (fits, slopes, held_out) = figure.subplots(2, 3)
    figure.delaxes(_)
    for k, (name, found) in enumerate(rings.items()):
        style = {"color": _COLOURS[k], "linestyle": _LINES[k]}
        for axes, losses in zip(curves, found.losses, strict=True):
            steps = np.arange(1, losses.shape[1] + 1)
            kept = slice(None, None, max(1, len(steps) // 200))
            low, middle, high = np.percentile(losses, [25, 50, 75], axis=0)[:, kept]
            axes.plot(steps[kept], middle, label=name, **style)
            axes.fill_between(steps[kept], low, high, color=_COLOURS[k], alpha=0.2, linewidth=0)
        for axes, values in ((fits, found.r2), (slopes, found.slope), (held_out, 100 * found.held_out)):
            if axes is fits and name == "backprop":
                continue
            spread = np.linspace(-0.2, 0.2, values.shape[1])
            axes.plot(k + spread, values[-1], color=_COLOURS[k], marker="o", markersize=4, linestyle="none")
    for kind, axes in zip(kinds, curves, strict=True):
        axes.set_title(kind, fontsize=10)
        axes.set_yscale("log")
        axes.set_ylim(bottom=max(1e-6, axes.get_ylim()[0]))
        axes.set_xlabel("step of training")
        axes.set_ylabel("training loss (nats)")
    curves[0].legend(fontsize=8)
    fits.set_ylabel("R² of the SG against zero")
    fits.set_ylim(-1.05, 1.05)
    slopes.set_ylabel("mean steepness |d logit / dx|")
    slopes.set_yscale("log")
    held_out.set_ylabel("accuracy on new points (%)")
    for axes in (fits, slopes, held_out):
        axes.set_title(f"{kinds[-1]}, at the end", fontsize=10)
        axes.set_xticks(range(len(rings)), [name.replace(" ", "\n", 1) for name in rings], fontsize=8)
        axes.set_xlim(-0.5, len(rings) - 0.5)
    caption = (
        "Above: training loss, median and quartiles of all seeds. Below, one point a seed: how well the"
        " SG fits, (below -1 is not shown), how steep the learnt function is, and its accuracy on new"
        " points with clean labels."
    )
    return Drawing(figure, caption)


def draw_lines(points: Sequence[Any], runs: Mapping[str, Any]) -> Drawing:
    """The new critical point: where it lies, that it is one, and that training ends there."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    plane, norms, course = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    point = points[0]
    _scatter(plane, point.x, point.y[:, 0])
    across = np.array([point.x[:, 0].min(), point.x[:, 0].max()])
    lines = (
        ("minimum of the loss", *point.optimum, "#000000", "-"),
        ("critical point of the SG system", point.w, point.b, "#d55e00", "--"),
    )
    for name, w, b, colour, line in lines:
        plane.plot(
            across, -(b + across * w[0]) / w[1], color=colour, linestyle=line, linewidth=2, label=name
        )
    plane.set_ylim(point.x[:, 1].min() - 0.5, point.x[:, 1].max() + 3)
    plane.set_xlabel("x, first coordinate")
    plane.set_ylabel("x, second coordinate")
    plane.legend(fontsize=7, loc="upper right")

    fields = ("above", "below", "fit", "gradient")
    for column, field in enumerate(fields):
        values = np.array([np.squeeze(getattr(p.conditions, field)) for p in points])
        spread = column + np.linspace(-0.2, 0.2, len(values))
        colour, marker = ("#0072b2", "^") if field == "gradient" else ("#d55e00", "o")
        norms.plot(
            spread, np.maximum(values, _FLOOR), color=colour, marker=marker, markersize=4, linestyle="none"
        )
    names = ("dL/dθ\nabove", "SG dh/dθ\nbelow", "dL_SG/dφ", "true\ndL/dθ")
    norms.set_xticks(range(len(fields)), names, fontsize=8)
    norms.set_yscale("log")
    norms.set_ylim(_FLOOR / 3, 10)
    norms.set_ylabel("norm at the new critical point")

    looks = (("#d55e00", "-"), ("#009e73", "--"))
    for (name, run), (colour, line) in zip(runs.items(), looks, strict=True):
        of_system = np.median(np.maximum(run.conditions.below[0], _FLOOR), axis=0)
        of_loss = np.median(np.maximum(run.conditions.gradient, _FLOOR), axis=0)
        style = {"color": colour, "linestyle": line, "markersize": 4}
        course.plot(run.steps, of_loss, **style, marker="^", label=f"{name}: true dL/dθ")
        course.plot(run.steps, of_system, **style, marker="o", label=f"{name}: SG dh/dθ below")
    course.set_xscale("log")
    course.set_yscale("log")
    course.set_xlabel("step of joint training")
    course.set_ylabel("norm, median of all training sets")
    course.legend(fontsize=7, loc="lower left")
    caption = (
        "Logistic regression through a boundary of one unit. Left: the two decision lines, first"
        " training set. Middle: one mark a training set; at the point found, everything that moves the"
        " SG system vanishes (down to double precision), and the true gradient of the loss does not."
        " Right: joint training from random starts; with the linear SG the system rests where the loss's"
        " gradient does not vanish."
    )
    return Drawing(figure, caption)


def _scatter(axes: Any, x: np.ndarray, y: np.ndarray) -> None:
    for label, marker, colour in ((0, "o", "#e69f00"), (1, "^", "#56b4e9")):
        axes.plot(
            x[y == label, 0],
            x[y == label, 1],
            color=colour,
            marker=marker,
            markeredgecolor="black",
            markeredgewidth=0.4,
            markersize=4,
            linestyle="none",
            label=f"class {label}",
        )
