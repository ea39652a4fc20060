"""What may stand at a boundary, checked while tracing: each mistake names the boundary and the way out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from decoupled.errors import UsageError, naming
from decoupled.types import Array, Estimator, PyTree, Reads


def checked_estimate(
    where: str, estimator: Estimator, est_params: PyTree, h: Array, y: Any, signal: Array | None
) -> Array:
    """The estimator's grad_h_hat, once what it reads and what it returns have been found in order.

    Args:
      where: how to call the boundary, as in "boundary 2 (after hidden_2)".

    Returns:
      grad_h_hat, shape and dtype of h.

    Raises:
      UsageError: y or the output error is missing or of other examples, the shape of h or y is not that
        of `init`, or the estimate has not the shape of h.
    """
    check_activation(where, h)
    if estimator.sees_y and y is None:
        raise UsageError(f"{where}: {estimator.name} sees the labels, but was given none: pass y")
    if estimator.reads is Reads.INCOMING and signal is None:
        raise UsageError(f"{where}: {estimator.name} reads the incoming gradient, but was given none")
    if estimator.reads is Reads.ERROR and signal is None:
        raise UsageError(
            f"{where}: {estimator.name} reads the output error, but none has reached it: pass the error"
            " that losses.output_error gives"
        )
    if estimator.reads is Reads.ERROR and not hasattr(signal, "shape"):
        raise UsageError(
            f"{where}: {estimator.name} takes the error of one output, but was given a"
            f" {type(signal).__name__} of {len(jax.tree.leaves(signal))} arrays: pass that of one, or join"
            " the outputs to one array"
        )
    check_examples(where, h, y, signal)
    with naming(where):
        expected = _shapes(jax.eval_shape(estimator.init, jax.random.key(0), h, y))
        given = _shapes(est_params)
        if expected != given:
            raise UsageError(
                f"the parameters of {estimator.name} are not those for activations {h.shape}"
                f"{'' if y is None else f' and labels {_shape_text(y)}'}: they are {_text(given, expected)}"
                f" where {_text(expected, given)} is needed; initialise with the shapes of training"
            )
        grad_h_hat = estimator.estimate(est_params, h, y, signal)
        if grad_h_hat.shape != h.shape:
            raise UsageError(
                f"the estimate of {estimator.name} has shape {grad_h_hat.shape}, but it stands for the"
                f" gradient of activations {h.shape}"
            )
    return grad_h_hat.astype(h.dtype)


def check_activation(where: str, h: Any, batch_axes: int = 1) -> None:
    """That h is one array of real numbers, with an axis of features behind those that count examples.

    Raises:
      UsageError: it is not; or `batch_axes` is no number of axes.
    """
    if not isinstance(batch_axes, int) or batch_axes < 0:
        raise UsageError(f"{where}: batch_axes is {batch_axes!r}, but must be a number of axes, like 1")
    if not hasattr(h, "dtype"):
        raise UsageError(f"{where}: h is a {type(h).__name__}, not one array: put a boundary on each array")
    if not jnp.issubdtype(h.dtype, jnp.floating):
        raise UsageError(f"{where}: h is {h.dtype}, which has no gradient: put the boundary after a layer")
    if h.ndim <= batch_axes:
        raise UsageError(
            f"{where}: h has shape {h.shape} and no axis of features, since the first {batch_axes} count"
            " examples: under jax.vmap over examples say batch_axes=0, otherwise pass h[..., None]"
        )


def check_examples(where: str, h: Array, y: Any, error: Array | None, batch_axes: int = 1) -> None:
    """That h, y and the output error speak of the same examples.

    Raises:
      UsageError: their leading axes differ.
    """
    for name, tree in (("y", y), ("the error", error)):
        for leaf in jax.tree.leaves(tree):
            if jnp.shape(leaf)[:batch_axes] != h.shape[:batch_axes]:
                raise UsageError(
                    f"{where}: {name} has shape {jnp.shape(leaf)}, but h, of shape {h.shape}, has the"
                    f" examples {h.shape[:batch_axes]}: both count them in their leading axes"
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
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}


def _shape_text(y: PyTree) -> str:
    if hasattr(y, "shape"):
        return str(y.shape)
    return "{" + ", ".join(f"{name or 'y'}: {shape}" for name, shape in _shapes(y).items()) + "}"


def _text(shapes: dict[str, tuple[int, ...]], others: dict[str, tuple[int, ...]]) -> str:
    differing = {name: shape for name, shape in shapes.items() if others.get(name) != shape}
    return ", ".join(f"{name} {shape}" for name, shape in sorted(differing.items())) or "nothing"
