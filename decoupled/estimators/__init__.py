"""Where a boundary's gradient comes from: one method a file."""

from decoupled.estimators.backprop import backprop
from decoupled.estimators.linear import linear
from decoupled.estimators.loss_shaped import loss_shaped
from decoupled.estimators.network import convolutional, mlp, network
from decoupled.estimators.recursive_least_squares import recursive_least_squares
from decoupled.estimators.synthetic_gradient import as_given, one_hot, sg_loss

__all__ = [
    "as_given",
    "backprop",
    "convolutional",
    "linear",
    "loss_shaped",
    "mlp",
    "network",
    "one_hot",
    "recursive_least_squares",
    "sg_loss",
]
