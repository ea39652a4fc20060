"""The linear synthetic gradient in closed form: its best fit, and the best step of a descent towards it.

U17 reasons about a linear SG that represents dL/dh exactly, and proves convergence for one whose rate is
chosen by line search. The SG loss of a linear SG is quadratic in its parameters: both have a closed form.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from decoupled.estimators.synthetic_gradient import flatten, power, sg_loss
from decoupled.shapes import AnyArray, Float, Shaped
from decoupled.types import Array, PyTree


class LinearFit(NamedTuple):
    """The best linear SG for one set of examples.

    Attributes:
      params: as `estimators.linear` keeps them: A (features, features), c (features,) and, where a
        context was given, B (context_features, features).
      loss: SG loss that is left, in squared units of the loss per unit of h.
      r2: 1 - loss / mean |target|^2, against the zero predictor; 1 where the target is zero.
    """

    params: dict[str, Array]
    loss: Array
    r2: Array


def best_linear(
    h: Float[AnyArray, "batch *features"],
    target: Float[AnyArray, "batch *features"],
    context: Shaped[AnyArray, "batch context"] | None = None,
) -> LinearFit:
    """K = argmin mean |(h, context, 1) K - target|^2, of least norm where that leaves a choice.

    The rank of (h, context, 1) is judged in the precision of h: use float64 where exactness matters.

    Args:
      h: flattened to (batch, features).
      target: per-example gradients.
      context: of y; None for an SG that does not see y.

    Returns:
      The fit; all scalars are means over the examples.

    References:
      U17: SG(h, y) = hA + yB + c.
    """
    chex.assert_equal_shape([h, target])
    h, target = flatten(h), flatten(target)
    width = h.shape[1]
    parts = [h, jnp.ones((h.shape[0], 1), h.dtype)]
    if context is not None:
        chex.assert_shape(context, (h.shape[0], None))
        parts.append(jnp.asarray(context, h.dtype))
    inputs = jnp.concatenate(parts, axis=1)
    K = jnp.linalg.lstsq(inputs, target)[0]
    params = {"A": K[:width], "c": K[width]}
    if context is not None:
        params["B"] = K[width + 1 :]
    loss, target_power = sg_loss(inputs @ K, target), power(target)
    r2 = jnp.where(target_power > 0, 1 - loss / jnp.where(target_power > 0, target_power, 1.0), 1.0)
    return LinearFit(params, loss, r2)


def line_search(
    estimate: Callable[[PyTree], Array],
    est_params: PyTree,
    direction: PyTree,
    target: Float[AnyArray, "batch *features"],
) -> Float[Array, ""]:
    """The s that minimises the SG loss of est_params + s direction; exact where the estimate is affine.

    Args:
      estimate: est_params -> grad_h_hat, shape of `target`. Where it is not affine in est_params, it is
        taken as if it were (a Gauss-Newton step).
      est_params: where the search starts.
      direction: structure of est_params; minus the gradient of the SG loss, for a descent.
      target: per-example gradients.

    Returns:
      s; 0 where the direction does not change the estimate.

    References:
      U17, theorem 1: the learning rate of the SG is chosen by line search.
    """
    now, change = jax.jvp(estimate, (est_params,), (direction,))
    curvature = jnp.vdot(change, change)
    return jnp.where(
        curvature > 0, jnp.vdot(change, target - now) / jnp.where(curvature > 0, curvature, 1.0), 0.0
    )
