"""The linear synthetic gradient of U17: SG(h, y) = hA + yB + c."""

import jax.numpy as jnp

from decoupled.estimators.synthetic_gradient import Context, by_gradient, encoded, flatten
from decoupled.shapes import AnyArray, Float
from decoupled.types import Array, Estimator, Key, PyTree


def linear(context: Context = None) -> Estimator:
    """hA + yB + c, from zero, trained by gradient descent on the SG loss.

    h is flattened to (batch, features); A is (features, features), B (context, features), c (features,).
    For a mean squared error this form is exact in a linear network (U17).

    Args:
      context: encodes y; None leaves yB out.

    References:
      U17; J16, section 3.3 (label-conditioned "cDNI").
    """

    def init(key: Key, h: Float[AnyArray, "batch *features"], y: PyTree) -> PyTree:
        h = jnp.asarray(h)
        del key  # Starts at zero, so that a module stays put until its estimator has learnt (J16).
        features = flatten(h).shape[1]
        est_params = {"A": jnp.zeros((features, features)), "c": jnp.zeros((features,))}
        if context is not None:
            est_params["B"] = jnp.zeros((encoded(context, y, h).shape[1], features))
        return est_params

    def estimate(
        est_params: PyTree, h: Float[Array, "batch *features"], y: PyTree, signal: None = None
    ) -> Float[Array, "batch *features"]:
        del signal
        out = flatten(h) @ est_params["A"] + est_params["c"][None, :]
        if context is not None:
            out += encoded(context, y, h) @ est_params["B"]
        return out.reshape(h.shape)

    train = by_gradient(estimate)
    return Estimator("linear", init, estimate, train, sees_y=context is not None)
