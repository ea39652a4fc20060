"""How a layer sends its signal back: Feedback Alignment, on Linen layers as they are.

A Dense or Conv layer is linear, y = f(W, x): W learns from the signal that comes in, and the layer below
is sent that signal through the transpose of W. A backward rule leaves the first alone, and does the second
with other weights B. It is applied from outside, by Flax's method interception, so that the model's code
and its parameters stay what they are:

    with nn.intercept_methods(feedback_alignment):
        variables = model.init(key, x)          # {"params": ..., "feedback": ...}
        logits = model.apply(variables, x)      # differentiate this

B is kept in the collection "feedback", drawn as a Dense kernel is by default, and never changed.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn

from decoupled.boundaries.linen import FEEDBACK
from decoupled.errors import UsageError
from decoupled.types import Array, Module, PyTree

# What `flax.linen.intercept_methods` takes: (next method, arguments, keywords, context) -> output.
BackwardRule: TypeAlias = Callable[..., Any]

_DRAW = nn.initializers.lecun_normal()
# The name of layers that do the rule's own arithmetic, and are not to be intercepted again.
_PLAIN = "plain layer of a backward rule"


def feedback_alignment(next_fun: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    """Sends signals back through fixed random weights.

    References:
      Lillicrap et al. 2016, "Random synaptic feedback weights support error backpropagation for deep
      learning"; U17's table of methods.
    """
    return _intercepted(lambda kernel, feedback: feedback, next_fun, args, kwargs, context)


def sign_symmetric(next_fun: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    """Sends signals back through weights of fixed random size, with the signs of the forward weights.

    References:
      Liao, Leibo & Poggio 2016, "How important is weight symmetry in backpropagation?" (arXiv 1510.05067).
    """
    return _intercepted(
        lambda kernel, feedback: jnp.sign(kernel) * jnp.abs(feedback), next_fun, args, kwargs, context
    )


def with_backward_rule(module: Module, rule: BackwardRule) -> Module:
    """The module, with the rule in force in every Linen layer that it runs; "feedback" joins its state."""

    def init(*arguments: Any) -> Any:
        with nn.intercept_methods(rule):
            return module.init(*arguments)

    def apply(*arguments: Any) -> Any:
        with nn.intercept_methods(rule):
            return module.apply(*arguments)

    return Module(module.name, init, apply, exact=module.exact or module)


def _intercepted(
    kernel_back: Callable[[Array, Array], Array],
    next_fun: Callable,
    args: tuple,
    kwargs: dict,
    context: Any,
) -> Any:
    layer: Any = context.module
    intercepts = isinstance(layer, nn.Dense | nn.Conv) and context.method_name == "__call__"
    if not intercepts or layer.name == _PLAIN:
        return next_fun(*args, **kwargs)
    if layer.is_initializing():
        out = next_fun(*args, **kwargs)
        kernel = layer.get_variable("params", "kernel")
        layer.variable(
            FEEDBACK, "kernel", lambda: _DRAW(layer.make_rng("params"), kernel.shape, kernel.dtype)
        )
        return out
    if not layer.has_variable(FEEDBACK, "kernel"):
        raise UsageError(
            f"layer {'/'.join(layer.path) or type(layer).__name__}: its feedback weights are missing: run"
            f" init under the same backward rule, and pass the {FEEDBACK!r} collection with the parameters"
        )
    plain = layer.clone(parent=None, name=_PLAIN)

    def f(params: PyTree, x: Array) -> Any:
        return plain.apply({"params": params}, x)

    @jax.custom_vjp
    def run(params: PyTree, feedback: Array, x: Array) -> Array:
        del feedback
        return f(params, x)

    def forward(params: PyTree, feedback: Array, x: Array):
        return f(params, x), (params, feedback, x)

    def backward(saved: tuple, signal: Array):
        params, feedback, x = saved
        _, pullback_to_params = jax.vjp(lambda params: f(params, x), params)
        back = {**params, "kernel": kernel_back(params["kernel"], feedback)}
        _, pullback_to_x = jax.vjp(lambda x: f(back, x), x)
        return *pullback_to_params(signal), None, *pullback_to_x(signal)

    run.defvjp(forward, backward)
    (x,) = (*args, *kwargs.values())
    weights = dict(layer.variables["params"]), layer.get_variable(FEEDBACK, "kernel")
    return run(*weights, x)
