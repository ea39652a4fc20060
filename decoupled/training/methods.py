"""Names of methods, as a config has them, become estimators."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from decoupled import estimators, losses
from decoupled.argument_checks import check_estimator
from decoupled.errors import UsageError
from decoupled.estimators.synthetic_gradient import Context
from decoupled.extras import extra
from decoupled.leaves import joined_rows
from decoupled.shapes import AnyArray, Float, Shaped
from decoupled.training.config_checks import options_of
from decoupled.training.own_names import call, is_own
from decoupled.types import Array, Estimator, Loss, PyTree

with extra("train"):
    import ml_collections


# Every estimator of the package that a config can name.
METHODS: dict[str, Callable[..., Estimator]] = {
    "auxiliary_network": estimators.auxiliary_network,
    "backprop": estimators.backprop,
    "borrowed_next": estimators.borrowed_next,
    "borrowed_readout": estimators.borrowed_readout,
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
    "sg_prop": estimators.sg_prop,
    "sigmoid": estimators.sigmoid,
    "similarity": estimators.similarity,
    "surrogate": estimators.surrogate,
}


def make_estimator(
    name: str,
    num_classes: int,
    context: Context,
    loss: Loss = losses.softmax_cross_entropy,
    **options: Any,
) -> Estimator:
    """The estimator called `name`, told of the classes, the context and the loss if it asks for them."""
    maker = METHODS[name]
    given = _given(num_classes, context, loss)
    asked = inspect.signature(maker).parameters
    return maker(**{field: value for field, value in given.items() if field in asked}, **options)


def _given(num_classes: int, context: Context, loss: Loss) -> dict[str, Any]:
    return {"num_outputs": num_classes, "num_classes": num_classes, "context": context, "loss": loss}


def targets_as_context(num_classes: int) -> Callable[[AnyArray], Array]:
    """Context from targets of any kind: values as they are, of classes one-hot vectors, of tokens one an
    example that joins theirs; of several arrays theirs joined."""

    def encode(y: PyTree) -> Float[Array, "batch context"]:
        return jnp.asarray(joined_rows([encode_one(leaf) for leaf in jax.tree.leaves(y)]))

    def encode_one(y: Shaped[AnyArray, "batch *tokens"]) -> Float[Array, "batch context"]:
        if jnp.issubdtype(y.dtype, jnp.floating):
            return estimators.as_given(y)
        if y.ndim > 1:
            return jax.nn.one_hot(y.reshape(len(y), -1), num_classes).reshape(len(y), -1)
        return estimators.one_hot(num_classes)(y)

    return encode


def estimator_of(config: ml_collections.ConfigDict, num_classes: int, name: str, loss: Loss) -> Estimator:
    """An estimator with the options of the config's section of its name.

    Args:
      config: the section `estimator` of that of a run.
      num_classes: of the data.
      name: one of `METHODS`, or one's own, which finds its options in the section `options`.
      loss: of the run, for estimators with a loss of their own.

    Raises:
      UsageError: it needs labels, which the config withholds; or what is one's own is not in order.
    """
    context: Context = targets_as_context(num_classes) if config.conditioned else None
    if is_own(name):
        given = _given(num_classes, context, loss)
        estimator = call("estimator.name", name, given, options_of(config))
        check_estimator(f"config.estimator.name is {name!r}, which returns something else", estimator)
    else:
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
