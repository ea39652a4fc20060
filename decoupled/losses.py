"""Losses per example: (output, y) -> (batch,). Their mean over a batch is what training minimises."""

import jax
import jax.numpy as jnp
import optax

from decoupled import weights
from decoupled.errors import UsageError
from decoupled.leaves import real_part, with_real_part
from decoupled.precision import at_least_float32
from decoupled.shapes import AnyArray, Float, Integer, Shaped
from decoupled.types import Array, Loss, PyTree


def softmax_cross_entropy(
    logits: Float[AnyArray, "batch classes"], labels: Integer[AnyArray, " batch"]
) -> Float[Array, " batch"]:
    """Log loss of integer classes, in nats.

    Returns:
      float32, or float64 if the logits are.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise UsageError(
            f"the log loss takes logits (batch, classes) and labels (batch,), not {logits.shape} and"
            f" {labels.shape} (for a label a token, count tokens as examples: batch_axes=2 at a boundary,"
            " else reshape both to lead with batch * time; for soft labels give another loss)"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise UsageError(
            f"the log loss takes integer labels, not {labels.dtype}: give another loss, or cast"
        )
    return optax.softmax_cross_entropy_with_integer_labels(at_least_float32(logits), labels)


def squared_error(
    output: Float[AnyArray, "batch *shape"], targets: Shaped[AnyArray, "batch *shape"]
) -> Float[Array, " batch"]:
    """Half the squared distance, so that dL/d(output) = output - targets.

    Returns:
      float32, or float64 if the output is.
    """
    if output.shape != targets.shape:
        raise UsageError(
            f"the squared error takes an output and targets of one shape, not {output.shape} and"
            f" {targets.shape}: reshape the targets"
        )
    difference = at_least_float32(output) - at_least_float32(targets)
    return 0.5 * jnp.sum(jnp.square(difference), axis=tuple(range(1, output.ndim)))


def checked_losses(losses: Float[Array, " batch"], output: PyTree) -> Float[Array, " batch"]:
    """The losses as they are, if there is one an example; a mean of them would have their gradients' scale.

    Args:
      losses: what a `Loss` returned.
      output: what it was given; leaves (batch, ...).

    Raises:
      UsageError: they have another shape than (batch,).
    """
    shape = jnp.shape(jax.tree.leaves(output)[0])
    if jnp.shape(losses) != shape[:1]:
        raise UsageError(
            f"the loss of an output {shape} has shape {jnp.shape(losses)}, but must be one number an"
            f" example, {shape[:1]}: neither their mean, nor one a token (for these reshape to"
            " (batch * time, ...))"
        )
    return losses


def output_error(
    loss: Loss, output: PyTree, y: PyTree, weight: Shaped[AnyArray, " batch"] | None = None
) -> tuple[Float[Array, " batch"], PyTree]:
    """The losses, and the gradient that starts every backward pass: dL/d(output) of each example.

    Args:
      loss: (output, y) -> (batch,).
      output: of the network; one array (batch, ...), or a pytree of such arrays.
      y: what the loss compares it with, (batch, ...).
      weight: of each example; None: all count alike. The error of one that does not count is 0.

    Returns:
      losses, and error: shape of `output`, or of its real-valued leaves where there are others.

    Raises:
      UsageError: the output holds no real numbers, or the loss does not give one number an example.
    """
    real = real_part(output)
    if not jax.tree.leaves(real):
        raise UsageError(
            "the output holds no real numbers, so it has no error: let the last module give some"
        )

    def losses_of(real: PyTree) -> Array:
        whole = with_real_part(output, real)
        return checked_losses(loss(whole, y), whole)

    losses, pullback = jax.vjp(losses_of, real)
    # A signal, not a function of the parameters: nothing is to be differentiated through it.
    error = jax.lax.stop_gradient(pullback(jnp.ones_like(losses))[0])
    return losses, weights.zeroed(error, weight)
