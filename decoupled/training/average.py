"""An average of parameters for evaluation, kept where they are updated: all ways of training have it."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from decoupled.learning.state import LearnerState, ModuleState
from decoupled.precision import at_least_float32
from decoupled.shapes import Integer
from decoupled.types import Array, PyTree


class AverageState(NamedTuple):
    """Of one module.

    Attributes:
      inner: state of the optimizer that moves the parameters.
      count: of updates.
      average: of the parameters after each of them, in their shapes, at least float32.
    """

    inner: optax.OptState
    count: Integer[Array, ""]
    average: PyTree


def averaged(
    optimizer: optax.GradientTransformation, decay: float
) -> optax.GradientTransformationExtraArgs:
    """The same optimizer, which also keeps an average of the parameters that it makes.

    After T updates, to p_1 ... p_T, it is the sum of decay^(T-t) p_t over that of decay^(T-t): an
    exponential moving average in which the start has no weight.

    Args:
      decay: above 0 and below 1.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: PyTree) -> AverageState:
        # Arrays of its own, since states are donated.
        average = jax.tree.map(lambda p: jnp.array(at_least_float32(p), copy=True), params)
        return AverageState(optimizer.init(params), jnp.zeros((), jnp.int32), average)

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, AverageState]:
        updates, inner = optimizer.update(updates, state.inner, params, **extra)
        count = state.count + 1
        # Over 1 - decay^count, of which a decay near 1 would leave few digits.
        share = (1 - decay) / -jnp.expm1(count * math.log(decay))
        new = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda old, p: old + share * (p - old), state.average, new)
        return updates, AverageState(inner, count, average)

    return optax.GradientTransformationExtraArgs(init, update)


def evaluated(state: LearnerState) -> LearnerState:
    """The same state with the averages as parameters, for modules that keep one: to use, not to train."""
    return state._replace(modules=tuple(map(_evaluated_module, state.modules)))


def _evaluated_module(module: ModuleState) -> ModuleState:
    nodes = jax.tree.leaves(module.opt_state, is_leaf=_is_average)
    for average in (node.average for node in nodes if _is_average(node)):
        params = jax.tree.map(lambda new, old: new.astype(old.dtype), average, module.params)
        return module._replace(params=params)
    return module


def _is_average(node: object) -> bool:
    return isinstance(node, AverageState)
