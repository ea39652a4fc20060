"""Instruments that look at a network in training; they read, and never train."""

from decoupled.analysis.alignment import BoundaryGradients, boundary_gradients, cosine
from decoupled.analysis.implicit_loss import (
    implicit_loss,
    implicit_prediction,
    line_integral,
    linear_implicit_prediction,
)

__all__ = [
    "BoundaryGradients",
    "boundary_gradients",
    "cosine",
    "implicit_loss",
    "implicit_prediction",
    "line_integral",
    "linear_implicit_prediction",
]
