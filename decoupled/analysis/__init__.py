"""Instruments that look at a network in training; they read, and never train.

`probes`, `drawing` and `figures` load scikit-learn and matplotlib: import them by name.
"""

from decoupled.analysis.activations import activations
from decoupled.analysis.alignment import (
    BoundaryGradients,
    boundary_gradients,
    cosine,
    norm_ratio,
    r_squared,
    sign_agreement,
)
from decoupled.analysis.cka import cka_of_layers, linear_cka
from decoupled.analysis.critical_points import CriticalPoint, critical_point
from decoupled.analysis.dissimilarity import (
    class_contrast,
    dissimilarity_matrix,
    frobenius_distance,
    label_order,
    pearson_distance,
    spearman_distance,
)
from decoupled.analysis.implicit_loss import (
    implicit_loss,
    implicit_prediction,
    line_integral,
    linear_implicit_prediction,
)
from decoupled.analysis.least_squares import LinearFit, best_linear, line_search

__all__ = [
    "BoundaryGradients",
    "CriticalPoint",
    "LinearFit",
    "activations",
    "best_linear",
    "boundary_gradients",
    "cka_of_layers",
    "class_contrast",
    "cosine",
    "critical_point",
    "dissimilarity_matrix",
    "frobenius_distance",
    "implicit_loss",
    "implicit_prediction",
    "label_order",
    "line_integral",
    "line_search",
    "linear_cka",
    "linear_implicit_prediction",
    "norm_ratio",
    "pearson_distance",
    "r_squared",
    "sign_agreement",
    "spearman_distance",
]
