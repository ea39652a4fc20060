"""What a run is for, by the names that a config has for it: losses, and the metrics that it is judged by.

Both map (output, y) to one number an example, (batch,). Their means are taken where they are used.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from decoupled import losses
from decoupled.errors import UsageError
from decoupled.precision import at_least_float32
from decoupled.shapes import AnyArray, Float, Integer, Real, Shaped
from decoupled.types import Array, Loss


class Metric(NamedTuple):
    """What a run is judged by: the best network is the one that it is best for on held-out examples.

    Attributes:
      name: how logs, tables and figures call it.
      function: (output, y) -> (batch,).
      larger_is_better: False for an error.
    """

    name: str
    function: Callable[[Any, Any], AnyArray]
    larger_is_better: bool = True

    def is_better(self, value: float, than: float) -> bool:
        """Whether a mean is, strictly."""
        return value > than if self.larger_is_better else value < than


def softmax_cross_entropy(
    logits: Float[AnyArray, "batch *tokens classes"], labels: Integer[AnyArray, "batch *tokens"]
) -> Float[Array, " batch"]:
    """Log loss of integer classes, in nats; of tokens their mean.

    Returns:
      float32, or float64 if the logits are.
    """
    if labels.ndim < 2 or labels.shape != logits.shape[:-1]:
        return losses.softmax_cross_entropy(logits, labels)
    each = losses.softmax_cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
    return each.reshape(len(labels), -1).mean(1)


def sigmoid_cross_entropy(
    logits: Float[AnyArray, "batch *labels"], labels: Real[AnyArray, "batch *labels"]
) -> Float[Array, " batch"]:
    """Log loss of labels that each hold or do not, in nats, summed over them.

    Args:
      logits: one a label.
      labels: 1 where one holds, 0 where it does not, or a probability.

    Returns:
      float32, or float64 if the logits are.
    """
    _check_alike("the log loss of several labels", logits, labels)
    each = optax.sigmoid_binary_cross_entropy(at_least_float32(logits), at_least_float32(labels))
    return each.reshape(len(logits), -1).sum(1)


def accuracy(
    output: Real[AnyArray, "batch *tokens classes"], labels: Integer[AnyArray, "batch *tokens"]
) -> Shaped[AnyArray, " batch"]:
    """Whether the largest output is the label's; of tokens, the fraction."""
    if labels.shape != output.shape[:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise UsageError(
            "the accuracy takes outputs (batch, classes) and integer labels (batch,), or such of tokens,"
            f" not {output.shape} and {labels.dtype} {labels.shape}: choose another config.metric"
        )
    correct = output.argmax(-1) == labels
    return correct if correct.ndim == 1 else correct.reshape(len(labels), -1).mean(1)


def multilabel_accuracy(
    logits: Float[AnyArray, "batch *labels"], labels: Real[AnyArray, "batch *labels"]
) -> Float[AnyArray, " batch"]:
    """The fraction of labels that are told rightly: by a logit above 0, those that hold."""
    _check_alike("the accuracy of several labels", logits, labels)
    return ((logits > 0) == (labels > 0.5)).reshape(len(labels), -1).mean(1)


def mean_absolute_error(
    output: Real[AnyArray, "batch *shape"], targets: Real[AnyArray, "batch *shape"]
) -> Float[Array, " batch"]:
    """Over all numbers of an example."""
    return jnp.abs(_difference(output, targets)).mean(1)


def mean_squared_error(
    output: Real[AnyArray, "batch *shape"], targets: Real[AnyArray, "batch *shape"]
) -> Float[Array, " batch"]:
    """Over all numbers of an example."""
    return jnp.square(_difference(output, targets)).mean(1)


def _difference(
    output: Real[AnyArray, "batch *shape"], targets: Real[AnyArray, "batch *shape"]
) -> Float[Array, "batch flat"]:
    _check_alike("an error", output, targets)
    difference = at_least_float32(output) - at_least_float32(targets)
    return difference.reshape(len(output), -1)


def _check_alike(what: str, output: AnyArray, targets: AnyArray) -> None:
    if output.shape != targets.shape:
        raise UsageError(
            f"{what} takes an output and targets of one shape, not {output.shape} and {targets.shape}"
        )


ACCURACY = Metric("accuracy", accuracy)

LOSSES: dict[str, Loss] = {
    "softmax_cross_entropy": softmax_cross_entropy,
    "sigmoid_cross_entropy": sigmoid_cross_entropy,
    "squared_error": losses.squared_error,
}
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        ACCURACY,
        Metric("multilabel_accuracy", multilabel_accuracy),
        Metric("mean_absolute_error", mean_absolute_error, larger_is_better=False),
        Metric("mean_squared_error", mean_squared_error, larger_is_better=False),
    )
}
# What a line of metrics has beside it.
_TAKEN = ("kind", "step", "epoch", "loss", "estimator_loss", "r2", "examples_per_second", "cosine")


def own_metric(where: str, name: str, found: Any) -> Metric:
    """A metric of one's own: a Metric, or a function of which larger is better.

    Raises:
      UsageError: it is neither, or has a name that something else has.
    """
    metric = found if isinstance(found, Metric) else Metric(name, found)
    if not callable(metric.function):
        raise UsageError(f"{where}, which is a {type(found).__name__}: name a function or a Metric")
    if metric.name in _TAKEN:
        raise UsageError(f"{where}, whose name {metric.name} something else in a run has: choose another")
    return metric


def checked_scores(scores: Any, batch: int, where: str = "config.metric") -> Shaped[Array, " batch"]:
    """The values of a metric as they are, if there is one an example.

    Raises:
      UsageError: they have another shape than (batch,).
    """
    if getattr(scores, "shape", None) != (batch,):
        told = getattr(scores, "shape", None) or f"a {type(scores).__name__}"
        raise UsageError(
            f"{where} gives {told} for a batch of {batch}, but must give one number an example, ({batch},)"
        )
    return scores
