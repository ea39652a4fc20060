"""Kickback: one global error for all units, in the direct form of U17's table."""

import math

import jax.numpy as jnp

from decoupled.estimators.synthetic_gradient import flatten
from decoupled.shapes import AnyArray, Float
from decoupled.types import Array, Estimator, Key, PyTree, Reads


def kickback() -> Estimator:
    """error A, with A of zeros and ones: every unit is told the error of its output, as if it helped it.

    For one output, A is a row of ones: the global error goes to all units alike. With several, the units
    (of a map, its channels) are dealt out to the outputs in turn, since a log loss's error always sums to
    zero over the outputs. A is scaled by 1 / sqrt(features). Balduzzi et al. treat one output, and multiply
    by each unit's influence on the next layer; reading that would lock the module to the one above, so it
    is taken as equal for all here ("coherence").

    References:
      Balduzzi et al. 2015, "Kickback cuts Backprop's red-tape" (arXiv 1411.6191); U17's table of methods,
      where it is feedback through A proportional to ones.
    """

    def init(key: Key, h: Float[AnyArray, "batch *features"], y: PyTree) -> PyTree:
        del key, h, y
        return {}

    def estimate(
        est_params: PyTree,
        h: Float[Array, "batch *features"],
        y: PyTree,
        signal: Float[AnyArray, "batch *outputs"] | None,
    ) -> Float[Array, "batch *features"]:
        del est_params, y
        assert signal is not None
        error, features = flatten(signal), flatten(h).shape[1]
        output_of_unit = jnp.arange(h.shape[-1]) % error.shape[1]
        told = error[:, output_of_unit] / math.sqrt(features)
        return jnp.broadcast_to(told.reshape(h.shape[0], *[1] * (h.ndim - 2), h.shape[-1]), h.shape)

    return Estimator("kickback", init, estimate, None, Reads.ERROR, sees_y=False)
