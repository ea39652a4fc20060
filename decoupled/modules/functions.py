"""Modules from plain functions."""

from collections.abc import Callable
from typing import Any

from decoupled.types import Key, Module, ModuleVariables, PyTree


def from_functions(
    init: Callable[[Key, Any], PyTree], apply: Callable[[PyTree, Any], Any], name: str
) -> Module:
    """A stateless Module from `init(key, h) -> params` and `apply(params, h) -> h_out`."""
    return Module(
        name,
        lambda key, h: ModuleVariables(init(key, h), {}),
        lambda params, state, h, key, train: (apply(params, h), state),
    )
