"""Losses per example: (output, y) -> (batch,). Their mean over a batch is what training minimises."""

import chex
import jax
import jax.numpy as jnp
import optax

from decoupled.errors import UsageError
from decoupled.types import Array, Loss


def softmax_cross_entropy(logits: Array, labels: Array) -> Array:
    """Log loss of integer classes, in nats.

    Args:
      logits: (batch, classes).
      labels: (batch,), integers.

    Returns:
      (batch,), float32, or float64 if the logits are.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise UsageError(
            f"the log loss takes logits (batch, classes) and labels (batch,), not {logits.shape} and"
            f" {labels.shape} (for a label a token, let a boundary count tokens as examples: batch_axes=2)"
        )
    return optax.softmax_cross_entropy_with_integer_labels(_at_least_float32(logits), labels)


def squared_error(output: Array, targets: Array) -> Array:
    """Half the squared distance, so that dL/d(output) = output - targets.

    Args:
      output: (batch, ...).
      targets: shape of `output`.

    Returns:
      (batch,), float32, or float64 if the output is.
    """
    chex.assert_equal_shape([output, targets])
    difference = _at_least_float32(output) - _at_least_float32(targets)
    return 0.5 * jnp.sum(jnp.square(difference), axis=tuple(range(1, output.ndim)))


def output_error(loss: Loss, output: Array, y: Array) -> tuple[Array, Array]:
    """The losses, and the gradient that starts every backward pass: dL/d(output) of each example.

    Args:
      loss: (output, y) -> (batch,).
      output: of the network, (batch, ...).
      y: what the loss compares it with, (batch, ...).

    Returns:
      losses, (batch,), and error, shape of `output`.
    """
    losses, pullback = jax.vjp(lambda out: loss(out, y), output)
    chex.assert_shape(losses, (output.shape[0],))
    # A signal, not a function of the parameters: nothing is to be differentiated through it.
    return losses, jax.lax.stop_gradient(pullback(jnp.ones_like(losses))[0])


def _at_least_float32(output: Array) -> Array:
    return output.astype(jnp.promote_types(output.dtype, jnp.float32))
