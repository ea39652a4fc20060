"""The boundary as an NNX module."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from decoupled.argument_checks import check_estimator
from decoupled.boundaries.metrics import new_tap
from decoupled.boundaries.primitive import boundary
from decoupled.errors import naming
from decoupled.estimators.checks import assuming_labels, check_activation, check_arrays
from decoupled.leaves import per_example, real_part
from decoupled.shapes import AnyArray, Bool, Real, Shaped
from decoupled.types import Array, Estimator, PyTree


class Feedback(nnx.Variable):
    """A parameter of an estimator that is not trained, such as a fixed feedback matrix."""


class Tap(nnx.Variable):
    """Zeros whose gradient is what a boundary measures, for `read_taps`."""


class NNXBoundary(nnx.Module):
    """Put between two layers: h = self.boundary(h, y).

    `est_params` are of type `nnx.Param`, beside those of the layers, so that one `nnx.grad` gives all
    gradients; `split_optimizer` then treats them as the estimator's. Where nothing is trained (a fixed
    feedback matrix) they are of type `Feedback`.
    """

    def __init__(
        self,
        estimator: Estimator,
        features: int | Sequence[int] | PyTree,
        *,
        rngs: nnx.Rngs,
        y: PyTree = None,
        batch_axes: int = 1,
        tap: bool = False,
        name: str = "",
    ):
        """Makes the estimator's parameters.

        Args:
          estimator: where the gradient of what lies below comes from.
          features: shape of one example's activation: a number, or several for a map; for an activation
            of several arrays, a batch of it (or its shapes).
          rngs: the stream "params" is used.
          y: an example batch of the context; integer labels where it is not given.
          batch_axes: leading axes of h that count examples, as in `boundary`.
          tap: whether it can measure: it then has a variable of type `Tap`, to be differentiated with
            respect to as `nnx.DiffState(0, (nnx.Param, Tap))` does.
          name: how errors call this boundary.

        Raises:
          UsageError: the estimator is none, or not for activations of this shape.
        """
        leaves = jax.tree.leaves(features)
        labels = jnp.zeros((1,), jnp.int32) if y is None else per_example(y, batch_axes)
        examples = jax.tree.leaves(labels)[0].shape[0]
        if any(getattr(leaf, "ndim", 0) > batch_axes for leaf in leaves) or isinstance(features, Mapping):

            def zeros(leaf: Any) -> Array:
                return jnp.zeros((examples, *leaf.shape[batch_axes:]), leaf.dtype)

            h, shape = real_part(jax.tree.map(zeros, features)), f"{len(leaves)} arrays"
        else:
            sizes: Any = features
            shape = (int(sizes),) if jnp.ndim(sizes) == 0 else tuple(map(int, sizes))
            h = jnp.zeros((examples, *shape))
        check_estimator(f"boundary {name}".strip(), estimator)
        self.name = f"boundary {name}" if name else f"boundary of {estimator.name} on {shape}"
        check_activation(self.name, h)
        check_arrays(self.name, estimator, h)
        with naming(self.name), assuming_labels(y is None and estimator.sees_y):
            est_params = estimator.init(rngs.params(), jax.tree.map(jnp.asarray, h), labels)
        kind = nnx.Param if estimator.training_gradient is not None else Feedback
        self.est_params = nnx.data(jax.tree.map(kind, est_params))
        self.estimator = nnx.static(estimator)
        self.batch_axes = batch_axes
        self.tap = Tap(new_tap()) if tap else None

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
        """Returns h; all arguments, and errors, are those of `boundary`."""
        return boundary(
            self.estimator,
            _unwrapped(self.est_params),
            h,
            y,
            error,
            weight=weight,
            use_estimate=use_estimate,
            num_examples=num_examples,
            batch_axes=self.batch_axes,
            tap=None if self.tap is None else self.tap[...],
            name=self.name,
        )


def _unwrapped(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[...], tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
