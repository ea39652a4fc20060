"""Figures of what the instruments measured: matrices side by side, and numbers layer by layer."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from decoupled.extras import extra

with extra("analysis"):
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, which colour-blind people tell apart; markers and lines say the same again.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKERS, _LINES = "osD^vPX", ("-", "--", "-.", ":")


class Panel(NamedTuple):
    """Curves over the layers, or the boundaries, of a network.

    Attributes:
      label: of the vertical axis, with its unit.
      curves: name -> (layers,), or (runs, layers): then their mean, in a band from least to most.
      limits: of the vertical axis; None for as drawn.
      level: of a thin horizontal line, to compare with; None for none.
    """

    label: str
    curves: Mapping[str, ArrayLike]
    limits: tuple[float | None, float | None] | None = None
    level: float | None = None


def draw_by_layer(
    panels: Sequence[Panel], positions: Sequence[int], across: str = "layer", marks: Sequence[float] = ()
) -> Figure:
    """Panels over the same horizontal axis, two beside one another.

    Args:
      panels: at least one; curves of one name look alike in all, if all name them in one order.
      positions: of the layers, whole numbers.
      across: label of the horizontal axis.
      marks: where a dotted vertical line is drawn, such as between the layers that a boundary parts.
    """
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns + 0.4, 3.6 * rows + 0.4), layout="constrained")
    # An odd number of panels leaves the last place empty.
    for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
        for k, (name, values) in enumerate(panel.curves.items()):
            runs = np.atleast_2d(np.asarray(values, dtype=float))
            look: dict[str, Any] = {"color": COLOURS[k % 7], "marker": _MARKERS[k % 7], "markersize": 4}
            axes.plot(positions, runs.mean(0), label=name, linestyle=_LINES[k % 4], **look)
            if len(runs) > 1:
                band = {"color": COLOURS[k % 7], "alpha": 0.2, "linewidth": 0}
                axes.fill_between(positions, runs.min(0), runs.max(0), **band)
        for mark in marks:
            axes.axvline(mark, color="0.3", linestyle=":", linewidth=1.2)
        if panel.level is not None:
            axes.axhline(panel.level, color="0.5", linewidth=0.8)
        if panel.limits is not None:
            axes.set_ylim(*panel.limits)
        axes.set(xlabel=across, ylabel=panel.label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(labels) > 1:
        at: dict[str, Any] = {
            "loc": "outside upper center",
            "ncols": 3 * columns,
            "frameon": False,
            "fontsize": 9,
        }
        figure.legend(handles, labels, **at)
    return figure


def draw_matrices(
    rows: Mapping[str, Sequence[ArrayLike]],
    columns: Sequence[str],
    label: str,
    *,
    across: str = "",
    limits: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """A grid of square matrices in one colour scale.

    Args:
      rows: name -> one matrix a column.
      columns: names.
      label: of the colour scale.
      across: what the sides of a matrix are, such as "examples by class".
      limits: of the colour scale.
    """
    size = 1.45 if len(columns) > 1 else 4.5
    shape = (size * len(columns) + 1.3, (size + 0.1) * len(rows) + 0.8)
    figure = Figure(figsize=shape, layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    image: Any = None
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(column, fontsize=10)
    for axes_row, (name, matrices) in zip(grid, rows.items(), strict=True):
        for axes, matrix in zip(axes_row, matrices, strict=True):
            look: dict[str, Any] = {"cmap": "viridis", "interpolation": "none"}
            image = axes.imshow(np.asarray(matrix), vmin=limits[0], vmax=limits[1], **look)
            axes.set_xticks([])
            axes.set_yticks([])
        axes_row[0].set_ylabel(name, fontsize=10)
    beyond = (
        max(float(np.max(matrix)) for matrices in rows.values() for matrix in matrices) > 1.001 * limits[1]
    )
    figure.colorbar(image, ax=grid, label=label, extend="max" if beyond else "neither")
    if across:
        figure.supxlabel(across, fontsize=10)
    return figure


def evenly(count: int, most: int) -> list[int]:
    """Up to `most` of the numbers below `count`, evenly spread, with the first and the last."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def shortened(name: str, most: int = 24) -> str:
    """A name of at most so many letters: of a longer one, such as of composed layers, both ends."""
    if len(name) <= most:
        return name
    return f"{name[: most // 2]}…{name[-((most - 1) // 2) :]}"
