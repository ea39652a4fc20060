"""The boundary as a Linen module."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from decoupled.boundaries.primitive import boundary, per_example
from decoupled.checks import naming
from decoupled.errors import UsageError
from decoupled.types import Array, Estimator

# Where Linen keeps the parameters of estimators that are not trained.
FEEDBACK = "feedback"


class Boundary(nn.Module):
    """Put between two layers: h = Boundary(estimator)(h, y).

    Its parameters are `est_params` in the collection "params", beside those of the layers, so that one
    `jax.grad` gives all gradients; `split_optimizer` then treats them as the estimator's. Where nothing is
    trained (a fixed feedback matrix) they are in the collection "feedback", to be passed along unchanged
    (and to be listed, beside "params", in `variable_axes` of `nn.scan` or `nn.vmap`).

    Attributes:
      estimator: where the gradient of what lies below comes from.
      batch_axes: leading axes of h that count examples, as in `boundary`.
    """

    estimator: Estimator
    batch_axes: int = 1

    @nn.compact
    def __call__(
        self,
        h: Array,
        y: Any = None,
        error: Array | None = None,
        *,
        use_estimate: bool | Array = True,
        num_examples: int | Array | None = None,
    ) -> Array:
        """Returns h; all arguments are those of `boundary`.

        `model.init` may leave y out: integer labels are then assumed.

        Raises:
          UsageError: as `boundary` does; or the collection "feedback" was not passed.
        """
        name = f"boundary {'/'.join(self.path) or self.name or 'Boundary'}"

        def init(key):
            examples, labels = per_example((h, y), self.batch_axes)
            if y is None:
                labels = jnp.zeros(examples.shape[:1], jnp.int32)
            with naming(name):
                return self.estimator.init(key, examples, labels)

        trained = self.estimator.training_gradient is not None
        collection = "params" if trained else FEEDBACK
        if self.has_variable(collection, "est_params"):
            # Not by `param`, which would compare shapes with those for this y, or for none.
            est_params = self.get_variable(collection, "est_params")
        elif trained:
            est_params = self.param("est_params", init)
        elif not jax.tree.leaves(jax.eval_shape(init, jax.random.key(0))):
            est_params = {}  # an estimator without any
        elif self.is_initializing():
            est_params = self.variable(FEEDBACK, "est_params", lambda: init(self.make_rng("params"))).value
        else:
            raise UsageError(
                f"{name}: the fixed parameters of {self.estimator.name} are missing: pass the"
                f" {FEEDBACK!r} collection that init made along with the parameters"
            )
        return boundary(
            self.estimator,
            est_params,
            h,
            y,
            error,
            use_estimate=use_estimate,
            num_examples=num_examples,
            batch_axes=self.batch_axes,
            name=name,
        )
