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
from decoupled.analysis.dissimilarity import (
    class_contrast,
    dissimilarity_matrix,
    frobenius_distance,
    label_order,
    pearson_distance,
    spearman_distance,
)

__all__ = [
    "BoundaryGradients",
    "activations",
    "boundary_gradients",
    "cka_of_layers",
    "class_contrast",
    "cosine",
    "dissimilarity_matrix",
    "frobenius_distance",
    "label_order",
    "linear_cka",
    "norm_ratio",
    "pearson_distance",
    "r_squared",
    "sign_agreement",
    "spearman_distance",
]
