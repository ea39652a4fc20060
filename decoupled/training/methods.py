"""Names of methods, as a config has them, become estimators."""

import inspect
from collections.abc import Callable
from typing import Any

from decoupled import estimators
from decoupled.argument_checks import check_estimator
from decoupled.errors import UsageError
from decoupled.estimators.synthetic_gradient import Context
from decoupled.extras import extra
from decoupled.training.config_checks import options_of
from decoupled.training.own_names import call, is_own
from decoupled.types import Estimator

with extra("train"):
    import ml_collections


# Every estimator of the package that a config can name.
METHODS: dict[str, Callable[..., Estimator]] = {
    "backprop": estimators.backprop,
    "bp_lambda": estimators.bp_lambda,
    "convolutional": estimators.convolutional,
    "direct_feedback_alignment": estimators.direct_feedback_alignment,
    "direct_random_target_projection": estimators.direct_random_target_projection,
    "kickback": estimators.kickback,
    "linear": estimators.linear,
    "local_loss": estimators.local_loss,
    "loss_shaped": estimators.loss_shaped,
    "mean_teacher": estimators.mean_teacher,
    "mlp": estimators.mlp,
    "noise": estimators.noise,
    "probe": estimators.probe,
    "recursive_least_squares": estimators.recursive_least_squares,
    "similarity": estimators.similarity,
}


def make_estimator(name: str, num_classes: int, context: Context, **options: Any) -> Estimator:
    """The estimator called `name`, told of the classes and the context if it asks for them."""
    maker = METHODS[name]
    given = _given(num_classes, context)
    asked = inspect.signature(maker).parameters
    return maker(**{field: value for field, value in given.items() if field in asked}, **options)


def _given(num_classes: int, context: Context) -> dict[str, Any]:
    return {"num_outputs": num_classes, "num_classes": num_classes, "context": context}


def estimator_of(config: ml_collections.ConfigDict, num_classes: int, name: str) -> Estimator:
    """An estimator with the options of the config's section of its name.

    Args:
      config: the section `estimator` of that of a run.
      num_classes: of the data.
      name: one of `METHODS`, or one's own, which finds its options in the section `options`.

    Raises:
      UsageError: it needs labels, which the config withholds; or what is one's own is not in order.
    """
    context: Context = estimators.one_hot(num_classes) if config.conditioned else None
    if is_own(name):
        estimator = _own(config, num_classes, context, name)
    else:
        options = dict(config[name]) if name in config else {}
        if "estimator" in options:
            options["estimator"] = estimator_of(config, num_classes, options["estimator"])
        estimator = make_estimator(name, num_classes, context, **options)
    if not config.conditioned and "y" in estimator.estimate_sees:
        raise UsageError(
            f"config.estimator.conditioned is False, but every estimate of {name} is made of the labels:"
            " leave it True, or choose another estimator"
        )
    return estimator


def _own(config: ml_collections.ConfigDict, num_classes: int, context: Context, name: str) -> Estimator:
    made = call("estimator.name", name, _given(num_classes, context), options_of(config))
    check_estimator(f"config.estimator.name is {name!r}, which returns something else", made)
    return made
