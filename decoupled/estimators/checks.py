"""What may stand at a boundary, checked while tracing: each mistake names the boundary and the way out."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp

from decoupled import weights
from decoupled.errors import UsageError, naming
from decoupled.leaves import has_no_features, joined_rows, like, real_part
from decoupled.shapes import AnyArray, Shaped
from decoupled.types import Estimator, PyTree, Reads, WithBorrowed


def checked_estimate(
    where: str,
    estimator: Estimator,
    est_params: PyTree,
    h: PyTree,
    y: PyTree,
    signal: PyTree,
    weight: Shaped[AnyArray, " batch"] | None = None,
    whole: PyTree = None,
) -> PyTree:
    """The estimator's grad_h_hat, once what it reads and what it returns have been found in order.

    Args:
      where: how to call the boundary, as in "boundary 2 (after hidden_2)".
      h: the real part of an activation, (batch, ...); y and signal lead with the same examples.
      weight: of each example, or None; h and y have stand-ins for those that do not count.
      whole: the activation itself, for estimators that see it.

    Returns:
      grad_h_hat, shape and dtype of h. Of an example that does not count it is what came in, where that is
      what the estimator reads, and zero otherwise.

    Raises:
      UsageError: y or the output error is missing or of other examples, the shape of h or y is not that
        of `init`, or the estimate has not the shape of h.
    """
    check_activation(where, h)
    check_arrays(where, estimator, h)
    if estimator.sees_y and y is None:
        raise UsageError(f"{where}: {estimator.name} sees the labels, but was given none: pass y")
    if estimator.reads is Reads.INCOMING and signal is None:
        raise UsageError(f"{where}: {estimator.name} reads the incoming gradient, but was given none")
    if estimator.reads is Reads.ERROR and signal is None:
        raise UsageError(
            f"{where}: {estimator.name} reads the output error, but none has reached it: pass the error"
            " that losses.output_error gives"
        )
    if estimator.reads is Reads.ERROR:
        signal = joined_rows(signal)
    check_examples(where, h, y=y, the_error=signal, weight=weight)
    fed = whole if estimator.sees_whole_h else h
    with naming(where):
        expected = _shapes(jax.eval_shape(estimator.init, jax.random.key(0), fed, y))
        given = _shapes(est_params.own if isinstance(est_params, WithBorrowed) else est_params)
        if expected != given:
            raise UsageError(
                f"the parameters of {estimator.name} are not those for activations {_shape_text(h)}"
                f"{'' if y is None else f' and labels {_shape_text(y)}'}: they are {_text(given, expected)}"
                f" where {_text(expected, given)} is needed; initialise with the shapes of training"
            )
        weights_too = () if weight is None or not estimator.estimate_sees_weight else (weight,)
        grad_h_hat = estimator.estimate(est_params, fed, y, signal, *weights_too)
        if estimator.sees_whole_h:
            grad_h_hat = like(grad_h_hat, h)
        if _shapes(grad_h_hat) != _shapes(h):
            raise UsageError(
                f"the estimate of {estimator.name} has shape {_shape_text(grad_h_hat)}, but it stands for"
                f" the gradient of activations {_shape_text(h)}"
            )
    grad_h_hat = jax.tree.map(lambda estimate, leaf: estimate.astype(leaf.dtype), grad_h_hat, h)
    if estimator.reads is Reads.INCOMING:
        return weights.chosen(weight, grad_h_hat, signal)
    return weights.zeroed(grad_h_hat, weight)


def check_arrays(where: str, estimator: Estimator, h: PyTree) -> None:
    """That an estimator of one array is given one.

    Raises:
      UsageError: there are several, which it could not tell apart.
    """
    number = len(jax.tree.leaves(h))
    if number > 1 and not estimator.many_arrays:
        raise UsageError(
            f"{where}: h has {number} arrays of real numbers, and {estimator.name} is an estimator of one:"
            " give estimators.joined(...) of it, or estimators.each(...)"
        )


def check_activation(where: str, h: PyTree, batch_axes: int = 1) -> None:
    """That h holds real numbers, each array with an axis of features behind those that count examples.

    Raises:
      UsageError: it does not; or `batch_axes` is no number of axes.
    """
    if not isinstance(batch_axes, int) or batch_axes < 0:
        raise UsageError(f"{where}: batch_axes is {batch_axes!r}, but must be a number of axes, like 1")
    leaves = jax.tree.leaves(h)
    real = jax.tree.leaves(real_part(h))
    if not real:
        found = {"empty" if has_no_features(leaf) else str(jnp.result_type(leaf)) for leaf in leaves}
        kinds = " and ".join(sorted(found)) or "empty"
        raise UsageError(f"{where}: h is {kinds}, which has no gradient: put the boundary after a layer")
    for leaf in map(jnp.asarray, real):
        if leaf.ndim <= batch_axes:
            raise UsageError(
                f"{where}: h has shape {leaf.shape} and no axis of features, since the first {batch_axes}"
                " count examples: under jax.vmap over examples say batch_axes=0, otherwise pass"
                " h[..., None]"
            )
        if 0 in leaf.shape[batch_axes:]:
            raise UsageError(f"{where}: h has shape {leaf.shape}, without a number in it: leave it out")


def check_examples(where: str, h: PyTree, batch_axes: int = 1, **others: PyTree) -> None:
    """That h, y, the output error and weights speak of the same examples.

    Args:
      h: the real part of an activation.
      others: what else leads with the examples, by what to call it.

    Raises:
      UsageError: their leading axes differ.
    """
    first = jax.tree.leaves(h)[0]
    for name, tree in {"h": h, **others}.items():
        for leaf in jax.tree.leaves(tree):
            if jnp.shape(leaf)[:batch_axes] != first.shape[:batch_axes]:
                raise UsageError(
                    f"{where}: {name.replace('_', ' ')} has shape {jnp.shape(leaf)}, but h, of shape"
                    f" {first.shape}, has the examples {first.shape[:batch_axes]}: both count them in"
                    " their leading axes"
                )


def check_weight(where: str, weight: Shaped[AnyArray, "*examples"], h: PyTree, batch_axes: int = 1) -> None:
    """That there is one weight an example.

    Raises:
      UsageError: the shape is not that of the axes that count examples.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(h)]
    shape = shapes[0]
    if not any(jnp.shape(weight) == shape[:batch_axes] for shape in shapes):
        raise UsageError(
            f"{where}: weight has shape {jnp.shape(weight)}, but what is fed, of shape {shape}, has the"
            f" examples {shape[:batch_axes]}: give one number an example"
        )


@contextmanager
def assuming_labels(assumed: bool) -> Iterator[None]:
    """Says of a UsageError that no y was given, where one is needed and integer labels were assumed."""
    try:
        yield
    except UsageError as error:
        if not assumed:
            raise
        raise UsageError(
            f"{error} (no y was given here, so integer labels were assumed: pass it)"
        ) from error


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): jnp.shape(leaf) for path, leaf in leaves
    }


def _shape_text(y: PyTree) -> str:
    if hasattr(y, "shape"):
        return str(y.shape)
    return "{" + ", ".join(f"{name or 'y'}: {shape}" for name, shape in _shapes(y).items()) + "}"


def _text(shapes: dict[str, tuple[int, ...]], others: dict[str, tuple[int, ...]]) -> str:
    differing = {name: shape for name, shape in shapes.items() if others.get(name) != shape}
    return ", ".join(f"{name} {shape}" for name, shape in sorted(differing.items())) or "nothing"
