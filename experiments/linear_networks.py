"""What the claims about linear networks share: the layers, how they start, and an SG with line search."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from decoupled.analysis import line_search
from decoupled.learning.learner import Learner
from decoupled.learning.state import LearnerState
from decoupled.modules import from_functions
from decoupled.types import Array, Estimator, Key, Module, PyTree

# One layer: {"W": (inputs, outputs), "b": (outputs,)}.
Layer = dict[str, Array]


def linear_module(widths: Sequence[int], name: str) -> Module:
    """Linear layers, each h W + b, with nothing between them; its parameters are a tuple of layers.

    Args:
      widths: of the input and of every layer's output.
    """

    def init(key: Key, h: Array) -> tuple[Layer, ...]:
        del h
        return near_orthogonal(key, widths)

    def apply(layers: tuple[Layer, ...], h: Array) -> Array:
        for layer in layers:
            h = h @ layer["W"] + layer["b"][None, :]
        return h

    return from_functions(init, apply, name)


def identity_module(name: str) -> Module:
    """No parameters: with it on top, a boundary stands right below the loss."""
    return from_functions(lambda key, h: {}, lambda params, h: h, name)


def near_orthogonal(key: Key, widths: Sequence[int]) -> tuple[Layer, ...]:
    """Layers with orthonormal columns or rows, whichever are fewer, and zero biases.

    A deep product of them neither grows nor shrinks (Saxe et al. 2014, arXiv 1312.6120).
    """
    orthogonal = jax.nn.initializers.orthogonal()
    keys = jax.random.split(key, len(widths) - 1)
    shapes = itertools.pairwise(widths)
    return tuple(
        {"W": orthogonal(k, shape, jnp.result_type(float)), "b": jnp.zeros((shape[1],))}
        for k, shape in zip(keys, shapes, strict=True)
    )


def with_layers(learner: Learner, state: LearnerState, layers: Sequence[Layer]) -> LearnerState:
    """The state with these layers in its modules, lowest first: one start for networks cut differently."""
    rest, modules = list(layers), []
    for module in state.modules:
        own, rest = tuple(rest[: len(module.params)]), rest[len(module.params) :]
        modules.append(module._replace(params=own, opt_state=learner.rules.optimizer.init(own)))
    assert not rest, "more layers than the modules have"
    return state._replace(modules=tuple(modules))


def with_params(state: LearnerState, params: Sequence[PyTree]) -> LearnerState:
    """The state with these parameters in its modules, lowest first, and all else as it was."""
    modules = (own._replace(params=given) for own, given in zip(state.modules, params, strict=True))
    return state._replace(modules=tuple(modules))


def layers_of(state: LearnerState) -> tuple[Layer, ...]:
    """All layers of the network, lowest first."""
    return tuple(layer for module in state.modules for layer in module.params)


def whole_map(layers: Sequence[Layer]) -> Layer:
    """The one layer that does what they all do."""
    W, b = layers[0]["W"], layers[0]["b"]
    for layer in layers[1:]:
        W, b = W @ layer["W"], b @ layer["W"] + layer["b"]
    return {"W": W, "b": b}


def in_float64(state: LearnerState) -> LearnerState:
    """The same: the library's estimators start in single precision."""

    def cast(leaf: Array) -> Array:
        return leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf

    return jax.tree.map(cast, state)


def least_squares_loss(x: Array, y: Array) -> float:
    """The lowest squared error of a linear function with a bias; NumPy's."""
    inputs = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    residual = inputs @ np.linalg.lstsq(inputs, np.asarray(y), rcond=None)[0] - y
    return float(0.5 * np.mean(np.sum(residual**2, axis=1)))


def line_searched(estimator: Estimator) -> Estimator:
    """Steepest descent on the SG loss, in each step as far along the gradient as the loss falls.

    For an estimator whose estimate is affine in its parameters the search is exact. The step depends on all
    examples at once, so this is for one device.
    """
    assert estimator.training_gradient is not None, f"{estimator.name} is not trained"
    descend = estimator.training_gradient

    def training_gradient(est_params: PyTree, h: Array, y: Array, target: Array) -> tuple[Array, PyTree]:
        loss, gradient = descend(est_params, h, y, target)
        direction = jax.tree.map(jnp.negative, gradient)
        rate = line_search(lambda p: estimator.estimate(p, h, y, None), est_params, direction, target)
        return loss, jax.tree.map(lambda g: rate * g, gradient)

    return estimator._replace(training_gradient=training_gradient, optimizer=lambda _: optax.sgd(1.0))
