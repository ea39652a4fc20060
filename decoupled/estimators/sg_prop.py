"""A synthetic gradient whose loss the module below is taught to lower, too ("SG + prop")."""

import jax

from decoupled import weights
from decoupled.argument_checks import check_estimator
from decoupled.errors import UsageError
from decoupled.estimators.borrowing import lifted
from decoupled.estimators.synthetic_gradient import squared_errors
from decoupled.shapes import AnyArray, Shaped
from decoupled.types import Array, Estimator, PyTree, Reads


def sg_prop(estimator: Estimator, scale: float = 1.0) -> Estimator:
    """SG(h, y) + scale d/dh |SG(h, y) - incoming|²: what the module can do for its estimator, besides.

    The SG loss is backpropagated into h, so that the module moves to where the estimate is right. For that
    it waits for the gradient from above, the target, which a synthetic gradient alone does not.

    Args:
      estimator: a synthetic gradient, fitted to gradients from above; reads nothing beyond (h, y).
      scale: of the second part, in units of h squared per unit of the loss; 0: the estimator itself.

    Raises:
      UsageError: the estimator is none that is fitted to a target, or reads something from above.

    References:
      U17's table of methods.
    """
    check_estimator("sg_prop", estimator)
    if estimator.training_gradient is None or estimator.own_loss or estimator.reads is not Reads.NOTHING:
        raise UsageError(
            "sg_prop backpropagates the loss of a synthetic gradient, such as linear or mlp:"
            f" {estimator.name} has none"
        )
    if scale == 0:
        return estimator

    def estimate(
        est_params: PyTree, h: PyTree, y: PyTree, signal: PyTree, *weight: Shaped[AnyArray, " batch"]
    ) -> PyTree:
        def loss(h: PyTree) -> tuple[Array, PyTree]:
            synthetic = estimator.estimate(est_params, h, y, None, *weight)
            errors = squared_errors(synthetic, signal)
            # With weights, rows hang together, and each counts as often as it is there.
            return weights.as_cotangent(errors, *weight or (None,)).sum(), synthetic

        gradient, synthetic = jax.grad(loss, has_aux=True)(h)
        own = weights.as_gradient(gradient, *weight or (None,))
        return jax.tree.map(lambda sg, prop: sg + scale * prop, synthetic, own)

    return estimator._replace(
        name=f"sg_prop({estimator.name})",
        estimate=estimate,
        reads=Reads.INCOMING,
        borrows=lifted(estimator.borrows, lambda own: sg_prop(own, scale)),
        structure=lifted(estimator.structure, lambda own: sg_prop(own, scale)),
    )
