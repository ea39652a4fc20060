"""Names of methods, as a config has them, become estimators."""

import inspect
from collections.abc import Callable
from typing import Any

from decoupled import estimators
from decoupled.errors import UsageError
from decoupled.estimators.synthetic_gradient import Context
from decoupled.extras import extra
from decoupled.losses import softmax_cross_entropy
from decoupled.types import Estimator, Loss

with extra("train"):
    import ml_collections


def methods() -> dict[str, Callable[..., Estimator]]:
    """Every estimator of the package that a config can name: those whose arguments it can fill in."""
    makers = {name: maker for name, maker in vars(estimators).items() if callable(maker)}
    return {name: maker for name, maker in makers.items() if _is_method(maker)}


def _is_method(maker: Callable) -> bool:
    signature = inspect.signature(maker)
    known = {"num_outputs", "num_classes", "context", "estimator"}
    required = {p.name for p in signature.parameters.values() if p.default is p.empty}
    return signature.return_annotation is Estimator and required <= known


def make_estimator(
    name: str, num_classes: int, context: Context, loss: Loss = softmax_cross_entropy, **options: Any
) -> Estimator:
    """The estimator called `name`, told of the classes, the context and the loss if it asks for them."""
    maker = methods()[name]
    given = {"num_outputs": num_classes, "num_classes": num_classes, "context": context, "loss": loss}
    asked = inspect.signature(maker).parameters
    return maker(**{field: value for field, value in given.items() if field in asked}, **options)


def estimator_of(
    config: ml_collections.ConfigDict, num_classes: int, name: str, loss: Loss = softmax_cross_entropy
) -> Estimator:
    """An estimator with the options of the config's section of its name.

    Args:
      config: the section `estimator` of that of a run.
      num_classes: of the data.
      name: one of `methods`.
      loss: of the network, and of heads that an estimator trains.

    Raises:
      UsageError: it needs labels, which the config withholds.
    """
    context: Context = estimators.one_hot(num_classes) if config.conditioned else None
    options = dict(config[name]) if name in config else {}
    if "estimator" in options:
        options["estimator"] = estimator_of(config, num_classes, options["estimator"], loss)
    estimator = make_estimator(name, num_classes, context, loss, **options)
    if not config.conditioned and "y" in estimator.estimate_sees:
        raise UsageError(
            f"config.estimator.conditioned is False, but every estimate of {name} is made of the labels:"
            " leave it True, or choose another estimator"
        )
    return estimator
