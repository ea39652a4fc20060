"""Modules from Linen."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from flax import linen as nn
from flax.linen.module import InterceptorContext

from decoupled.errors import UsageError
from decoupled.modules.modes import mode_of, unset_argument
from decoupled.types import Key, Module, ModuleVariables, PyTree

# The collection of parameters that are not trained: those of estimators and of backward rules.
FEEDBACK = "feedback"


def from_linen(linen_module: nn.Module, name: str = "", rngs: Sequence[str] = ("dropout",)) -> Module:
    """A Module from any Linen module that maps one array to one array.

    Every collection but `params` is carried as mutable state in training and left as it is in
    evaluation. Arguments of `__call__` that tell of training are passed by what their names mean: `train`,
    `training`, `is_training`, `enable_dropout`, `deterministic`, `use_running_average` and a few more
    (`decoupled.modules.modes`).

    Args:
      linen_module: unbound; called as `linen_module(h)`, `linen_module(h, train=...)` or the like.
      name: defaults to the Linen module's name or class.
      rngs: the random streams that `apply` offers to the module, each from its own key.

    Raises:
      UsageError: the module asks for more than its input, or it cannot be told how it is to know whether it
        trains; (from init) a layer inside has not been told.
    """
    name = name or getattr(linen_module, "name", None) or type(linen_module).__name__
    if not isinstance(linen_module, nn.Module):
        raise UsageError(
            f"from_linen needs a Linen module, as in from_linen(nn.Dense(4)), not {linen_module!r}"
        )
    mode = mode_of(linen_module, nn.Module, f"module {name}")

    def init(key: Key, h: PyTree) -> ModuleVariables:
        streams = _streams(key, ("params", *rngs))
        # Mutable collections start as they would be before any example was seen.
        args, named = mode(False)
        with nn.intercept_methods(_untold), _static_arguments(f"module {name}", linen_module, len(args)):
            variables = linen_module.init(streams, h, *args, **named)
        params = variables.get("params", {})
        return ModuleVariables(params, {k: v for k, v in variables.items() if k != "params"})

    def apply(params: PyTree, state: PyTree, h: PyTree, key: Key, train: bool) -> tuple[PyTree, PyTree]:
        variables = {"params": params, **state}
        args, named = mode(train)
        if not train:
            out: Any = linen_module.apply(variables, h, *args, **named)
            return out, state
        streams = _streams(key, rngs)
        return linen_module.apply(variables, h, *args, rngs=streams, mutable=list(state), **named)

    return Module(name, init, apply)


def _untold(next_fun: Callable, args: tuple, kwargs: dict, context: InterceptorContext) -> Any:
    """Names the layer that Flax misses an argument about training of."""
    try:
        return next_fun(*args, **kwargs)
    except ValueError as error:
        argument = unset_argument(context.module, error)
        if argument is None or isinstance(error, UsageError):
            raise
        layer = "/".join(context.module.path) or type(context.module).__name__
        raise UsageError(
            f"layer {layer} has not been told {argument!r}, and from_linen reaches the outermost module"
            f" alone: say it in a module of your own that takes `train`, or as {layer}({argument}=...)"
        ) from error


@contextmanager
def _static_arguments(where: str, linen_module: nn.Module, given: int) -> Iterator[None]:
    """Says what to do where `nn.remat` or `nn.jit` trace the argument that tells of training."""
    try:
        yield
    except jax.errors.TracerBoolConversionError as error:
        lifted = type(linen_module).__name__
        if not given or not lifted.startswith(("Checkpoint", "Jit")):
            raise
        raise UsageError(
            f"{where}: {lifted} traces the argument that tells of training: give nn.remat or nn.jit"
            f" static_argnums=({given + 1},)"
        ) from error


def _streams(key: Key, names: Sequence[str]) -> dict[str, Key]:
    return {name: jax.random.fold_in(key, i) for i, name in enumerate(names)}
