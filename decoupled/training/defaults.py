"""What `fit` takes where it is not told: loss, optimizers and metric."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from decoupled import losses
from decoupled.argument_checks import check_estimator, listed
from decoupled.errors import UsageError
from decoupled.learning.learner import Learner, make_learner
from decoupled.learning.stack import check_link
from decoupled.training import objectives
from decoupled.training.objectives import Metric
from decoupled.types import Estimator, Loss, PyTree

_LEARNING_RATE = 1e-3


def learner_of(given: Any, estimator: Any, y: PyTree) -> Learner:
    """The learner that was given; or one of the modules that were, which learns by Adam.

    Args:
      estimator: of each boundary, or one for all; None beside a learner.
      y: labels or targets, which tell the loss: softmax cross-entropy, or half the squared error.

    Raises:
      UsageError: these do not go together.
    """
    if isinstance(given, Learner):
        if estimator is not None:
            raise UsageError("a learner has its estimators already: leave estimator out")
        if given.rules.axis_name is not None:
            raise UsageError(
                f"the learner is made for a mapped axis, {given.rules.axis_name!r}, which is not there:"
                " make it without axis_name"
            )
        return given
    modules = listed("module", given, check_link)
    boundaries = len(modules) - 1
    if estimator is None and boundaries:
        raise UsageError(
            "an estimator is missing, which gives the modules their gradients: estimator="
            "estimators.loss_shaped(10), say, or estimators.backprop() for the true ones"
        )
    if estimator is None or isinstance(estimator, Estimator):
        estimator = [estimator] * boundaries
    elif not isinstance(estimator, (list, tuple)):
        check_estimator("estimator", estimator)
    adam = optax.adam(_LEARNING_RATE)
    return make_learner(modules, estimator, _loss_for(y), adam, adam)


def _loss_for(y: PyTree) -> Loss:
    """That of a list of modules."""
    leaves = jax.tree.leaves(y)
    if len(leaves) == 1 and jnp.issubdtype(leaves[0].dtype, jnp.integer):
        return objectives.softmax_cross_entropy
    if len(leaves) == 1 and jnp.issubdtype(leaves[0].dtype, jnp.floating):
        return losses.squared_error
    told = {0: "None", 1: "an array of another type"}.get(len(leaves), f"{len(leaves)} arrays")
    raise UsageError(
        f"y is {told}, but the loss of a list of modules is for integer labels or real targets: give fit"
        " what make_learner makes, with a loss of your own"
    )


def metric_of(given: Any, learner: Learner, y: PyTree) -> Metric:
    """The metric that was given, with its shapes checked.

    Without one it is the accuracy, where the loss is cross-entropy of classes, and else the loss again.

    Raises:
      UsageError: what was given is no metric.
    """
    if given is None:
        leaves = jax.tree.leaves(y)
        classes = len(leaves) == 1 and jnp.issubdtype(leaves[0].dtype, jnp.integer)
        if classes and learner.loss in (losses.softmax_cross_entropy, objectives.softmax_cross_entropy):
            return objectives.ACCURACY
        return Metric("loss", learner.loss, larger_is_better=False)
    name = getattr(given, "__name__", type(given).__name__).replace("<lambda>", "metric")
    metric = objectives.own_metric(f"metric is {name}", name, given)

    def function(output: Any, y: Any) -> Any:
        return objectives.checked_scores(
            metric.function(output, y), len(jax.tree.leaves(output)[0]), "metric"
        )

    return metric._replace(function=function)
