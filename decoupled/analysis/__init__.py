"""Instruments that look at a network in training; they read, and never train."""

from decoupled.analysis.alignment import BoundaryGradients, boundary_gradients, cosine
from decoupled.analysis.critical_points import CriticalPoint, critical_point
from decoupled.analysis.least_squares import LinearFit, best_linear, line_search

__all__ = [
    "BoundaryGradients",
    "CriticalPoint",
    "LinearFit",
    "best_linear",
    "boundary_gradients",
    "cosine",
    "critical_point",
    "line_search",
]
