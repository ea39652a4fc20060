"""What every module of a trained network computes."""

import jax

from decoupled.learning.learner import Learner
from decoupled.learning.state import LearnerState
from decoupled.shapes import AnyArray, Shaped
from decoupled.types import Array


def activations(
    learner: Learner, state: LearnerState, x: Shaped[AnyArray, "examples *shape"]
) -> tuple[Shaped[Array, "examples ..."], ...]:
    """The output of every module, in evaluation mode; the last is the network's.

    Layers inside one module stay unseen: cut the network after each layer that is to be looked at
    (with `estimators.backprop()` at a boundary the network is trained as if it were not cut).

    Args:
      learner: whose modules are run, those of stacks one by one.
      state: not changed; where many are stacked, `vmap`.
      x: inputs.

    Returns:
      One array a module.
    """
    found = []
    for module, own in zip(learner.modules, learner.unstack(state).modules, strict=True):
        # The key's value cannot matter: nothing is drawn in evaluation mode.
        x, _ = module.apply(own.params, own.state, x, jax.random.key(0), False)
        found.append(x)
    return tuple(found)
