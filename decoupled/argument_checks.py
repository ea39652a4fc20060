"""Modules, estimators and optimizers where they are given: what is none is told, with the way out."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flax import linen as nn
from flax import nnx

from decoupled.errors import UsageError
from decoupled.types import Estimator, Module


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


def check_loss(where: str, value: Any) -> None:
    """That what was given may be a loss: (output, y) -> (batch,).

    Raises:
      UsageError: it cannot be called.
    """
    if not callable(value):
        raise UsageError(
            f"{where}: a function is needed, such as losses.softmax_cross_entropy, not {_told(value)}"
        )


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


def _told(value: object) -> str:
    """A value in a few words."""
    if isinstance(value, (Module, Estimator)):
        return f"one {type(value).__name__.lower()} ({value.name})"
    if callable(value) and not isinstance(value, (nn.Module, nnx.Module)):
        return _name(value)
    return f"{value!r}" if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"


def _name(function: object) -> str:
    return getattr(function, "__name__", None) or type(function).__name__


def _required(function: Callable) -> str:
    """The arguments that a call must give, as text."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return "..."
    return ", ".join(p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD)
