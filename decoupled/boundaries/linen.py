"""The boundary as a Linen module."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from decoupled.argument_checks import check_estimator
from decoupled.boundaries.metrics import new_tap
from decoupled.boundaries.primitive import boundary
from decoupled.errors import UsageError, naming
from decoupled.estimators.checks import assuming_labels, check_activation, check_arrays
from decoupled.leaves import per_example, real_part
from decoupled.modules.linen import FEEDBACK
from decoupled.shapes import AnyArray, Bool, Real, Shaped
from decoupled.types import Array, Estimator, PyTree

# Where it keeps the taps whose gradients are what boundaries measure.
TAPS = "taps"


class Boundary(nn.Module):
    """Put between two layers: h = Boundary(estimator)(h, y).

    Its parameters are `est_params` in the collection "params", beside those of the layers, so that one
    `jax.grad` gives all gradients; `split_optimizer` then treats them as the estimator's. Where nothing is
    trained (a fixed feedback matrix) they are in the collection "feedback", to be passed along unchanged
    (and to be listed, beside "params", in `variable_axes` of `nn.scan` or `nn.vmap`).

    Nothing is measured unless the collection "taps" is passed along, which a call with `mutable=["taps"]`
    makes: `read_taps` reads what is its gradient.

    Attributes:
      estimator: where the gradient of what lies below comes from.
      batch_axes: leading axes of h that count examples, as in `boundary`.
    """

    estimator: Estimator
    batch_axes: int = 1

    @nn.compact
    def __call__(
        self,
        h: PyTree,
        y: PyTree = None,
        error: PyTree = None,
        *,
        weight: Shaped[AnyArray, "*examples"] | None = None,
        use_estimate: bool | Bool[AnyArray, ""] = True,
        num_examples: float | Real[AnyArray, ""] | None = None,
    ) -> PyTree:
        """Returns h; all arguments are those of `boundary`.

        `model.init` may leave y out: integer labels are then assumed.

        Raises:
          UsageError: as `boundary` does; or parameters, or their collection, were not passed.
        """
        name = f"boundary {'/'.join(self.path) or self.name or 'Boundary'}"
        check_estimator(name, self.estimator)
        check_activation(name, h, self.batch_axes)
        real = real_part(h)
        check_arrays(name, self.estimator, real)

        def init(key):
            examples, labels = per_example((real, y), self.batch_axes)
            if y is None:
                labels = jnp.zeros(jax.tree.leaves(examples)[0].shape[:1], jnp.int32)
            with naming(name), assuming_labels(y is None and self.estimator.sees_y):
                return self.estimator.init(key, jax.tree.map(jnp.asarray, examples), labels)

        trained = self.estimator.training_gradient is not None
        collection = "params" if trained else FEEDBACK
        if self.has_variable(collection, "est_params"):
            # Not by `param`, which would compare shapes with those for this y, or for none.
            est_params = self.get_variable(collection, "est_params")
        elif not trained and not jax.tree.leaves(jax.eval_shape(init, jax.random.key(0))):
            est_params = {}  # an estimator without any
        else:
            self._check_place_for(collection, name)
            if trained:
                est_params = self.param("est_params", init)
            else:
                est_params = self.variable(
                    FEEDBACK, "est_params", lambda: init(self.make_rng("params"))
                ).value
        return boundary(
            self.estimator,
            est_params,
            h,
            y,
            error,
            weight=weight,
            use_estimate=use_estimate,
            num_examples=num_examples,
            batch_axes=self.batch_axes,
            tap=self._tap(),
            name=name,
        )

    def _check_place_for(self, collection: str, name: str) -> None:
        """That parameters may be made here, and kept."""
        what = (
            f"{name}: the {'' if collection == 'params' else 'fixed '}parameters of {self.estimator.name}"
        )
        kept = self.is_mutable_collection(collection)
        around = "of the nn.scan or nn.vmap around, if there is one"
        if not self.is_initializing() and not (kept and collection == "params"):
            raise UsageError(
                f"{what} are missing: pass the {collection!r} collection that init made, and name it in"
                f" variable_axes {around}"
            )
        if not kept:
            raise UsageError(
                f"{what} have no place: name their collection, as in variable_axes={{{collection!r}: 0}}"
                f" {around}, and in init's `mutable` if that is given"
            )
        if not self.has_rng("params"):
            raise UsageError(
                f"{what} need the random stream 'params': say split_rngs={{'params': True}} {around}"
            )

    def _tap(self) -> Array | None:
        # Where all is mutable, nobody has asked for taps.
        asked = self.is_mutable_collection(TAPS) and not self.is_mutable_collection("any other than taps")
        if self.has_variable(TAPS, "tap") or (asked and not self.is_initializing()):
            return self.variable(TAPS, "tap", new_tap).value
        return None
