"""The page of a comparison: U17's table of methods with what was measured, and two figures."""

import statistics
from typing import Any

from matplotlib.figure import Figure

from decoupled.analysis.drawing import evenly, shortened
from decoupled.training.html import page, svg, table

_MOST_NUMBERS = 12  # side by side: more cannot be read
_STYLE = "body { max-width: 90rem; } td, th { padding: 0.2rem 0.5rem; font-size: 0.85rem; }"
_HEADER = (
    "method",
    "dL/dh is taken to be",
    "loss",
    "trained",
    "target",
    "estimate sees labels",
    "fit sees labels",
    "forward locked",
    "update locked",
    "backward locked",
    "direct error",
    "test accuracy, %",
    "cosine per boundary",
    "step time",
)


def render(result: dict[str, Any]) -> str:
    """The page, from what compare.json holds."""
    rows = result["rows"]
    return page(
        f"Every method on {result['dataset']}",
        f"<p>{result['seeds']} seeds; {result['device']}, jax {result['versions']['jax']}. Accuracy: mean"
        " ± sample standard deviation over seeds. Cosine of what a module is given with the true gradient,"
        " first boundary to last: mean over epochs and seeds. Step time: of the fused step, relative to"
        " backprop.</p>"
        f"{table([_cells(row) for row in rows], _HEADER)}{_accuracies(rows)}"
        f"{svg(cosines_figure(rows, result['boundaries']))}"
        f"<h2>Options</h2>{table([(row['name'], _flags(row['options'])) for row in rows])}",
        _STYLE,
    )


def mean_and_spread(accuracies: list[float]) -> tuple[float, float]:
    """In percent; the spread of one seed is zero."""
    percent = [100 * value for value in accuracies]
    return statistics.mean(percent), statistics.stdev(percent) if len(percent) > 1 else 0.0


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    mean, spread = mean_and_spread(row["test_accuracy"])
    sees = (row["estimate_sees_labels"], row["fit_sees_labels"])
    locks = [*sees, *row["locks"].values(), row["direct_error"]]
    return (
        row["name"],
        row["form"],
        row["loss"],
        "trained" if row["trained"] else "fixed",
        row["target"] or "none",
        *("yes" if holds else "no" for holds in locks),
        f"{mean:.2f} ± {spread:.2f}" + (" (diverged)" if row["diverged"] else ""),
        _numbers(row["cosine"]),
        "" if row["step_time"] is None else f"{row['step_time']:.2f}",
    )


def _numbers(cosines: list[float]) -> str:
    """First to last; of many, some that are evenly spread."""
    shown = evenly(len(cosines), _MOST_NUMBERS)
    return (" " if len(shown) == len(cosines) else " … ").join(f"{cosines[i]:.2f}" for i in shown)


def _flags(options: dict[str, Any]) -> str:
    return " ".join(f"--config.{field}={value}" for field, value in options.items())


def _accuracies(rows: list[dict[str, Any]]) -> str:
    figure = Figure(figsize=(9, 1 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(rows, key=lambda row: statistics.mean(row["test_accuracy"]))
    for i, row in enumerate(ordered):
        axes.plot([100 * value for value in row["test_accuracy"]], [i] * len(row["test_accuracy"]), "o")
    axes.set(
        title="Test accuracy, one point a seed",
        xlabel="%",
        yticks=range(len(ordered)),
        yticklabels=[row["name"] for row in ordered],
    )
    axes.grid(alpha=0.3)
    return svg(figure)


def cosines_figure(rows: list[dict[str, Any]], boundaries: list[str]) -> Figure:
    """A table in colours: methods down, boundaries across."""
    figure = Figure(figsize=(9, 1 + 0.35 * len(rows)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow([row["cosine"] for row in rows], vmin=-1, vmax=1, cmap="RdBu", aspect="auto")
    for i, row in enumerate(rows):
        for j, cosine in enumerate(row["cosine"] if len(boundaries) <= _MOST_NUMBERS else []):
            dark = abs(cosine) > 0.6
            axes.text(j, i, f"{cosine:.2f}", ha="center", va="center", color="white" if dark else "black")
    named = evenly(len(boundaries), 6)
    axes.set(
        title="Cosine with the true gradient, after each module",
        xticks=named,
        xticklabels=[shortened(boundaries[i], 12) for i in named],
        yticks=range(len(rows)),
        yticklabels=[row["name"] for row in rows],
    )
    figure.colorbar(image)
    return figure
