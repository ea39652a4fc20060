"""Modules that feed one another: run as one, or cut at chosen boundaries."""

import itertools
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from decoupled.argument_checks import check_module, listed
from decoupled.errors import UsageError
from decoupled.types import Key, Module, ModuleVariables, PyTree


def compose(modules: Sequence[Module], name: str = "") -> Module:
    """One Module that runs `modules` in order; gradients flow freely between them."""
    modules = listed("module", modules, check_module)
    if len(modules) == 1 and not name:
        return modules[0]

    if any(module.optimizer is not None for module in modules):
        raise UsageError(
            f"{joined_name(modules)}: a part has an optimizer of its own, but what is composed is moved as"
            " one: give the optimizer to the whole, or put a boundary between"
        )

    def init(key: Key, h: PyTree) -> ModuleVariables:
        parts = init_chain(modules, key, h)
        return ModuleVariables(tuple(p.params for p in parts), tuple(p.state for p in parts))

    def apply(params: PyTree, state: PyTree, h: PyTree, key: Key, train: bool) -> tuple[PyTree, PyTree]:
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


def init_chain(modules: Sequence[Module], key: Key, h: PyTree) -> list[ModuleVariables]:
    """Initialises modules that feed one another; `h` is an input batch of the first."""
    variables = []
    for i, module in enumerate(modules):
        variables.append(module.init(jax.random.fold_in(key, i), h))
        h = like_output(module, variables[-1], h)
    return variables


def like_output(module: Module, variables: PyTree, h: PyTree) -> PyTree:
    """Zeros of the shapes and dtypes of the module's output for an input batch `h`."""
    # The key's value cannot matter: only shapes are traced, in evaluation mode.
    out, _ = jax.eval_shape(
        lambda v: module.apply(v.params, v.state, h, jax.random.key(0), False), variables
    )
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), out)
