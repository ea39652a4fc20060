"""What all trained synthetic gradients share: their loss, and what they are told beside h."""

from collections.abc import Callable
from typing import Any, TypeAlias

import chex
import jax
import jax.numpy as jnp

from decoupled import weights
from decoupled.errors import UsageError
from decoupled.precision import at_least_float32
from decoupled.shapes import AnyArray, Float, Integer, Shaped
from decoupled.types import Array, PyTree

# y -> (batch, context_features), or None for an estimator that sees h alone.
Context: TypeAlias = Callable[[Any], AnyArray] | None


def one_hot(num_classes: int) -> Callable[[Integer[AnyArray, " batch"]], Float[Array, "batch num_classes"]]:
    """Context from integer labels."""

    def encode(y: Integer[AnyArray, " batch"]) -> Float[Array, "batch num_classes"]:
        _check_one_array("one_hot", y)
        if y.ndim != 1 or not jnp.issubdtype(y.dtype, jnp.integer):
            if jnp.issubdtype(y.dtype, jnp.floating):
                way_out = "for what is encoded already (soft labels, values) use as_given"
            else:
                way_out = "for a label a token, let a boundary count tokens as examples: batch_axes=2"
            raise UsageError(
                f"one_hot encodes integer labels, one an example, but y is {y.dtype} of shape {y.shape}"
                f" ({way_out})"
            )
        return jax.nn.one_hot(y, num_classes)

    return encode


def as_given(y: Shaped[AnyArray, "batch *shape"]) -> Shaped[Array, "batch features"]:
    """Context that is already a vector an example, of real numbers."""
    _check_one_array("as_given", y)
    return flatten(y)


def encoded(
    context: Callable[[Any], AnyArray],
    y: PyTree,
    h: Float[Array, "batch *features"],
    width: int | None = None,
) -> Float[AnyArray, "batch context"]:
    """What a context makes of y, once it is found to be a vector of real numbers for each example of h.

    Args:
      context: encodes y.
      y: of the examples of h, (batch, ...).
      h: activations.
      width: of the vector, where the estimator says it.

    Raises:
      UsageError: it is something else, and would be broadcast or taken for numbers that labels are not.
    """
    return checked_context(context(y), h, width)


def checked_context(
    encoding: Float[AnyArray, "batch context"], h: Float[Array, "batch *features"], width: int | None = None
) -> Float[AnyArray, "batch context"]:
    """An encoding of y as it is, if it is as `encoded` describes it."""
    _check_one_array("an estimator's context", encoding)
    if encoding.ndim != 2 or encoding.shape[0] != h.shape[0] or width not in (None, encoding.shape[1]):
        raise UsageError(
            f"the context has shape {encoding.shape}, but for activations {h.shape} it must be"
            f" ({h.shape[0]}, {width or 'features'}): a vector an example, as one_hot makes it of labels"
        )
    if not jnp.issubdtype(encoding.dtype, jnp.floating):
        raise UsageError(
            f"the context is {encoding.dtype}, but must be real numbers: encode labels with"
            " one_hot(num_classes), and make floats of what are numbers indeed"
        )
    return encoding


def _check_one_array(what: str, y: PyTree) -> None:
    if not hasattr(y, "dtype"):
        raise UsageError(
            f"{what} takes one array, but was given a {type(y).__name__}: let the context be a function"
            " that makes a vector an example of it"
        )


def flatten(h: Shaped[AnyArray, "batch *shape"]) -> Shaped[Array, "batch features"]:
    """One vector an example."""
    return jnp.asarray(h).reshape(h.shape[0], -1)


def sg_loss(
    grad_h_hat: Float[Array, "batch *features"],
    target: Float[Array, "batch *features"],
    weight: Shaped[AnyArray, " batch"] | None = None,
) -> Float[Array, ""]:
    """Squared error of an estimate: summed over features, averaged over examples (U17).

    Args:
      grad_h_hat, target: per-example gradients.
      weight: of each example; None: all count alike.

    Returns:
      In squared units of the loss per unit of h.
    """
    chex.assert_equal_shape([grad_h_hat, target])
    return power(at_least_float32(grad_h_hat) - at_least_float32(target), weight)


def power(
    gradient: Float[Array, "batch *features"], weight: Shaped[AnyArray, " batch"] | None = None
) -> Float[Array, ""]:
    """Squared length of each example's gradient, averaged over examples."""
    return weights.mean(squared_lengths(gradient), weight)


def squared_lengths(gradient: Float[Array, "batch *features"]) -> Float[Array, " batch"]:
    """Of each example's gradient."""
    rows = at_least_float32(flatten(gradient))
    return jnp.einsum("bf,bf->b", rows, rows)


def squared_errors(estimate: PyTree, target: PyTree) -> Float[Array, " batch"]:
    """Squared distance of each example's gradients, over all arrays."""
    each = jax.tree.map(
        lambda a, b: squared_lengths(at_least_float32(a) - at_least_float32(b)), estimate, target
    )
    return jnp.stack(jax.tree.leaves(each)).sum(0)


def by_gradient(
    estimate: Callable[..., Array], sees_weight: bool = False
) -> Callable[..., tuple[Array, PyTree]]:
    """The `training_gradient` of an estimator that descends the SG loss of its own estimate.

    Args:
      estimate: of the estimator.
      sees_weight: whether it is given the weights, where there are some.
    """

    def training_gradient(
        est_params: PyTree,
        h: Float[Array, "batch *features"],
        y: PyTree,
        target: Float[Array, "batch *features"],
        weight: Shaped[AnyArray, " batch"] | None = None,
    ) -> tuple[Float[Array, ""], PyTree]:
        given = (weight,) if sees_weight and weight is not None else ()

        def loss(est_params: PyTree) -> Float[Array, ""]:
            return sg_loss(estimate(est_params, h, y, None, *given), target, weight)

        return jax.value_and_grad(loss)(est_params)

    return training_gradient
