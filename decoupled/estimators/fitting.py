"""Which of a network's layers can feed one another, found by shapes alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from decoupled.estimators.auxiliary_head import averaged
from decoupled.types import Module, PyTree

# (layer, what it is fed) -> what it makes of that, in shapes; None where it cannot be fed with it.
Output = Callable[[Module, PyTree], PyTree]


class Step(NamedTuple):
    """A layer in a chain of some of a network's.

    Attributes:
      place: of the layer in the network.
      window: rows and columns that are averaged to one before it; (1, 1) where none are.
    """

    place: int
    window: tuple[int, int]


def fitting(
    layers: tuple[Module, ...], places: tuple[int, ...], h: PyTree, output: Output, on_maps: bool
) -> tuple[Step, ...] | None:
    """A chain of the layers at some places, and the last of all; of others near where these do not fit.

    Where a layer in between would have made maps smaller, those that are left out, they are averaged to the
    size that the next has in the network.

    Args:
      layers: a chain, lowest first.
      places: of those that are wanted, rising, without the last.
      h: what the lowest is fed in the network; arrays or their shapes.
      output: as `remembering` makes it.
      on_maps: whether arrays of four axes are maps, (batch, height, width, channels).

    Returns:
      The steps, for a search that first tries for each place the nearest layers, then to do without; None
      where the last layer cannot be fed at all.
    """
    last, h = len(layers) - 1, shapes_of(h)
    fed = [h]
    for layer in layers[:-1]:
        fed.append(None if fed[-1] is None else output(layer, fed[-1]))
    dead_ends = set()

    def take(place: int, h: PyTree) -> tuple[Step, PyTree]:
        step = Step(place, _window(h, fed[place]) if on_maps else (1, 1))
        return step, output(layers[place], jax.eval_shape(lambda h: narrowed(h, step), h))

    def search(h: PyTree, lowest: int, wanted: tuple[int, ...]) -> tuple[Step, ...] | None:
        here = _key(h), lowest, wanted
        if here in dead_ends:
            return None
        for place in sorted(range(lowest, last), key=lambda p: abs(p - wanted[0])) if wanted else [last]:
            step, out = take(place, h)
            above = None if out is None else () if place == last else search(out, place + 1, wanted[1:])
            if above is not None:
                return step, *above
        if wanted and (without := search(h, lowest, wanted[1:])):
            return without
        dead_ends.add(here)
        return None

    return search(h, 0, places)


def narrowed(h: PyTree, step: Step) -> PyTree:
    """What a step's layer is fed, of what the one before has made."""
    return h if step.window == (1, 1) else averaged(h, *step.window)


def remembering() -> Output:
    """A function that tries what layers make of what they are fed, and tries nothing twice."""
    seen: dict[Any, PyTree] = {}

    def output(layer: Module, h: PyTree) -> PyTree:
        key = layer.init, layer.apply, _key(h)
        if key not in seen:
            seen[key] = _tried(layer, h)
        return seen[key]

    return output


def shapes_of(tree: PyTree) -> PyTree:
    """Shapes and types of an activation."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _tried(layer: Module, h: PyTree) -> PyTree:
    def run(h: PyTree) -> PyTree:
        key = jax.random.key(0)  # its value cannot matter: only shapes are traced
        variables = layer.init(key, h)
        return layer.apply(variables.params, variables.state, h, key, False)[0]

    try:
        return jax.eval_shape(run, h)
    except Exception:  # whatever it says of shapes that are not its own
        return None


def _window(h: PyTree, like: PyTree) -> tuple[int, int]:
    """Rows and columns that become one where maps are to be of the size of others."""
    if not all(isinstance(maps, jax.ShapeDtypeStruct) and len(maps.shape) == 4 for maps in (h, like)):
        return 1, 1
    return max(1, h.shape[1] // like.shape[1]), max(1, h.shape[2] // like.shape[2])


def _key(h: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(h)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
