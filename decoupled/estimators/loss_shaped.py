"""A synthetic gradient with the form that the gradient of a log loss has."""

import jax
import jax.numpy as jnp

from decoupled.estimators.synthetic_gradient import Context, by_gradient, encoded, flatten
from decoupled.shapes import AnyArray, Float
from decoupled.types import Array, Estimator, Key, PyTree


def loss_shaped(num_classes: int, context: Context = None) -> Estimator:
    """(softmax(hW' + b) - y) V: a local prediction's error, sent back through a matrix.

    Were the rest of the network one linear layer, this would be the gradient of its log loss with
    W the layer's kernel and V its transpose (U17: an SG must be able to take the
    gradient's form). Without context the label's part is unknown and softmax(hW + b) V + c remains,
    whose best fit is the expected gradient given h. With 10 classes it costs a few percent of a
    linear SG. V starts at zero, hence so does the output.

    Args:
      num_classes: width of the local prediction.
      context: encodes y to (batch, num_classes); None leaves it out.
    """

    def init(key: Key, h: Float[AnyArray, "batch *features"], y: PyTree) -> PyTree:
        h = jnp.asarray(h)
        features = flatten(h).shape[1]
        if context is not None:
            encoded(context, y, h, num_classes)  # of another width, it would be broadcast
        # Both matrices lie (classes, features): their gradients are then fast matmuls.
        kernel_init = jax.nn.initializers.lecun_normal(in_axis=1, out_axis=0)
        est_params = {
            "W": kernel_init(key, (num_classes, features), jnp.float32),
            "b": jnp.zeros((num_classes,)),
            "V": jnp.zeros((num_classes, features)),
        }
        if context is None:
            est_params["c"] = jnp.zeros((features,))
        return est_params

    def estimate(
        est_params: PyTree, h: Float[Array, "batch *features"], y: PyTree, signal: None = None
    ) -> Float[Array, "batch *features"]:
        del signal
        prediction = jax.nn.softmax(flatten(h) @ est_params["W"].T + est_params["b"][None, :])
        if context is None:
            out = prediction @ est_params["V"] + est_params["c"][None, :]
        else:
            out = (prediction - encoded(context, y, h, num_classes)) @ est_params["V"]
        return out.reshape(h.shape)

    train = by_gradient(estimate)
    return Estimator("loss_shaped", init, estimate, train, sees_y=context is not None)
