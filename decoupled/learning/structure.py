"""Estimators that have the structure of layers above are told which these are, once the chain is known."""

from collections.abc import Sequence

from decoupled.errors import UsageError
from decoupled.learning.binding import with_bound
from decoupled.learning.chain import Chain
from decoupled.learning.stack import modules_of
from decoupled.types import Module, Structure


def structured(chain: Chain, batch_axes: int) -> Chain:
    """The chain, where estimators that have the structure of layers above know of which.

    Args:
      chain: a whole network.
      batch_axes: that count examples.

    Raises:
      UsageError: above the blocks of a stack they are not the same layers.
    """
    modules = chain.modules

    def arguments(k: int, structure: Structure) -> tuple[tuple[Module, ...], tuple[int, ...], int]:
        first = int(chain.offsets[k]) + 1
        above, places, chosen = [], [], []
        for place in range(first, first + len(modules_of(chain.links[k]))):
            layers = tuple(layer._replace(name="") for layer in layers_of(modules[place:]))
            above.append(layers)
            places.append(structure.choose(len(layers_of(modules[:place])), len(layers) - 1))
            chosen.append([(layers[i].init, layers[i].apply) for i in places[-1]])
        if any(functions != chosen[0] for functions in chosen):
            raise UsageError(
                f"{chain.where(k)}: {chain.estimators[k].name} is built of layers that above the highest"
                " blocks are others than above the lowest: keep the highest blocks out of the stack, or"
                " choose fewer layers, everywhere as many"
            )
        return above[0], places[0], batch_axes

    return with_bound(chain, lambda spec: spec.structure, arguments)


def layers_of(modules: Sequence[Module]) -> tuple[Module, ...]:
    """Modules, those that were composed in their parts."""
    return tuple(layer for m in modules for layer in (layers_of(m.parts) if m.parts else (m,)))
