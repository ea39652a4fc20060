"""Direct Random Target Projection: the label itself, sent to boundaries through a fixed random matrix."""

import jax
import jax.numpy as jnp

from decoupled.errors import UsageError
from decoupled.estimators.synthetic_gradient import Context, encoded, flatten
from decoupled.shapes import AnyArray, Float
from decoupled.types import Array, Estimator, Key, PyTree

# An example's estimate is then about as long as its encoded label.
_FEEDBACK_INIT = jax.nn.initializers.variance_scaling(1.0, "fan_out", "normal")


def direct_random_target_projection(context: Context) -> Estimator:
    """-y B, with B (context features, features) drawn once and never trained.

    Of the output error, prediction - y, only the label's part is kept, which is known before the forward
    pass has ended: Direct Feedback Alignment without its update lock.

    Args:
      context: encodes y: `one_hot` for labels.

    Raises:
      UsageError: there is no context.

    References:
      Frenkel, Lefebvre & Bol 2021, "Learning without feedback" (arXiv 1909.01311).
    """
    if context is None:
        raise UsageError(
            "direct random target projection needs a context (config.estimator.conditioned): it projects"
            " the label"
        )

    def init(key: Key, h: Float[AnyArray, "batch *features"], y: PyTree) -> PyTree:
        h = jnp.asarray(h)
        return {"B": _FEEDBACK_INIT(key, (encoded(context, y, h).shape[1], flatten(h).shape[1]))}

    def estimate(
        est_params: PyTree, h: Float[Array, "batch *features"], y: PyTree, signal: None = None
    ) -> Float[Array, "batch *features"]:
        del signal
        return -(encoded(context, y, h) @ est_params["B"]).reshape(h.shape)

    return Estimator("direct_random_target_projection", init, estimate, None)
