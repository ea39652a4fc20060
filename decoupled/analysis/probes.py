"""Linear probes: how well a linear classifier tells the classes apart, given one layer's activations.

Not imported with the package, since scikit-learn takes a second to load.

References:
  Alain & Bengio 2016, "Understanding intermediate layers using linear classifier probes" (arXiv
  1610.01644); U17.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from decoupled.extras import extra
from decoupled.shapes import AnyArray, Float, Integer, Real

with extra("analysis"):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits


class Labelled(NamedTuple):
    """Activations with labels.

    Attributes:
      h: of one layer.
      y: integers.
    """

    h: Real[AnyArray, "n *units"]
    y: Integer[AnyArray, " n"]


def probe_accuracy(fitted: Labelled, held_out: Labelled) -> float:
    """Accuracy, on examples held out, of a linear classifier fitted to a layer's activations.

    scikit-learn's logistic regression (log loss and a slight L2 penalty, C=1, solved by L-BFGS: convex,
    so nothing depends on a seed) of activations standardised unit by unit, so that the penalty means the
    same in every layer.

    Args:
      fitted: what the classifier sees.
      held_out: what it is judged on.

    Returns:
      Fraction correct.
    """
    # Beyond this tolerance predictions no longer change, while L-BFGS goes on for long in poor layers.
    classifier = LogisticRegression(tol=1e-3, max_iter=2000)
    probe: Any = make_pipeline(StandardScaler(), classifier)
    # Matrices this small gain nothing from many threads, which on a busy machine wait for one another:
    # that has been seen to take fifty times as long.
    with threadpool_limits(1):
        probe.fit(_rows(fitted.h), np.asarray(fitted.y))
        return float(probe.score(_rows(held_out.h), np.asarray(held_out.y)))


def probe_accuracies(
    fitted: Sequence[Real[AnyArray, "n ..."]],
    y_fitted: Integer[AnyArray, " n"],
    held_out: Sequence[Real[AnyArray, "m ..."]],
    y_held_out: Integer[AnyArray, " m"],
) -> list[float]:
    """`probe_accuracy` of every layer.

    Args:
      fitted, held_out: one array a layer, as `activations` gives them.
      y_fitted, y_held_out: labels.
    """
    pairs = zip(fitted, held_out, strict=True)
    return [probe_accuracy(Labelled(h, y_fitted), Labelled(g, y_held_out)) for h, g in pairs]


def _rows(h: Real[AnyArray, "n *units"]) -> Float[np.ndarray, "n flat"]:
    rows = np.asarray(h, np.float64)
    return rows.reshape(len(rows), -1)
