"""What training changes, and what a step reports of it."""

from typing import NamedTuple

import optax

from decoupled.shapes import Float, Integer
from decoupled.types import Array, PyTree, WithBorrowed


class ModuleState(NamedTuple):
    """One module: its parameters, mutable collections and optax state."""

    params: PyTree
    state: PyTree
    opt_state: optax.OptState


class Shared(NamedTuple):
    """In the state of a stack: what its blocks have in common, and so is there once."""

    tree: PyTree


class EstimatorState(NamedTuple):
    """One boundary's estimator.

    Attributes:
      params: what is trained.
      opt_state: its optax state.
      borrowed: copies of modules above, where it borrows: a tuple of ModuleVariables.
    """

    params: PyTree
    opt_state: optax.OptState
    borrowed: PyTree = ()

    @property
    def est_params(self) -> PyTree:
        """What the estimator's functions are given."""
        if not self.borrowed:
            return self.params
        copies = self.borrowed.tree if isinstance(self.borrowed, Shared) else self.borrowed
        return WithBorrowed(self.params, copies)


class LearnerState(NamedTuple):
    """Everything that training changes; `estimators[i]` belongs to the boundary after `modules[i]`."""

    step: Integer[Array, ""]
    modules: tuple[ModuleState, ...]
    estimators: tuple[EstimatorState, ...]


class BoundaryMetrics(NamedTuple):
    """How well one estimator does.

    Attributes:
      loss: what it descends, mean over examples: the SG loss, or a loss of its own.
      target_power: squared length of the target, mean over examples; None where it has a loss of its
        own. R^2 of an SG against the zero predictor is 1 - loss / target_power.
    """

    loss: Float[Array, "*blocks"]
    target_power: Float[Array, "*blocks"] | None


class Metrics(NamedTuple):
    """What one update saw, before it changed anything.

    Attributes:
      loss: scalar, mean over the examples, by their weights.
      output: of the last module, (batch, ...).
      boundaries: one entry a boundary; None where the estimator is not trained.
    """

    loss: Float[Array, ""]
    output: PyTree
    boundaries: tuple[BoundaryMetrics | None, ...]


class ModuleStep(NamedTuple):
    """The result of one module's own update.

    Attributes:
      module: its new state.
      h_out: what it feeds the module above, (batch, ...).
      grad_h_in: the target for the estimator below, shape of h_in's real part; None for the first module.
      losses: one an example, (batch,), from the last module; None from the others.
    """

    module: ModuleState
    h_out: PyTree
    grad_h_in: PyTree
    losses: Float[Array, " rows"] | None
