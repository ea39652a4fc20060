"""Backprop as one writes it in JAX without this package: one loss, one `jax.grad`, one optimizer.

Each baseline is a pair of pure functions, `init(key, x, y) -> state` and `update(state, x, y, key) ->
(state, loss)`; who compiles `update` donates the state.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from decoupled.losses import softmax_cross_entropy
from decoupled.modules import compose
from decoupled.modules.chains import init_chain, like_output
from decoupled.types import Array, Key, Module, PyTree


class Network(NamedTuple):
    """A chain of equal blocks between an input and an output layer.

    Attributes:
      lower: from x to the width of a block.
      block: repeated; its output has the shape of its input.
      depth: number of blocks.
      upper: from the width of a block to logits.
    """

    lower: Module
    block: Module
    depth: int
    upper: Module

    @property
    def layers(self) -> list[Module]:
        """All layers, one by one, as the modules of a chain."""
        names = [f"{self.block.name}_{i}" for i in range(self.depth)]
        return [self.lower, *(self.block._replace(name=name) for name in names), self.upper]


def adam() -> optax.GradientTransformation:
    """The optimizer of all methods that are compared."""
    return optax.adam(1e-3)


def plain_backprop(layers: Sequence[Module]) -> tuple[Callable, Callable]:
    """Layers one by one, unrolled in the program.

    Args:
      layers: the network, lowest first.
    """
    network = compose(layers)

    def init(key: Key, x: Array, y: Array) -> PyTree:
        params, state = network.init(key, x)
        return params, state, adam().init(params)

    def run(params: PyTree, state: PyTree, x: Array, key: Key) -> tuple[Array, PyTree]:
        return network.apply(params, state, x, key, True)

    return init, _update(run)


def scanned_backprop(network: Network, remat: bool = False) -> tuple[Callable, Callable]:
    """Equal blocks in a `lax.scan` over their stacked parameters, so that compile time is flat.

    Args:
      network: what is trained.
      remat: keep the input of each block only, and compute the rest again in the backward pass.
    """
    lower, block, depth, upper = network

    def init(key: Key, x: Array, y: Array) -> PyTree:
        lower_key, block_key, upper_key = jax.random.split(key, 3)
        below = lower.init(lower_key, x)
        h = like_output(lower, below, x)
        blocks = jax.vmap(lambda k: block.init(k, h))(jax.random.split(block_key, depth))
        params, state = zip(below, blocks, upper.init(upper_key, h), strict=True)
        return params, state, adam().init(params)

    def run(params: PyTree, state: PyTree, x: Array, key: Key) -> tuple[Array, PyTree]:
        def apply_block(params: PyTree, state: PyTree, h: Array, i: Array) -> tuple[Array, PyTree]:
            return block.apply(params, state, h, jax.random.fold_in(key, i), True)

        apply_block = jax.checkpoint(apply_block) if remat else apply_block
        h, below = lower.apply(params[0], state[0], x, key, True)
        each = (params[1], state[1], jnp.arange(depth))
        h, blocks = jax.lax.scan(lambda h, slot: apply_block(slot[0], slot[1], h, slot[2]), h, each)
        logits, above = upper.apply(params[2], state[2], h, key, True)
        return logits, (below, blocks, above)

    return init, _update(run)


def _update(run: Callable[..., tuple[Array, PyTree]]) -> Callable[..., tuple[Any, Array]]:
    """A training step with Adam; `run` maps (params, state, x, key) to logits and the new state."""

    def update(carry: Any, x: Array, y: Array, key: Key) -> tuple[Any, Array]:
        params, state, opt_state = carry

        def mean_loss(params: PyTree) -> tuple[Array, PyTree]:
            logits, new_state = run(params, state, x, key)
            return softmax_cross_entropy(logits, y).mean(), new_state

        (loss, state), gradient = jax.value_and_grad(mean_loss, has_aux=True)(params)
        updates, opt_state = adam().update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), state, opt_state), loss

    return update


def sequential_params(network: Network, key: Key, x: Array) -> list[PyTree]:
    """Parameters of every layer, one by one."""
    return [variables.params for variables in init_chain(network.layers, key, x)]
