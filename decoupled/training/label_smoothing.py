"""The log loss of labels that are not quite certain."""

import jax

from decoupled.precision import at_least_float32
from decoupled.shapes import AnyArray, Float, Integer
from decoupled.training.objectives import softmax_cross_entropy
from decoupled.types import Array, Loss


def cross_entropy(smoothing: float) -> Loss:
    """`objectives.softmax_cross_entropy` of labels that give the share `smoothing` to all classes alike.

    Of K classes, a label's own has 1 - smoothing + smoothing / K, and each other smoothing / K (Szegedy et
    al. 2016, arXiv 1512.00567, section 7).

    Args:
      smoothing: from 0, the labels as they are, up to, but not, 1.

    Returns:
      (logits, labels) -> (batch,), in nats.
    """
    if not smoothing:
        return softmax_cross_entropy

    def smoothed(
        logits: Float[AnyArray, "batch *tokens classes"], labels: Integer[AnyArray, "batch *tokens"]
    ) -> Float[Array, " batch"]:
        of_label = softmax_cross_entropy(logits, labels)
        of_all = -jax.nn.log_softmax(at_least_float32(logits)).reshape(len(labels), -1).mean(1)
        return (1 - smoothing) * of_label + smoothing * of_all

    return smoothed
