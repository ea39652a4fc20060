"""GPipe: backprop over a mesh of stages, through which the microbatches of a batch follow one another.

Huang et al. 2019, arXiv 1811.06965. Stages run in step: in each of num_microbatches + num_stages - 1 ticks
every stage runs its blocks on the microbatch that has reached it and hands the result on. The stages at
either end are idle (here: compute what is thrown away) for num_stages - 1 ticks: that is the bubble.
`jax.grad` through the ticks is the same pipeline in reverse, with the same bubble.

The input layer runs on the whole batch before the first tick, and the output layer after the last. In step
with the ticks, neither would end sooner: the tick lasts as long as its slowest stage, and no error starts
back before the last microbatch has arrived (the loss belongs to the backward pass).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.baselines import Network, sequential_params
from decoupled.errors import UsageError
from decoupled.losses import softmax_cross_entropy
from decoupled.types import Array, Key, PyTree

AXIS = "stage"


def gpipe(
    network: Network, mesh: Mesh, num_microbatches: int, optimizer: optax.GradientTransformation
) -> tuple[Callable, Callable]:
    """`init(key, x, y) -> (params, opt_state)` and `update(state, x, y, key) -> (state, loss)`.

    Parameters lie (stages, ...) over the mesh: {"lower", "blocks", "upper"}, blocks one tree for each of a
    stage's own. The layers at either end have a slot in every stage, of which one is used.

    Args:
      network: layers without mutable state, its depth a multiple of the number of stages.
      mesh: with an axis "stage".
      num_microbatches: divides the batch.
      optimizer: elementwise (each stage updates its own part).

    Raises:
      UsageError: blocks cannot be shared out evenly.
    """
    num_stages = mesh.shape[AXIS]
    if network.depth % num_stages:
        raise UsageError(
            f"GPipe cannot share {network.depth} blocks among {num_stages} stages evenly: choose a multiple"
        )

    def init(key: Key, x: Array, y: Array) -> PyTree:
        params = to_stages(sequential_params(network, key, x), num_stages)
        return params, optimizer.init(params)

    def update(state: PyTree, x: Array, y: Array, key: Key) -> tuple[PyTree, Array]:
        params, opt_state = state
        # What the optimizer counts with has no stages; all else is laid out as the parameters are.
        specs = jax.tree.map(lambda leaf: P(AXIS) if leaf.ndim else P(), (params, opt_state))

        def step(state: PyTree, x: Array, y: Array, key: Key) -> tuple[PyTree, Array]:
            params, opt_state = state

            def own_loss(params: PyTree) -> Array:
                own = jax.tree.map(lambda leaf: leaf[0], params)
                return _own_loss(network, num_stages, num_microbatches, own, x, y, key)

            loss, gradient = jax.value_and_grad(own_loss)(params)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (params, opt_state), jax.lax.psum(loss, AXIS)

        in_specs = (specs, P(), P(), P())
        return jax.shard_map(step, mesh=mesh, in_specs=in_specs, out_specs=(specs, P()))(state, x, y, key)

    return init, update


def place(mesh: Mesh, state: PyTree) -> PyTree:
    """Lays the state out over the mesh, each stage with its own part."""

    def put(leaf: Array) -> Array:
        return jax.device_put(leaf, NamedSharding(mesh, P(AXIS) if leaf.ndim else P()))

    return jax.tree.map(put, state)


def to_stages(params: list[PyTree], num_stages: int) -> dict[str, Any]:
    """Lays parameters of all layers, one by one, out by stages; unused slots hold zeros."""
    lower, *blocks, upper = params
    size = len(blocks) // num_stages
    return {
        "lower": _in_slot(lower, 0, num_stages),
        "blocks": [_stacked(blocks[i::size]) for i in range(size)],
        "upper": _in_slot(upper, num_stages - 1, num_stages),
    }


def from_stages(staged: dict[str, Any], num_stages: int) -> list[PyTree]:
    """The inverse of `to_stages`."""

    def slot(tree: PyTree, stage: int) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[stage], tree)

    blocks = [slot(block, stage) for stage in range(num_stages) for block in staged["blocks"]]
    return [slot(staged["lower"], 0), *blocks, slot(staged["upper"], num_stages - 1)]


def _own_loss(
    network: Network, num_stages: int, num_microbatches: int, params: PyTree, x: Array, y: Array, key: Key
) -> Array:
    """Mean loss of the batch in the last stage, zero in the others."""
    stage = jax.lax.axis_index(AXIS)
    first, last = stage == 0, stage == num_stages - 1
    onward = [(i, i + 1) for i in range(num_stages - 1)]
    if x.shape[0] % num_microbatches:
        raise UsageError(f"a batch of {x.shape[0]} cannot be cut into {num_microbatches} microbatches")

    def input_layer(params: PyTree, x: Array) -> Array:
        return network.lower.apply(params, {}, x, key, True)[0]

    def own_blocks(h: Array) -> Array:
        for block_params in params["blocks"]:
            h, _ = network.block.apply(block_params, {}, h, key, True)
        return h

    def output_loss(params: PyTree, h: Array) -> Array:
        logits, _ = network.upper.apply(params, {}, h, key, True)
        return softmax_cross_entropy(logits, y).mean()

    def tick(h_in: Array, fed: Array) -> tuple[Array, Array]:
        h_out = own_blocks(jnp.where(first, fed, h_in))
        return jax.lax.ppermute(h_out, AXIS, onward), h_out

    h = _only_where(first, input_layer, params["lower"], x)
    microbatches = h.reshape(num_microbatches, -1, *h.shape[1:])
    # Once the first stage has been fed the last microbatch, what it computes reaches no loss.
    bubble = jnp.zeros_like(microbatches, shape=(num_stages - 1, *microbatches.shape[1:]))
    fed = jnp.concatenate([microbatches, bubble])
    _, h_outs = jax.lax.scan(tick, jnp.zeros_like(fed[0]), fed)
    h_out = h_outs[num_stages - 1 :].reshape(h.shape)
    return _only_where(last, output_loss, params["upper"], h_out)


def _only_where(here: Array, run: Callable[..., Array], *args: PyTree) -> Array:
    """`run(*args)` in the stage it belongs to, zeros in the others, which do not compute it."""
    like = jax.eval_shape(run, *args)

    def zeros(*args: PyTree) -> Array:
        del args
        return jax.lax.pcast(jnp.zeros(like.shape, like.dtype), AXIS, to="varying")

    return jax.lax.cond(here, run, zeros, *args)


def _stacked(trees: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _in_slot(tree: PyTree, stage: int, num_stages: int) -> PyTree:
    def put(leaf: Array) -> Array:
        return jnp.zeros((num_stages, *leaf.shape), leaf.dtype).at[stage].set(leaf)

    return jax.tree.map(put, tree)
