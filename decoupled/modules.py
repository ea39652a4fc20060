"""Modules from Linen, from NNX and from plain functions; cutting a chain of them at chosen boundaries."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from decoupled.argument_checks import check_module, listed
from decoupled.errors import UsageError
from decoupled.modes import mode_of, takes, unset_argument
from decoupled.types import Array, Key, Module, ModuleVariables, PyTree


def from_linen(linen_module: nn.Module, name: str = "", rngs: Sequence[str] = ("dropout",)) -> Module:
    """A Module from any Linen module that maps one array to one array.

    Every collection but `params` is carried as mutable state in training and left as it is in
    evaluation. Arguments of `__call__` that tell of training are passed by what their names mean: `train`,
    `training`, `is_training`, `enable_dropout`, `deterministic`, `use_running_average` and a few more
    (`decoupled.modes`).

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

    def init(key: Key, h: Array) -> ModuleVariables:
        streams = _streams(key, ("params", *rngs))
        # Mutable collections start as they would be before any example was seen.
        args, named = mode(False)
        with nn.intercept_methods(_untold), _static_arguments(f"module {name}", linen_module, len(args)):
            variables = linen_module.init(streams, h, *args, **named)
        params = variables.get("params", {})
        return ModuleVariables(params, {k: v for k, v in variables.items() if k != "params"})

    def apply(params: PyTree, state: PyTree, h: Array, key: Key, train: bool) -> tuple[Array, PyTree]:
        variables = {"params": params, **state}
        args, named = mode(train)
        if not train:
            out: Any = linen_module.apply(variables, h, *args, **named)
            return out, state
        streams = _streams(key, rngs)
        return linen_module.apply(variables, h, *args, rngs=streams, mutable=list(state), **named)

    return Module(name, init, apply)


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

    def init(key: Key, h: Array) -> ModuleVariables:
        del h
        _, params, rngs, rest = nnx.split(make(nnx.Rngs(key)), nnx.Param, nnx.RngState, ...)
        return ModuleVariables(params, {"rngs": rngs, "rest": rest})

    def apply(params: PyTree, state: PyTree, h: Array, key: Key, train: bool) -> tuple[Array, PyTree]:
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


def from_functions(
    init: Callable[[Key, Array], PyTree], apply: Callable[[PyTree, Array], Array], name: str
) -> Module:
    """A stateless Module from `init(key, h) -> params` and `apply(params, h) -> h_out`."""
    return Module(
        name,
        lambda key, h: ModuleVariables(init(key, h), {}),
        lambda params, state, h, key, train: (apply(params, h), state),
    )


def compose(modules: Sequence[Module], name: str = "") -> Module:
    """One Module that runs `modules` in order; gradients flow freely between them."""
    modules = listed("module", modules, check_module)
    if len(modules) == 1 and not name:
        return modules[0]

    def init(key: Key, h: Array) -> ModuleVariables:
        parts = init_chain(modules, key, h)
        return ModuleVariables(tuple(p.params for p in parts), tuple(p.state for p in parts))

    def apply(params: PyTree, state: PyTree, h: Array, key: Key, train: bool) -> tuple[Array, PyTree]:
        new_state = []
        for i, module in enumerate(modules):
            part_key = jax.random.fold_in(key, i)
            h, part_state = module.apply(params[i], state[i], h, part_key, train)
            new_state.append(part_state)
        return h, tuple(new_state)

    exact = None
    if any(module.exact for module in modules):
        exact = compose([module.exact or module for module in modules], name)
    return Module(name or joined_name(modules), init, apply, exact, tuple(modules))


def joined_name(modules: Sequence[Module]) -> str:
    """What `compose` calls modules that were given no name together."""
    return "+".join(module.name for module in modules)


def told_apart(names: Sequence[str]) -> list[str]:
    """The names, where those that occur more than once are numbered from 0, as Linen does."""
    taken = set(names)

    def free(name: str) -> str:
        found = next(numbered for i in itertools.count() if (numbered := f"{name}_{i}") not in taken)
        taken.add(found)
        return found

    count = Counter(names)
    return [name if count[name] == 1 else free(name) for name in names]


def cut(layers: Sequence[Module], boundaries: Sequence[int]) -> list[Module]:
    """Groups a chain of layers into modules, with a boundary after each layer named.

    Args:
      layers: the whole network, in order.
      boundaries: indices of the layers after which to cut, from 0 to len(layers) - 2.

    Raises:
      UsageError: an index is repeated or there is nothing on one side of it.
    """
    layers = listed("layer", layers, check_module)
    last = len(layers) - 1
    for index in boundaries:
        if not 0 <= index < last:
            raise UsageError(
                f"cannot cut after layer {index}: the network has {len(layers)} layers, so a boundary"
                f" can follow layers 0 to {last - 1} (the last layer has the true loss)"
            )
    if len(set(boundaries)) != len(boundaries):
        raise UsageError(f"a boundary is named twice in {tuple(boundaries)}; name each layer once")
    edges = [0, *(index + 1 for index in sorted(boundaries)), len(layers)]
    return [compose(layers[start:end]) for start, end in itertools.pairwise(edges)]


def init_chain(modules: Sequence[Module], key: Key, h: Array) -> list[ModuleVariables]:
    """Initialises modules that feed one another; `h` is an input batch of the first."""
    variables = []
    for i, module in enumerate(modules):
        variables.append(module.init(jax.random.fold_in(key, i), h))
        h = like_output(module, variables[-1], h)
    return variables


def like_output(module: Module, variables: ModuleVariables, h: Array) -> Array:
    """Zeros of the shape and dtype of the module's output for an input batch `h`.

    Raises:
      UsageError: the module does not give one array.
    """
    # The key's value cannot matter: only shapes are traced, in evaluation mode.
    out, _ = jax.eval_shape(
        lambda v: module.apply(v.params, v.state, h, jax.random.key(0), False), variables
    )
    if not hasattr(out, "shape"):
        raise UsageError(
            f"module {module.name} gives a {type(out).__name__} of {len(jax.tree.leaves(out))} arrays, but"
            " each module of a chain maps one array to one: return one of them, or join them to one"
        )
    return jnp.zeros(out.shape, out.dtype)


def _untold(next_fun: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
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
