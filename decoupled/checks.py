"""What may stand at a boundary, checked while tracing: each mistake names the boundary and the way out."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
from flax import linen as nn
from flax import nnx

from decoupled.errors import UsageError
from decoupled.types import Array, Estimator, Module, PyTree, Reads


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
    if estimator.sees_y and y is None:
        raise UsageError(f"{where}: {estimator.name} sees the labels, but was given none: pass y")
    if estimator.reads is Reads.INCOMING and signal is None:
        raise UsageError(f"{where}: {estimator.name} reads the incoming gradient, but was given none")
    if estimator.reads is Reads.ERROR and signal is None:
        raise UsageError(
            f"{where}: {estimator.name} reads the output error, but none has reached it: pass the error"
            " that losses.output_error gives"
        )
    check_examples(where, h, y, signal)
    with naming(where):
        expected = _shapes(jax.eval_shape(estimator.init, jax.random.key(0), h, y))
        given = _shapes(est_params)
        if expected != given:
            raise UsageError(
                f"the parameters of {estimator.name} are not those for activations {h.shape}"
                f"{'' if y is None else f' and labels {y.shape}'}: they are {_text(given, expected)} where"
                f" {_text(expected, given)} is needed; initialise with the shapes that come in training"
            )
        grad_h_hat = estimator.estimate(est_params, h, y, signal)
        if grad_h_hat.shape != h.shape:
            raise UsageError(
                f"the estimate of {estimator.name} has shape {grad_h_hat.shape}, but it stands for the"
                f" gradient of activations {h.shape}"
            )
    return grad_h_hat.astype(h.dtype)


def check_examples(where: str, h: Array, y: Any, error: Array | None, batch_axes: int = 1) -> None:
    """That h, y and the output error speak of the same examples.

    Raises:
      UsageError: their leading axes differ.
    """
    for name, tree in (("y", y), ("the error", error)):
        for leaf in jax.tree.leaves(tree):
            if leaf.shape[:batch_axes] != h.shape[:batch_axes]:
                raise UsageError(
                    f"{where}: {name} has shape {leaf.shape}, but h, of shape {h.shape}, has the examples"
                    f" {h.shape[:batch_axes]}: both count them in their leading axes"
                )


def check_estimator(where: str, value: Any) -> None:
    """That what was given is an Estimator.

    Raises:
      UsageError: it is a function that makes one, a name, or something else.
    """
    if isinstance(value, Estimator):
        return
    if isinstance(value, str):
        raise UsageError(f"{where}: {value!r} is a name, not an estimator: give estimators.{value}(...)")
    if callable(value):
        name = _name(value)
        raise UsageError(
            f"{where}: {name} is no estimator but makes one: call it, {name}({_required(value)})"
        )
    raise UsageError(f"{where}: an estimator is needed, such as estimators.backprop(), not {_told(value)}")


def check_module(where: str, value: Any) -> None:
    """That what was given is a Module.

    Raises:
      UsageError: it is Flax's, a function, or something else; how to make a Module of it.
    """
    if isinstance(value, Module):
        return
    if isinstance(value, nn.Module):
        way = "make it one with from_linen"
    elif isinstance(value, nnx.Module):
        way = "make it one with from_nnx"
    elif callable(value):
        way = "make one with from_functions, from_linen or from_nnx"
    else:
        way = "give decoupled.Modules"
    raise UsageError(f"{where}: {_told(value)} is not a module of a chain: {way}")


def check_optimizer(where: str, value: Any) -> None:
    """That what was given is an optax transformation.

    Raises:
      UsageError: it is a function that makes one, or something else.
    """
    if hasattr(value, "init") and hasattr(value, "update"):
        return
    way = f": call it, {_name(value)}({_required(value)})" if callable(value) else ""
    raise UsageError(f"{where}: {_told(value)} is not an optax transformation{way}")


def listed(what: str, values: Any, check: Callable[[str, Any], None]) -> tuple[Any, ...]:
    """The values of a list, each in order.

    Args:
      what: how to call one of them, as in "estimator".
      check: (where, value), raises if a value is not what it should be.

    Raises:
      UsageError: it is no list, but one value perhaps; or one of them is out of order.
    """
    # Modules and estimators are tuples themselves, of functions.
    one = hasattr(values, "_fields") or isinstance(values, (str, Mapping))
    if one or not isinstance(values, Iterable):
        raise UsageError(
            f"{what}s come in a list, but {_told(values)} was given: put it in one, as in [...]"
        )
    found = tuple(values)
    for i, value in enumerate(found):
        check(f"{what} {i}", value)
    return found


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Says of a UsageError at which boundary it arose."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _told(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, (Module, Estimator)):
        return f"one {type(value).__name__.lower()} ({value.name})"
    if callable(value) and not isinstance(value, (nn.Module, nnx.Module)):
        return _name(value)
    return f"{value!r}" if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"


def _name(function: Any) -> str:
    return getattr(function, "__name__", None) or type(function).__name__


def _required(function: Callable) -> str:
    """The arguments that a call must give, as text."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return "..."
    return ", ".join(p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD)


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}


def _text(shapes: dict[str, tuple[int, ...]], others: dict[str, tuple[int, ...]]) -> str:
    differing = {name: shape for name, shape in shapes.items() if others.get(name) != shape}
    return ", ".join(f"{name} {shape}" for name, shape in sorted(differing.items())) or "nothing"
