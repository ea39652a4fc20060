"""A linear synthetic gradient fitted in closed form, step by step, in place of SGD.

U17 (theorem 1) proves convergence for a linear SG whose learning rate is chosen by line search. For a
linear SG the practical form of that search is to solve.
"""

import jax.numpy as jnp

from decoupled.estimators.least_squares import moments, solver, unsolved
from decoupled.estimators.synthetic_gradient import Context, encoded, flatten, sg_loss
from decoupled.precision import at_least_float32
from decoupled.shapes import AnyArray, Float, Shaped
from decoupled.types import Array, Estimator, Key, PyTree


def recursive_least_squares(
    context: Context = None, decay: float = 0.97, ridge: float = 1e-3, solve_every: int = 1
) -> Estimator:
    """The linear SG (h, y, 1) K, fitted by exponentially weighted normal equations.

    Args:
      context: encodes y; None leaves it out.
      decay: of the past in one step, in [0, 1): the fit remembers about 1 / (1 - decay) steps.
      ridge: as a fraction of the mean square of a feature; 0 for no more than rounding needs.
      solve_every: steps between solutions, each about (features)^3 / 3 multiplications.

    Raises:
      UsageError: a number is out of its range.
    """

    def features_of(h: Float[Array, "batch *features"], y: PyTree) -> Float[Array, "batch inputs"]:
        parts: list[AnyArray] = [at_least_float32(flatten(h)), jnp.ones((h.shape[0], 1))]
        if context is not None:
            parts.append(encoded(context, y, h))
        return jnp.concatenate(parts, axis=1)

    def init(key: Key, h: Float[AnyArray, "batch *features"], y: PyTree) -> PyTree:
        h = jnp.asarray(h)
        del key
        return unsolved(features_of(h, y).shape[1], flatten(h).shape[1])

    def estimate(
        est_params: PyTree, h: Float[Array, "batch *features"], y: PyTree, signal: None = None
    ) -> Float[Array, "batch *features"]:
        del signal
        return (features_of(h, y) @ est_params["K"]).reshape(h.shape)

    def training_gradient(
        est_params: PyTree,
        h: Float[Array, "batch *features"],
        y: PyTree,
        target: Float[Array, "batch *features"],
        weight: Shaped[AnyArray, " batch"] | None = None,
    ) -> tuple[Float[Array, ""], PyTree]:
        x, target = features_of(h, y), at_least_float32(flatten(target))
        estimate = x @ est_params["K"]
        return sg_loss(estimate, target, weight), moments(x, target, estimate - target, weight)

    return Estimator(
        "recursive_least_squares",
        init,
        estimate,
        training_gradient,
        optimizer=solver(decay, ridge, solve_every),
        sees_y=context is not None,
    )
