"""Instruments that look at a network in training; they read, and never train."""

from decoupled.analysis.alignment import BoundaryGradients, boundary_gradients, cosine

__all__ = ["BoundaryGradients", "boundary_gradients", "cosine"]
