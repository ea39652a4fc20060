"""Boundaries in one's own model: the identity forward, an estimator's gradient backward."""

from decoupled.boundaries.linen import Boundary
from decoupled.boundaries.metrics import BoundaryReport, new_tap, read_taps
from decoupled.boundaries.nnx import NNXBoundary, Tap
from decoupled.boundaries.optimizer import split_optimizer
from decoupled.boundaries.primitive import boundary, tie

__all__ = [
    "Boundary",
    "BoundaryReport",
    "NNXBoundary",
    "Tap",
    "boundary",
    "new_tap",
    "read_taps",
    "split_optimizer",
    "tie",
]
