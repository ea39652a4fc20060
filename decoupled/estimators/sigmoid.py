"""A linear synthetic gradient that can saturate, as the gradient of a log loss does."""

import jax
import jax.numpy as jnp

from decoupled.estimators.synthetic_gradient import Context, by_gradient, encoded, flatten
from decoupled.shapes import AnyArray, Float
from decoupled.types import Array, Estimator, Key, PyTree


def sigmoid(context: Context = None) -> Estimator:
    """d * sigmoid(hA) + yB + c: exact in logistic regression, where hA + yB + c cannot be.

    The gradient of a log loss of two classes goes from one value to another, which no linear function of h
    does. h is flattened to (batch, features); A is (features, features), d and c (features,), B (context,
    features). All but A start at zero, hence so does the output.

    Args:
      context: encodes y; None leaves yB out.

    References:
      U17.
    """

    def init(key: Key, h: Float[AnyArray, "batch *features"], y: PyTree) -> PyTree:
        h = jnp.asarray(h)
        features = flatten(h).shape[1]
        est_params = {
            "A": jax.nn.initializers.lecun_normal()(key, (features, features), jnp.float32),
            "d": jnp.zeros((features,)),
            "c": jnp.zeros((features,)),
        }
        if context is not None:
            est_params["B"] = jnp.zeros((encoded(context, y, h).shape[1], features))
        return est_params

    def estimate(
        est_params: PyTree, h: Float[Array, "batch *features"], y: PyTree, signal: None = None
    ) -> Float[Array, "batch *features"]:
        del signal
        out = (
            jax.nn.sigmoid(flatten(h) @ est_params["A"]) * est_params["d"][None, :]
            + est_params["c"][None, :]
        )
        if context is not None:
            out += encoded(context, y, h) @ est_params["B"]
        return out.reshape(h.shape)

    train = by_gradient(estimate)
    return Estimator("sigmoid", init, estimate, train, sees_y=context is not None)
