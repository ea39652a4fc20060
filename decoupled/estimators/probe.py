"""Layer-wise probes: each module descends the loss of a linear classifier on its own activation."""

from decoupled.estimators.local_loss import local_loss
from decoupled.losses import softmax_cross_entropy
from decoupled.types import Estimator, Loss


def probe(num_outputs: int, loss: Loss = softmax_cross_entropy) -> Estimator:
    """The gradient of loss(hW + b, y), with W from zero and trained on that loss itself.

    Args:
      num_outputs: of the probe: the number of classes for the log loss.
      loss: (output of the probe, y) -> (batch,).

    References:
      Alain & Bengio 2016, "Understanding intermediate layers using linear classifier probes"
      (arXiv 1610.01644), there without feedback to the network; U17's table of methods.
    """
    linear = local_loss(num_outputs, hidden=(), filters=(), loss=loss)
    return linear._replace(name="probe")
