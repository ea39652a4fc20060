"""The table of a study, as Markdown and as a page with learning curves."""

import math
import statistics
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from decoupled.training.html import page, svg, table
from experiments.accuracy.settings import NETWORKS, Chosen, flags
from experiments.accuracy.study import Finding

HEADER = (
    "method",
    "test accuracy, %",
    "behind backprop",
    "training loss",
    "test loss",
    "epochs to 85 / 88 %",
    "step time",
    "FLOPs",
    "memory",
    "cosine",
    "rates",
)
_STYLE = "body { max-width: 90rem; } td, th { padding: 0.2rem 0.5rem; font-size: 0.85rem; }"
# Okabe & Ito's colours, told apart by the colour-blind, and dashes for more methods than colours.
_COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def rows(found: Sequence[Finding]) -> list[tuple[str, ...]]:
    """Cells under HEADER."""
    best = statistics.mean(next(f for f in found if f.method == "backprop").accuracies)
    return [
        (
            f.method,
            f"{statistics.mean(f.accuracies):.2f}{_spread(f.accuracies)}",
            f"{best - statistics.mean(f.accuracies):.2f}",
            f"{statistics.mean(run.training_loss for run in f.runs):.3f}",
            f"{statistics.mean(run.test_loss for run in f.runs):.3f}",
            " / ".join(_epochs(f.epochs_to(accuracy)) for accuracy in (0.85, 0.88)),
            *(f"{ratio:.2f}" for ratio in f.costs),
            _cosine(f),
            f"`{flags(f.rates)}`",
        )
        for f in found
    ]


def markdown(found: Sequence[Finding]) -> str:
    """The table for docs/results.md."""
    lines = [HEADER, ["---"] * len(HEADER), *rows(found)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def render(chosen: Chosen, command: str, found: Sequence[Finding]) -> str:
    """The page."""
    base, fields, _ = NETWORKS[chosen.network]
    dataset = base.get_config().dataset
    trials = [(f.method, len(f.tried), " ".join(f"{100 * score:.2f}" for score in f.tried)) for f in found]
    return page(
        f"{dataset}, {chosen.network}, {chosen.epochs} epochs: decoupled at every boundary",
        f"<p><code>{command}</code></p><p>Config: {base.__name__.replace('.', '/')}.py with"
        f" <code>{flags(fields) or 'nothing changed'}</code>. Test accuracy: mean ± sample"
        f" standard deviation over {len(found[0].runs)} seeds, in percent. Losses in nats. Step time, FLOPs"
        " and temporary memory of the fused step: ratios to backprop's. Epochs: until held-out accuracy"
        " first gets there, median of seeds. Cosine of estimates with the true gradient: mean over"
        " boundaries and training.</p>"
        f"{table(rows(found), HEADER)}{svg(curves(found))}"
        "<h2>Trials</h2><p>Held-out accuracy of each setting of the learning rates, seed 0, in percent; the"
        " best was chosen.</p>"
        f"{table(trials, ('method', 'trials', 'held-out accuracy'))}",
        _STYLE,
    )


def curves(found: Sequence[Finding]) -> Figure:
    """Held-out accuracy against epochs: mean over seeds, and the range they span."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for index, f in enumerate(found):
        accuracy = 100 * np.array([run.validation for run in f.runs])
        epochs = np.arange(1, accuracy.shape[1] + 1)
        colour = _COLOURS[index % len(_COLOURS)]
        style = "-" if index < len(_COLOURS) else "--"
        axes.plot(epochs, accuracy.mean(0), style, color=colour, label=f.method)
        axes.fill_between(epochs, accuracy.min(0), accuracy.max(0), color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="epochs", ylabel="accuracy on held-out examples, %")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _spread(values: Sequence[float]) -> str:
    return f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""


def _epochs(count: float) -> str:
    return "never" if math.isinf(count) else f"{count:g}"


def _cosine(found: Finding) -> str:
    values = [run.cosine for run in found.runs if run.cosine is not None]
    return f"{statistics.mean(values):.2f}" if values else ""
