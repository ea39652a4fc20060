"""A run of equal modules, compiled once: their states lie stacked, and a loop updates them in place.

Compile time and temporary memory are those of one block, whatever the depth.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from decoupled.argument_checks import check_module, listed
from decoupled.errors import UsageError
from decoupled.learning.state import Shared
from decoupled.leaves import is_real
from decoupled.modules.chains import like_output
from decoupled.shapes import Integer
from decoupled.types import Array, Module, PyTree

# Of a block in its stack, or of a module in the network.
Index: TypeAlias = Integer[Array, ""] | int


class Stack(NamedTuple):
    """Equal modules, one on top of the other, with an estimator of one kind above each.

    Attributes:
      block: the module that is repeated; its output has the shape of its input.
      names: of the copies, lowest first.
      recompute_every: where blocks wait for their gradient, the input of every so many-th block is computed
        again from that of the block below, by one more forward pass of it; the others are kept. 0: all are;
        1 cannot be, since what is computed again is made of what is kept.
    """

    block: Module
    names: tuple[str, ...]
    recompute_every: int = 0

    @property
    def name(self) -> str:
        return f"{self.names[0]} to {self.names[-1]}"

    @property
    def modules(self) -> tuple[Module, ...]:
        """The copies, each under its own name."""
        return tuple(self.block._replace(name=name) for name in self.names)


def stack_equal(modules: Sequence[Module]) -> list[Module | Stack]:
    """Makes a `Stack` of every run of equal modules, so that each is compiled once.

    Modules are equal that share their functions: `block._replace(name=...)` makes one. The lowest module is
    left as it is, since its input is seldom of the shape of its output.
    """
    modules = listed("module", modules, check_module)
    links: list[Module | Stack] = list(modules[:1])
    for _, run in itertools.groupby(
        modules[1:], key=lambda module: (module.init, module.apply, module.optimizer)
    ):
        block, *others = run
        links.append(Stack(block, (block.name, *(m.name for m in others))) if others else block)
    return links


def check_link(where: str, value: Any) -> None:
    """That what was given is a Module, or a Stack of one.

    Raises:
      UsageError: as `check_module` does; or there are no names, or `recompute_every` cannot be.
    """
    if not isinstance(value, Stack):
        check_module(where, value)
        return
    block, names, every = value
    check_module(f"{where}, the block of a stack", block)
    if not (isinstance(names, (tuple, list)) and names and all(isinstance(name, str) for name in names)):
        raise UsageError(f"{where}: a stack's names are {names!r}, but must be one string a block")
    if not isinstance(every, int) or isinstance(every, bool) or every < 0 or every == 1:
        raise UsageError(
            f"{where} ({value.name}): recompute_every is {every!r}, but must be 2 or more, or 0 to keep all"
            " inputs: one that is computed again is made of one that is kept"
        )


def modules_of(link: Module | Stack) -> tuple[Module, ...]:
    """The modules of a link of the chain, lowest first."""
    return link.modules if isinstance(link, Stack) else (link,)


def check_block(stack: Stack, variables: PyTree, h: PyTree) -> None:
    """That blocks can be stacked on inputs like `h`.

    Raises:
      UsageError: a block's output has another shape than its input.
    """
    made, fed = _text(like_output(stack.block, variables, h)), _text(h)
    if made != fed:
        raise UsageError(
            f"{stack.name} cannot be a stack: a block makes {made} of {fed}; put the module that changes"
            " the shape below the stack"
        )


def _text(h: PyTree) -> str:
    """Shapes and types of an activation."""
    leaves, structure = jax.tree.flatten(h)
    texts = [f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}" for leaf in leaves]
    return texts[0] if structure == jax.tree.structure(0) else f"{structure.unflatten(texts)}"


def highest(link: Module | Stack, entry: PyTree) -> PyTree:
    """What belongs to a link's highest module."""
    return take(entry, -1) if isinstance(link, Stack) else entry


def with_highest(link: Module | Stack, entry: PyTree, new: PyTree) -> PyTree:
    """The entry with another value for the link's highest module."""
    return put(entry, new, len(link.names) - 1) if isinstance(link, Stack) else new


def take(stacked: PyTree, i: Index) -> PyTree:
    """Slot i of every leaf; what is shared belongs to every slot."""

    def read(leaf: Array | Shared) -> Array | Shared:
        if isinstance(leaf, Shared):
            return leaf
        return jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False)

    return jax.tree.map(read, stacked, is_leaf=is_shared)


def put(stacked: PyTree, slot: PyTree, i: Index) -> PyTree:
    """Every leaf with slot i replaced; real numbers in the precision of the others."""

    def write(leaf: Array | Shared, new: Array | Shared) -> Array | Shared:
        if isinstance(leaf, Shared) or isinstance(new, Shared):
            return leaf
        if is_real(leaf) and is_real(new):
            new = new.astype(leaf.dtype)
        return jax.lax.dynamic_update_index_in_dim(leaf, new, i, 0)

    return jax.tree.map(write, stacked, slot, is_leaf=is_shared)


def is_shared(node: object) -> bool:
    """Whether a part of a stack's state belongs to all its blocks."""
    return isinstance(node, Shared)
