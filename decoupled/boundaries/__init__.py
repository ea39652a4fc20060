"""Boundaries in one's own model: the identity forward, an estimator's gradient backward."""

from decoupled.boundaries.linen import Boundary
from decoupled.boundaries.nnx import NNXBoundary
from decoupled.boundaries.optimizer import split_optimizer
from decoupled.boundaries.primitive import boundary

__all__ = ["Boundary", "NNXBoundary", "boundary", "split_optimizer"]
