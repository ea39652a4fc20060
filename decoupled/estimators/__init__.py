"""Where a boundary's gradient comes from: one method a file."""

from decoupled.estimators.auxiliary_network import auxiliary_network
from decoupled.estimators.backprop import backprop
from decoupled.estimators.borrowed_next import borrowed_next
from decoupled.estimators.borrowed_readout import borrowed_readout
from decoupled.estimators.bp_lambda import bp_lambda
from decoupled.estimators.direct_feedback_alignment import direct_feedback_alignment
from decoupled.estimators.direct_random_target_projection import direct_random_target_projection
from decoupled.estimators.kickback import kickback
from decoupled.estimators.lifting import each, joined
from decoupled.estimators.linear import linear
from decoupled.estimators.local_loss import local_loss
from decoupled.estimators.loss_shaped import loss_shaped
from decoupled.estimators.mean_teacher import mean_teacher
from decoupled.estimators.network import convolutional, mlp, network
from decoupled.estimators.noise import noise
from decoupled.estimators.probe import probe
from decoupled.estimators.recursive_least_squares import recursive_least_squares
from decoupled.estimators.sg_prop import sg_prop
from decoupled.estimators.sigmoid import sigmoid
from decoupled.estimators.similarity import similarity
from decoupled.estimators.surrogate import surrogate
from decoupled.estimators.synthetic_gradient import as_given, one_hot, sg_loss
