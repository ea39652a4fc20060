"""A local loss whose head has the structure of some of the network's own next layers."""

import jax
import jax.numpy as jnp

from decoupled.argument_checks import check_loss
from decoupled.errors import UsageError
from decoupled.estimators.borrowing import descended, rows_of, unbound
from decoupled.estimators.fitting import Step, fitting, narrowed, remembering
from decoupled.leaves import real_part
from decoupled.losses import checked_losses, softmax_cross_entropy
from decoupled.modules.chains import like_output
from decoupled.shapes import AnyArray, Float
from decoupled.types import Array, Estimator, Key, Loss, Module, PyTree, Structure
from decoupled.weights import stand_in


def auxiliary_network(depth: int = 2, min_depth: int = 1, loss: Loss = softmax_cross_entropy) -> Estimator:
    """The gradient of the loss of an auxiliary network, built like layers above, on top of h ("AugLocal").

    It has the structure of up to `depth` layers, evenly spaced over all that lie between the boundary and
    the network's last, the highest of these among them, and then of that last layer. Its parameters are its
    own, drawn as a module draws them and fitted by this loss; nothing of what stands above is ever read. A
    layer is a module, or a part of one that was composed.

    The layers that are left out may have halved the maps: these are then averaged to the size that the next
    layer is fed in the network. (In the paper convolutions get a stride where channels double.) A layer
    that cannot be fed with what comes, as one whose skip keeps the width, gives way to the nearest that
    can.

    It runs in training mode. Batch statistics are those of the batch, and running ones are not kept, since
    nothing evaluates it: other mutable state too is in every step what it is at the start. Dropout is drawn
    from a key made of the bits of h, new whenever h is, and alike in the estimate and the fit. Backward
    rules (Feedback Alignment) are left out of it.

    Args:
      depth: layers at the lowest boundary, without the last; 0: h goes to a last layer as it is.
      min_depth: at the highest: in between there are fewer in a straight line, with the number of layers
        below, never more than there are above. The paper has (1 + depth) / 2 ("pyramidal depth"), and
        trains the last `depth` layers as one module; as many as `depth`: no pyramid.
      loss: (output of the auxiliary network, y) -> (batch,).

    Raises:
      UsageError: a depth is out of its range; (from make_learner) the layers would be others above the
        highest blocks of a stack than above its lowest; (from init) no such layers can feed one another.

    References:
      Ma et al. 2024, "Scaling supervised local learning with augmented auxiliary networks" (arXiv
      2402.17318).
    """
    return like_layers_above("auxiliary_network", depth, min_depth, loss)


def like_layers_above(name: str, depth: int, min_depth: int, loss: Loss) -> Estimator:
    """The estimator above, under the name that metrics and mistakes call it by."""
    check_loss(f"{name}: loss", loss)
    for what, number in (("depth", depth), ("min_depth", min_depth)):
        if not isinstance(number, int) or number < 0:
            raise UsageError(f"{name}: {what} is {number!r}, but must be a number of 0 or more")
    output = remembering()

    def bind(layers: tuple[Module, ...], places: tuple[int, ...], batch_axes: int) -> Estimator:
        layers = tuple(layer.exact or layer for layer in layers)

        def steps_on(h: PyTree) -> tuple[Step, ...]:
            steps = fitting(layers, places, h, output, on_maps=batch_axes == 1)
            if steps is None:
                shapes = " and ".join(str(jnp.shape(leaf)) for leaf in jax.tree.leaves(h))
                raise UsageError(
                    f"{name}: of the {len(layers)} layers above, no {len(places)} or fewer and"
                    f" the last can feed one another, from {shapes}: choose more (depth), or layers that"
                    " take what they are fed, as from_linen makes them"
                )
            return steps

        def init(key: Key, h: PyTree, y: PyTree) -> PyTree:
            del y
            made = []
            for i, step in enumerate(steps_on(h)):
                layer, h = layers[step.place], narrowed(h, step)
                variables = layer.init(jax.random.fold_in(key, i), h)
                made.append(variables.params)
                h = like_output(layer, variables, h)
            return tuple(made)

        def losses(
            own: PyTree, borrowed: PyTree, h: PyTree, y: PyTree, weight: AnyArray | None
        ) -> Float[Array, " batch"]:
            del borrowed
            if batch_axes == 1:  # batch statistics see every row
                h = stand_in(h, weight)
            key = _key_of(rows_of(real_part(h), batch_axes, weight))
            for i, (step, params) in enumerate(zip(steps_on(h), own, strict=True)):
                layer, h = layers[step.place], narrowed(h, step)
                first = layer.init(jax.random.key(0), h).state  # as before any example was seen
                h, _ = layer.apply(params, first, h, jax.random.fold_in(key, i), True)
            rows = rows_of(h, batch_axes, weight)
            return checked_losses(loss(rows, y), rows)

        return descended(init, losses, batch_axes)

    def choose(below: int, between: int) -> tuple[int, ...]:
        return evenly_spaced(depth_at(below, below + between + 1, depth, min_depth), between)

    return unbound(
        name,
        f"{name} is built like modules above its boundary, which make_learner alone can tell of:"
        " at a boundary in a model of your own take local_loss, or estimators.network",
        is_trained=True,
        structure=Structure(choose, bind),
    )


def depth_at(below: int, layers: int, depth: int, min_depth: int) -> int:
    """How many layers are wanted above a boundary with so many of a network's below it.

    In a straight line from `depth` above the first layer to `min_depth` below the last.
    """
    share = (below - 1) / max(1, layers - 2)
    return round(depth + share * (min_depth - depth))


def evenly_spaced(number: int, among: int) -> tuple[int, ...]:
    """So many places of 0 to among - 1, the highest always; all where these are no more."""
    number = min(number, among)
    return tuple(round(among * i / number) - 1 for i in range(1, number + 1))


def _key_of(h: PyTree) -> Key:
    """A key made of the bits of an activation."""
    bits = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(h):
        numbers = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
        bits = bits + jnp.sum(numbers, dtype=jnp.uint32)
    return jax.random.key(bits)
