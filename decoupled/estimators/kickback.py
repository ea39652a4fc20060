"""Kickback: one global error for all units, in the direct form of U17's table."""

import math

import jax.numpy as jnp

from decoupled.estimators.synthetic_gradient import flatten
from decoupled.types import Array, Estimator, Key, PyTree, Reads


def kickback() -> Estimator:
    """error A, with A made of ones: every unit is told the error of its output, as if it helped it.

    For one output, A is a row of ones: the global error goes to all units alike. With several, the units
    are dealt out to the outputs in turn, since the sum over outputs of a log loss's error is always zero.
    A is scaled by 1 / sqrt(features). Balduzzi et al. also multiply by each unit's influence on the next
    layer; reading it would lock the module to the one above, so it is taken as equal for all ("coherence").

    References:
      Balduzzi et al. 2015, "Kickback cuts Backprop's red-tape" (arXiv 1411.6191); U17's table of methods,
      where it is feedback through A proportional to ones.
    """

    def init(key: Key, h: Array, y: Array) -> PyTree:
        del key, h, y
        return {}

    def estimate(est_params: PyTree, h: Array, y: Array, signal: Array | None) -> Array:
        del est_params, y
        assert signal is not None
        error, features = flatten(signal), flatten(h).shape[1]
        output_of_unit = jnp.arange(features) % error.shape[1]
        return (error[:, output_of_unit] / math.sqrt(features)).reshape(h.shape)

    return Estimator("kickback", init, estimate, None, Reads.ERROR, form="error A, A of ones", sees_y=False)
