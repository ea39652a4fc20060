"""Optimizers that ask for a `value` (`optax.contrib.reduce_on_plateau`): they are given the last step's.

That of the step at hand would lock every module until the network's output is there. So the value is
carried beside the optimizer's own state: for modules the mean loss of the step before, for estimators what
their own fit descended then; infinite in the first step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from decoupled.learning.state import BoundaryMetrics, EstimatorState, ModuleState
from decoupled.shapes import Float
from decoupled.types import Array, PyTree


class ValueState(NamedTuple):
    """The state of an optimizer, and the value that its next update is given."""

    inner: optax.OptState
    value: Array


class ValueGiven(optax.GradientTransformationExtraArgs):
    """An optimizer that finds in its state the value it asks for."""


def with_value(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer; one that asks for a `value` is given it from its state."""
    if not _asks_for_value(optimizer):
        return optimizer

    def init(params: PyTree) -> ValueState:
        return ValueState(optimizer.init(params), jnp.full((), jnp.inf, jnp.float32))

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, ValueState]:
        asked = optax.with_extra_args_support(optimizer)
        updates, inner = asked.update(updates, state.inner, params, **{"value": state.value, **extra})
        return updates, ValueState(inner, state.value)

    return ValueGiven(init, update)


def remember(
    modules: tuple[ModuleState, ...],
    estimators: tuple[EstimatorState, ...],
    loss: Float[Array, ""],
    boundaries: tuple[BoundaryMetrics | None, ...],
) -> tuple[tuple[ModuleState, ...], tuple[EstimatorState, ...]]:
    """The states with the values for the next step.

    Args:
      loss: mean over the examples.
      boundaries: metrics, one entry an estimator.
    """

    def given(state: Any, value: Array) -> Any:
        def told(node: Any) -> Any:
            if not isinstance(node, ValueState):
                return node
            # An array of its own, since states are donated.
            return node._replace(value=jnp.zeros_like(node.value) + value.astype(node.value.dtype))

        return state._replace(
            opt_state=jax.tree.map(told, state.opt_state, is_leaf=lambda node: isinstance(node, ValueState))
        )

    pairs = zip(estimators, boundaries, strict=True)
    return (
        tuple(given(module, loss) for module in modules),
        tuple(e if metrics is None else given(e, metrics.loss) for e, metrics in pairs),
    )


def _asks_for_value(optimizer: optax.GradientTransformation) -> bool:
    params = {"w": jnp.zeros((2, 2))}
    try:
        jax.eval_shape(lambda p: optimizer.update(p, optimizer.init(p), p), params)
    except TypeError as error:
        return "'value'" in str(error)
    except Exception:  # It may not take these parameters, which is no business of ours.
        return False
    return False
