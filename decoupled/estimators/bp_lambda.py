"""BP(λ): part synthetic gradient, part the gradient from above."""

import jax

from decoupled.argument_checks import check_estimator
from decoupled.errors import UsageError
from decoupled.estimators.borrowing import lifted
from decoupled.shapes import AnyArray, Shaped
from decoupled.types import Estimator, PyTree, Reads


def bp_lambda(estimator: Estimator, lam: float = 0.5) -> Estimator:
    """(1 - λ) SG(h, y) + λ incoming, where what comes in has been mixed alike at the boundary above.

    λ = 1 is backprop, λ = 0 the estimator itself; in between, errors of the estimators above weigh
    the less the further away they were made, as in TD(λ).

    Args:
      estimator: gives and learns the synthetic part; reads nothing beyond (h, y).
      lam: λ, from 0 to 1.

    Raises:
      UsageError: λ is out of its range, or the estimator itself reads what comes from above.

    References:
      J16, supplementary material (BP(λ)).
    """
    check_estimator("bp_lambda", estimator)
    if not 0 <= lam <= 1:
        raise UsageError(f"BP(λ) needs a λ from 0 to 1, not {lam}")
    if estimator.reads is not Reads.NOTHING:
        raise UsageError(
            f"BP(λ) mixes a synthetic gradient with the incoming one: {estimator.name} is none"
        )
    if lam == 0:
        return estimator

    def estimate(
        est_params: PyTree, h: PyTree, y: PyTree, signal: PyTree, *weight: Shaped[AnyArray, " batch"]
    ) -> PyTree:
        synthetic = estimator.estimate(est_params, h, y, None, *weight)
        return jax.tree.map(lambda own, incoming: (1 - lam) * own + lam * incoming, synthetic, signal)

    return estimator._replace(
        name=f"bp_lambda({estimator.name})",
        estimate=estimate,
        reads=Reads.INCOMING,
        borrows=lifted(estimator.borrows, lambda own: bp_lambda(own, lam)),
        structure=lifted(estimator.structure, lambda own: bp_lambda(own, lam)),
    )
