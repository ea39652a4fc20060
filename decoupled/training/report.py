"""One HTML page about a run, with its curves, that needs no other file."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from decoupled.extras import extra
from decoupled.training.html import page, svg, table

with extra("train"):
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure

    from decoupled.analysis.drawing import evenly, shortened

_MOST_NAMED = 10  # curves in a legend; more are told by a scale of colours


class _Curve(NamedTuple):
    """Its name, and (step, value) of each point. Two modules may have one name."""

    name: str
    points: list[tuple[int, float]]


def render_report(summary: dict[str, Any], metrics: list[dict[str, Any]]) -> str:
    """The page, from a run's summary and the lines of its metrics.jsonl."""
    modules = summary["modules"]
    facts = [(name, value) for name, value in summary.items() if name not in ("modules", "versions")]
    facts += [(f"{name} version", value) for name, value in summary["versions"].items()]
    score, title, label = "accuracy", "Accuracy", "fraction correct"
    if "metric" in summary:
        score = title = summary["metric"]
        label = "larger is better" if summary["larger_is_better"] else "smaller is better"
    curves = _curves(metrics, "loss")
    unit = "nats per example" if "loss" not in summary else "per example"
    figures = [
        svg(_figure(title, label, _curves(metrics, score))),
        svg(_figure("Loss", unit, curves, log=all(v > 0 for curve in curves for _, v in curve.points))),
        *_boundary_figures(metrics, [module["name"] for module in modules]),
    ]
    return page(
        f"{summary['method']} on {summary['dataset']}",
        f"{table(facts)}<h2>Modules</h2>{table([tuple(m.values()) for m in modules], tuple(modules[0]))}"
        f"<h2>Curves</h2>{''.join(figures)}",
    )


def _curves(metrics: list[dict[str, Any]], name: str) -> list[_Curve]:
    """Steps and values of `name`, one curve for each kind of line that has it."""
    curves = []
    for kind in ("train", "validation", "test"):
        points = [(line["step"], line[name]) for line in metrics if line["kind"] == kind]
        points = [(step, value) for step, value in points if value is not None]
        if points:
            curves.append(_Curve(kind, points))
    return curves


def _boundary_figures(metrics: list[dict[str, Any]], names: list[str]) -> list[str]:
    """Curves per boundary, of what there is to show."""
    figures = []
    for kind, name, title, label in (
        ("train", "estimator_loss", "Loss of the estimator", "per example"),
        ("train", "r2", "R² of the SG against the zero predictor", "R²"),
        ("alignment", "cosine", "Alignment of estimated and true gradient", "cosine"),
    ):
        lines = [line for line in metrics if line["kind"] == kind and line.get(name)]
        curves = []
        for i, module in enumerate(names[:-1]):
            points = [(line["step"], line[name][i]) for line in lines]
            points = [(step, value) for step, value in points if value is not None]
            if points:
                curves.append(_Curve(f"after {shortened(module)}", points))
        if curves:
            low = -1.0 if name == "r2" else None
            figures.append(svg(_figure(title, label, curves, log=name == "estimator_loss", low=low)))
    return figures


def _figure(
    title: str, label: str, curves: Sequence[_Curve], log: bool = False, low: float | None = None
) -> Figure:
    """Curves in the order of their colours; values below `low` are drawn at the edge."""
    figure = Figure(figsize=(9, 4), layout="constrained")  # not pyplot's: no global backend
    axes = figure.subplots()
    # The end of viridis is too bright on white.
    colours = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(1, len(curves)))))
    for i, (name, points) in enumerate(curves):
        steps, values = zip(*points, strict=True)
        values = [value if low is None else max(value, low) for value in values]
        marker = "o" if len(steps) < 30 and len(curves) <= _MOST_NAMED else None
        width = 1.5 if len(curves) <= _MOST_NAMED else 0.8
        axes.plot(steps, values, label=name, marker=marker, markersize=3, color=colours(i), linewidth=width)
    axes.set(title=title, xlabel="step", ylabel=label, yscale="log" if log else "linear")
    axes.grid(alpha=0.3)
    if len(curves) > _MOST_NAMED:
        scale = ScalarMappable(BoundaryNorm(np.arange(len(curves) + 1) - 0.5, len(curves)), colours)
        ticks = evenly(len(curves), 7)
        bar = figure.colorbar(scale, ax=axes, ticks=ticks, spacing="proportional")
        bar.set_ticklabels([curves[i].name for i in ticks], fontsize="small")
        bar.minorticks_off()
        bar.ax.invert_yaxis()  # first to last, as a legend has them
    elif curves:
        figure.legend(loc="outside right upper", fontsize="small")
    return figure
