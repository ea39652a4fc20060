"""How well an estimator in a model does: measured in the backward pass, and read as a gradient.

The gradient that comes from above exists in the backward pass alone, out of which nothing comes but
gradients. So a boundary takes a *tap*, zeros that it never looks at, and what it measures is the tap's
gradient: sums over examples, their number among them. They add up over calls, the steps of a scan and
devices as all gradients do, and no scale of them matters to the means that `read_taps` makes.
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

from decoupled import weights
from decoupled.errors import UsageError
from decoupled.leaves import joined_rows
from decoupled.precision import at_least_float32
from decoupled.shapes import AnyArray, Float, Shaped
from decoupled.types import Array, PyTree


class BoundaryReport(NamedTuple):
    """One boundary in one backward pass.

    Its target is the gradient from above: the true one where `use_estimate` is False at all boundaries.
    They are sums of squares: in float32 gradients below 1e-19 count as zero and above 1e19 as infinite, so
    scale a loss with such gradients, and say so to `num_examples`. All is NaN, but for `examples`, where
    the backward pass has not come by (see `tie`).

    Attributes:
      loss: what the estimator's fit descends, mean over examples; its squared error if it is not fitted.
      target_power: squared length of the target, mean over examples.
      estimate_power: squared length of the estimate, mean over examples.
      cosine: of the angle between estimate and target, each as one vector; 0 where either is zero.
      r_squared: 1 - |estimate - target|^2 / |target|^2; where the target is zero 0 if the estimate is too,
        else minus infinity.
      examples: how many were seen, times whatever gradients were multiplied with after the backward pass.
    """

    loss: Array
    target_power: Array
    estimate_power: Array
    cosine: Array
    r_squared: Array
    examples: Array


def new_tap() -> Float[Array, " sums"]:
    """For one call of `boundary`, or for several whose examples are to be reported together."""
    return jnp.zeros((6,))


def measured(
    fit_loss: Float[Array, ""] | None,
    estimate: PyTree,
    target: PyTree,
    weight: Shaped[AnyArray, " batch"] | None,
) -> Float[Array, " sums"]:
    """The gradient of a tap.

    Args:
      fit_loss: mean over examples; None where nothing is fitted.
      estimate, target: per-example gradients, leaves (batch, ...).
      weight: of each example; None: all count alike.
    """
    e, t = (joined_rows(jax.tree.map(_vectors, gradient)) for gradient in (estimate, target))
    examples = e.shape[0] if weight is None else at_least_float32(weight).sum()
    if weight is not None:  # of a product each factor has the root
        root = jnp.sqrt(at_least_float32(weight))[:, None]
        e, t = (weights.zeroed(rows, weight) * root for rows in (e, t))
    e, t = e.ravel(), t.ravel()
    error = jnp.sum(jnp.square(e - t))
    descended = error if fit_loss is None else examples * fit_loss
    return jnp.stack([jnp.ones_like(error) * examples, descended, error, t @ t, e @ e, e @ t])


def _vectors(leaf: Float[AnyArray, "batch *features"]) -> Float[Array, "batch flat"]:
    return at_least_float32(leaf).reshape(leaf.shape[0], -1)


def read_taps(gradient: PyTree) -> dict[str, BoundaryReport]:
    """What boundaries have measured, each by its path.

    Args:
      gradient: with respect to taps: the collection "taps" of a Linen model, an NNX model's variables of
        type `Tap`, or any tree of arrays that `new_tap` made. Where layers are stacked, so are reports.

    Raises:
      UsageError: there are other arrays in it.
    """
    reports = {}
    for path, leaf in jax.tree.leaves_with_path(gradient):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.shape[-1:] != new_tap().shape:
            raise UsageError(
                f"{name} of shape {leaf.shape} is no tap: read the gradients with respect to taps alone"
            )
        reports[re.sub("(^|/)tap(/value)?$", "", name)] = _report(*jnp.moveaxis(leaf, -1, 0))
    return reports


def _report(
    examples: Float[Array, "*layers"],
    descended: Float[Array, "*layers"],
    error: Float[Array, "*layers"],
    target: Float[Array, "*layers"],
    estimate: Float[Array, "*layers"],
    product: Float[Array, "*layers"],
) -> BoundaryReport:
    def mean(total: AnyArray) -> Array:
        return jnp.where(examples != 0, total / jnp.where(examples != 0, examples, 1.0), jnp.nan)

    descended, error, target, estimate, product = map(mean, (descended, error, target, estimate, product))
    lengths = jnp.sqrt(target) * jnp.sqrt(estimate)
    cosine = jnp.where(lengths == 0, 0.0, product / jnp.where(lengths == 0, 1.0, lengths))
    of_zero = jnp.where(error > 0, -jnp.inf, 0.0)
    r_squared = jnp.where(target == 0, of_zero, 1 - error / jnp.where(target == 0, 1.0, target))
    return BoundaryReport(descended, target, estimate, cosine, r_squared, examples)
