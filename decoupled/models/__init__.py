"""Flax models as chains of layers, to cut into modules where one likes."""

from decoupled.models.cnn import cnn
from decoupled.models.mlp import mlp

__all__ = ["cnn", "mlp"]
