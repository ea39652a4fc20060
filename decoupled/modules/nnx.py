"""Modules from NNX."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from decoupled.errors import UsageError
from decoupled.modules.modes import mode_of, takes
from decoupled.types import Key, Module, ModuleVariables, PyTree


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module], name: str) -> Module:
    """A Module from an NNX module that maps one array to one array.

    Everything but `nnx.Param` is carried as mutable state. Random streams start anew from the key of each
    step; `train()` and `eval()` are called on the module as they are meant. Arguments of `__call__` that
    tell of training are passed as `from_linen` does, and `rngs` too.

    Args:
      make: rngs -> the module; called whenever the Module is initialised.
      name: of the Module.

    Raises:
      UsageError: as `from_linen` does.
    """
    if isinstance(make, nnx.Module):
        raise UsageError(
            f"from_nnx needs a function of rngs, not a module: lambda rngs: {type(make).__name__}(...)"
        )
    shaped: Any = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    # The shape of the module's graph is the same at every call; only its arrays are not.
    graph, *_ = nnx.split(shaped, nnx.Param, nnx.RngState, ...)
    shaped.train()
    mode = mode_of(shaped, nnx.Module, f"module {name}", also=("rngs",))
    takes_rngs = takes(shaped, "rngs", f"module {name}")

    def init(key: Key, h: PyTree) -> ModuleVariables:
        del h
        _, params, rngs, rest = nnx.split(make(nnx.Rngs(key)), nnx.Param, nnx.RngState, ...)
        return ModuleVariables(params, {"rngs": rngs, "rest": rest})

    def apply(params: PyTree, state: PyTree, h: PyTree, key: Key, train: bool) -> tuple[PyTree, PyTree]:
        # Copied, or what the module changes would change in the state that was given.
        module: Any = nnx.merge(graph, params, state["rngs"], state["rest"], copy=True)
        args, named = mode(train)
        if takes_rngs:
            # Apart from the streams of the module itself.
            named["rngs"] = nnx.Rngs(jax.random.fold_in(key, 0))
        if not train:
            module.eval()
            return module(h, *args, **named), state
        module.train()
        nnx.reseed(module, default=key)
        h_out = module(h, *args, **named)
        *_, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
        return h_out, {"rngs": state["rngs"], "rest": rest}

    return Module(name, init, apply)
