"""How a layer sends its signal back: Feedback Alignment, on Linen layers as they are.

A Dense or Conv layer is linear, y = f(W, x): W learns from the signal that comes in, and the layer below
is sent that signal through the transpose of W. A backward rule leaves the first alone, and does the second
with other weights B. It is applied from outside, by Flax's method interception, so that the model's code
and its parameters stay what they are:

    with nn.intercept_methods(feedback_alignment):
        variables = model.init(key, x)          # {"params": ..., "feedback": ...}
        logits = model.apply(variables, x)      # differentiate this

B is kept in the collection "feedback", drawn as a Dense kernel is by default, and never changed. The layers
are Dense, DenseGeneral (hence attention), Conv and ConvTranspose. Enter the rule inside the function that
is jitted: outside it, and in functions that were traced outside it, the model is as it was.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn

from decoupled.argument_checks import check_module
from decoupled.boundaries.linen import FEEDBACK
from decoupled.errors import UsageError
from decoupled.own_layers import within_own_layers
from decoupled.types import Array, Module, ModuleVariables, PyTree

# What `flax.linen.intercept_methods` takes: (next method, arguments, keywords, context) -> output.
BackwardRule: TypeAlias = Callable[..., Any]

_DRAW = nn.initializers.lecun_normal()
_LINEAR_LAYERS = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.ConvTranspose)
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
    """The module, with the rule in force in every Linen layer that it runs; "feedback" joins its state.

    Raises:
      UsageError: (from init) the module has matrices, but not one layer that the rule could act on.
    """
    check_module("with_backward_rule", module)

    def init(*arguments: Any) -> ModuleVariables:
        with nn.intercept_methods(rule):
            variables = module.init(*arguments)
        places = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(variables.state)]
        has_matrices = any(leaf.ndim > 1 for leaf in jax.tree.leaves(variables.params))
        if has_matrices and not any(FEEDBACK in place for place in places):
            raise UsageError(
                f"module {module.name}: a backward rule acts on Linen's Dense and Conv layers, but it has"
                " none: make it with from_linen"
            )
        return variables

    def apply(*arguments: Any) -> Any:
        with nn.intercept_methods(rule):
            return module.apply(*arguments)

    return module._replace(init=init, apply=apply, exact=module.exact or module)


def _intercepted(
    kernel_back: Callable[[Array, Array], Array],
    next_fun: Callable,
    args: tuple,
    kwargs: dict,
    context: Any,
) -> Any:
    layer: Any = context.module
    intercepts = isinstance(layer, _LINEAR_LAYERS) and context.method_name == "__call__"
    if not intercepts or within_own_layers() or layer.name == _PLAIN:
        return next_fun(*args, **kwargs)
    if layer.is_initializing():
        out = next_fun(*args, **kwargs)
        kernel = nn.meta.unbox(layer.get_variable("params", "kernel"))
        outputs = math.prod(jax.tree.leaves(layer.features))

        def draw() -> Array:
            flat = (kernel.size // outputs, outputs)
            return _DRAW(layer.make_rng("params"), flat, kernel.dtype).reshape(kernel.shape)

        layer.variable(FEEDBACK, "kernel", draw)
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
    params = dict(nn.meta.unbox(layer.variables["params"]))
    return run(params, layer.get_variable(FEEDBACK, "kernel"), x)
