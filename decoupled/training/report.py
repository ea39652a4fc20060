"""One HTML page about a run, with its curves, that needs no other file."""

from typing import Any

import matplotlib
from matplotlib.figure import Figure

from decoupled.training.html import page, svg, table


def render_report(summary: dict[str, Any], metrics: list[dict[str, Any]]) -> str:
    """The page, from a run's summary and the lines of its metrics.jsonl."""
    modules = summary["modules"]
    facts = [(name, value) for name, value in summary.items() if name not in ("modules", "versions")]
    facts += [(f"{name} version", value) for name, value in summary["versions"].items()]
    figures = [
        _figure("Accuracy", "fraction correct", _curves(metrics, "accuracy")),
        _figure("Loss", "nats per example", _curves(metrics, "loss"), log=True),
        *_boundary_figures(metrics, [module["name"] for module in modules]),
    ]
    return page(
        f"{summary['method']} on {summary['dataset']}",
        f"{table(facts)}<h2>Modules</h2>{table([tuple(m.values()) for m in modules], tuple(modules[0]))}"
        f"<h2>Curves</h2>{''.join(figures)}",
    )


def _curves(metrics: list[dict[str, Any]], name: str) -> dict[str, tuple[list, list]]:
    """Steps and values of `name`, one curve for each kind of line that has it."""
    curves = {}
    for kind in ("train", "validation", "test"):
        points = [(line["step"], line[name]) for line in metrics if line["kind"] == kind]
        points = [(step, value) for step, value in points if value is not None]
        if points:
            steps, values = zip(*points, strict=True)
            curves[kind] = (list(steps), list(values))
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
        curves = {}
        for i, module in enumerate(names[:-1]):
            points = [(line["step"], line[name][i]) for line in lines]
            points = [(step, value) for step, value in points if value is not None]
            if points:
                steps, values = zip(*points, strict=True)
                curves[f"after {module}"] = (list(steps), list(values))
        if curves:
            low = -1.0 if name == "r2" else None
            figures.append(_figure(title, label, curves, log=name == "estimator_loss", low=low))
    return figures


def _figure(
    title: str,
    label: str,
    curves: dict[str, tuple[list, list]],
    log: bool = False,
    low: float | None = None,
) -> str:
    """An inline SVG; values below `low` are drawn at the edge."""
    figure = Figure(figsize=(8, 4), layout="constrained")  # not pyplot's: no global backend
    axes = figure.subplots()
    colours = matplotlib.colormaps["viridis"]
    for i, (name, (steps, values)) in enumerate(curves.items()):
        values = [value if low is None else max(value, low) for value in values]
        marker = "o" if len(steps) < 30 else None
        colour = colours(0.9 * i / max(1, len(curves) - 1))
        axes.plot(steps, values, label=name, marker=marker, markersize=3, color=colour)
    axes.set(title=title, xlabel="step", ylabel=label, yscale="log" if log else "linear")
    axes.grid(alpha=0.3)
    if curves:
        axes.legend(fontsize="small", ncols=1 + len(curves) // 7)
    return svg(figure)
