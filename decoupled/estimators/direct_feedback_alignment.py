"""Direct Feedback Alignment: the output error, sent to every boundary through a fixed random matrix."""

import jax

from decoupled.errors import UsageError
from decoupled.estimators.synthetic_gradient import flatten
from decoupled.shapes import AnyArray, Float
from decoupled.types import Array, Estimator, Key, PyTree, Reads

# An example's estimate is then about as long as its error.
_FEEDBACK_INIT = jax.nn.initializers.variance_scaling(1.0, "fan_out", "normal")


def direct_feedback_alignment(num_outputs: int) -> Estimator:
    """error B, with B (num_outputs, features) drawn once and never trained.

    Args:
      num_outputs: width of the network's output, hence of its error.

    References:
      Nøkland 2016, "Direct feedback alignment provides learning in deep neural networks"
      (arXiv 1609.01596), equation 7; U17's table of methods.
    """

    def init(key: Key, h: Float[AnyArray, "batch *features"], y: PyTree) -> PyTree:
        del y
        return {"B": _FEEDBACK_INIT(key, (num_outputs, flatten(h).shape[1]))}

    def estimate(
        est_params: PyTree,
        h: Float[Array, "batch *features"],
        y: PyTree,
        signal: Float[AnyArray, "batch *outputs"] | None,
    ) -> Float[Array, "batch *features"]:
        del y
        assert signal is not None
        error = flatten(signal)
        if error.shape[1] != num_outputs:
            raise UsageError(
                f"direct feedback alignment was made for {num_outputs} outputs, but the error has"
                f" {error.shape[1]}: give it the width of the network's output"
            )
        return (error @ est_params["B"]).reshape(h.shape)

    return Estimator("direct_feedback_alignment", init, estimate, None, Reads.ERROR, sees_y=False)
