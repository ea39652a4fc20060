"""Modules from plain functions."""

from collections.abc import Callable

from decoupled.types import Array, Key, Module, ModuleVariables, PyTree


def from_functions(
    init: Callable[[Key, Array], PyTree], apply: Callable[[PyTree, Array], Array], name: str
) -> Module:
    """A stateless Module from `init(key, h) -> params` and `apply(params, h) -> h_out`."""
    return Module(
        name,
        lambda key, h: ModuleVariables(init(key, h), {}),
        lambda params, state, h, key, train: (apply(params, h), state),
    )
