"""Estimators that have the structure of layers above are told which these are, once the chain is known."""

from collections.abc import Sequence

from decoupled.errors import UsageError
from decoupled.learning.chain import Chain
from decoupled.learning.stack import modules_of
from decoupled.types import Estimator, Module


def structured(chain: Chain, batch_axes: int) -> Chain:
    """The chain, where estimators that have the structure of layers above know of which.

    Args:
      chain: a whole network.
      batch_axes: that count examples.

    Raises:
      UsageError: above the blocks of a stack they are not the same layers.
    """
    # Equal estimators of equal layers stay equal, and are compiled once.
    made: dict[tuple[Estimator, tuple[Module, ...], tuple[int, ...]], Estimator] = {}
    modules = chain.modules

    def bind(k: int) -> Estimator:
        spec = chain.estimators[k]
        if spec.structure is None:
            return spec
        first = int(chain.offsets[k]) + 1
        above, places, chosen = [], [], []
        for place in range(first, first + len(modules_of(chain.links[k]))):
            layers = tuple(layer._replace(name="") for layer in layers_of(modules[place:]))
            above.append(layers)
            places.append(spec.structure.choose(len(layers_of(modules[:place])), len(layers) - 1))
            chosen.append([(layers[i].init, layers[i].apply) for i in places[-1]])
        if any(functions != chosen[0] for functions in chosen):
            raise UsageError(
                f"{chain.where(k)}: {spec.name} is built of layers that above the highest blocks are others"
                " than above the lowest: keep the highest blocks out of the stack, or choose fewer layers,"
                " everywhere as many"
            )
        key = (spec, above[0], places[0])
        if key not in made:
            own = spec.structure.bind(above[0], places[0], batch_axes)
            made[key] = spec._replace(
                init=own.init, estimate=own.estimate, training_gradient=own.training_gradient
            )
        return made[key]

    return chain._replace(estimators=tuple(bind(k) for k in range(len(chain.estimators))))


def layers_of(modules: Sequence[Module]) -> tuple[Module, ...]:
    """Modules, those that were composed in their parts."""
    return tuple(layer for m in modules for layer in (layers_of(m.parts) if m.parts else (m,)))
