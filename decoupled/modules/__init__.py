"""Modules from Linen, NNX and plain functions; composed, and cut."""

from decoupled.modules.chains import compose, cut
from decoupled.modules.functions import from_functions
from decoupled.modules.linen import from_linen
from decoupled.modules.nnx import from_nnx

__all__ = ["compose", "cut", "from_functions", "from_linen", "from_nnx"]
