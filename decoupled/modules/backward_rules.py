"""How a layer sends its signal back: Feedback Alignment, on Linen layers as they are.

A Dense or Conv layer is linear, y = f(W, x): W learns from the signal that comes in, and the layer below
is sent that signal through the transpose of W. A backward rule leaves the first alone, and does the second
with other weights B. It is applied from outside, by Flax's method interception, so that the model's code
and its parameters stay what they are:

    with nn.intercept_methods(feedback_alignment):
        variables = model.init(key, x)          # {"params": ..., "feedback": ...}
        logits = model.apply(variables, x)      # differentiate this

B is kept in the collection "feedback", drawn as a Dense kernel is by default, and never changed. The layers
are Dense, DenseGeneral (hence attention), Conv and ConvTranspose; `init` tells which it has met, and which
matrices of other layers (Einsum, OptimizedLSTMCell, kernels of one's own) send signals back exactly. Enter
the rule inside the function that is jitted: outside it, and in functions that were traced outside it, the
model is as it was. Around `nn.RNN`, `nn.scan` and `nn.vmap` name the collection as you name "params":
`nn.RNN(cell, variable_broadcast=("params", "feedback"))`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from absl import logging
from flax import errors as flax_errors
from flax import linen as nn
from flax.linen.module import InterceptorContext

from decoupled.argument_checks import check_module
from decoupled.errors import UsageError, naming
from decoupled.modules.linen import FEEDBACK
from decoupled.modules.own_layers import within_own_layers
from decoupled.telling import tell
from decoupled.types import Array, Module, ModuleVariables, PyTree

# What `flax.linen.intercept_methods` takes: (next method, arguments, keywords, context) -> output.
BackwardRule: TypeAlias = Callable[..., Any]

_DRAW = nn.initializers.lecun_normal()
_LINEAR_LAYERS = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.ConvTranspose)
# The name of layers that do the rule's own arithmetic, and are not to be intercepted again.
_PLAIN = "plain layer of a backward rule"
# They map the variables of the layer inside, whatever their collection.
_MAPS_VARIABLES = (nn.WeightNorm, nn.SpectralNorm)
_INSIDE = ContextVar("within the outermost call of a model that is initialised", default=False)
# What the module of a chain is called that a model is in, and the lines that have been told of it.
_OF_MODULE: ContextVar[tuple[str, set[str]] | None] = ContextVar("the module around", default=None)


def feedback_alignment(next_fun: Callable, args: tuple, kwargs: dict, context: InterceptorContext) -> Any:
    """Sends signals back through fixed random weights.

    Raises:
      UsageError: (from init) the model has matrices, but no layer that the rule could act on; (from both)
        something around a layer does not hand on the collection "feedback", or it was not passed.

    References:
      Lillicrap et al. 2016, "Random synaptic feedback weights support error backpropagation for deep
      learning"; U17's table of methods.
    """
    return _intercepted(lambda kernel, feedback: feedback, next_fun, args, kwargs, context)


def sign_symmetric(next_fun: Callable, args: tuple, kwargs: dict, context: InterceptorContext) -> Any:
    """Sends signals back through weights of fixed random size, with the signs of the forward weights.

    Raises:
      UsageError: as `feedback_alignment` does.

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
    told: set[str] = set()  # `init` is traced more than once in a run, as to learn its shapes

    def init(*arguments: Any) -> ModuleVariables:
        token = _OF_MODULE.set((f"{module.name}, ", told))
        try:
            with nn.intercept_methods(rule), naming(f"module {module.name}"):
                variables = module.init(*arguments)
        finally:
            _OF_MODULE.reset(token)
        if _in_the_way(_matrices(variables.params)) and not _has_feedback(module, variables.state):
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
    context: InterceptorContext,
) -> Any:
    layer: Any = context.module
    bound = layer.scope is not None and context.method_name != "setup"
    if not bound or within_own_layers() or layer.name == _PLAIN:
        return next_fun(*args, **kwargs)
    if layer.is_initializing() and not _INSIDE.get():
        token = _INSIDE.set(True)
        try:
            out = _intercepted(kernel_back, next_fun, args, kwargs, context)
        finally:
            _INSIDE.reset(token)
        _tell(layer, whole=context.method_name == "__call__")
        return out
    if context.method_name != "__call__" or not isinstance(layer, _LINEAR_LAYERS):
        with _naming_what_is_around(layer):
            return next_fun(*args, **kwargs)
    if layer.is_initializing():
        out = next_fun(*args, **kwargs)
        kernel = nn.meta.unbox(layer.get_variable("params", "kernel"))
        outputs = math.prod(jax.tree.leaves(layer.features))

        def draw() -> Array:
            flat = (kernel.size // outputs, outputs)
            return _DRAW(layer.make_rng("params"), flat, kernel.dtype).reshape(kernel.shape)

        with _naming_what_is_around(layer):
            layer.variable(FEEDBACK, "kernel", draw)
        return out
    if not layer.has_variable(FEEDBACK, "kernel"):
        raise UsageError(
            f"layer {_name(layer)}: its feedback weights are missing: run init under the same backward"
            f" rule, and pass the {FEEDBACK!r} collection with the parameters"
        )
    plain = layer.clone(parent=None, name=_PLAIN)

    def f(params: PyTree, x: Array) -> PyTree:
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


@contextmanager
def _naming_what_is_around(layer: nn.Module) -> Iterator[None]:
    """Says what to do where Flax cannot give a layer feedback weights."""
    try:
        yield
    except flax_errors.ScopeCollectionNotFound as error:
        if f'"{FEEDBACK}"' not in str(error):
            raise
        raise UsageError(
            f"layer {_name(layer)}: what is around it does not hand on the collection {FEEDBACK!r}: name"
            " that beside 'params', as in nn.RNN(cell, variable_broadcast=('params', 'feedback')), or in"
            " variable_axes or variable_broadcast of nn.scan or nn.vmap"
        ) from error
    except flax_errors.NameInUseError as error:
        if not isinstance(layer, _MAPS_VARIABLES):
            raise
        raise UsageError(
            f"layer {_name(layer)}: {type(layer).__name__} maps all variables of the layer in it, feedback"
            " weights too, so that no backward rule can act there: leave one of the two out"
        ) from error


def _tell(model: nn.Module, whole: bool) -> None:
    """Tells which layers of a model a rule acts on, and which matrices it leaves alone.

    Each line once for a module of `with_backward_rule`, however often that is initialised.

    By what the variables say: functions that were traced before (`nn.jit`) have not been intercepted.

    Args:
      whole: whether all of the model has been called.

    Raises:
      UsageError: it acts on none, though there are matrices.
    """
    ruled = {path[:-1] for path in _paths(model.variables.get(FEEDBACK, {}))}
    params = nn.meta.unbox(model.variables.get("params", {}))
    exact = [path for path in _matrices(params) if path[:-1] not in ruled]
    left = ", ".join(map("/".join, exact))
    if _in_the_way(exact) and not ruled:
        none = f"a backward rule acts on Linen's Dense and Conv layers, but {type(model).__name__} has none"
        if whole:
            raise UsageError(f"{none}: leave the rule out, or signals pass back exactly through {left}")
        logging.warning("%s: signals pass back exactly through %s", none, left)
    elif ruled:
        of_module, told = _OF_MODULE.get() or ("", set())
        layers = ", ".join(sorted("/".join(path) or type(model).__name__ for path in ruled))
        others = f"; signals pass back exactly through {left}" if exact else ""
        name = f"{of_module}{type(model).__name__}"
        line = f"a backward rule acts on these layers of {name}: {layers}{others}"
        if line not in told:
            told.add(line)
            (logging.warning if exact else tell)(line)


def _matrices(params: PyTree) -> list[tuple[str, ...]]:
    """The paths of all that signals are multiplied by."""
    # In a scan over layers vectors have two axes.
    return [p for p, leaf in _paths(params).items() if leaf.ndim > 1 and p[-1] not in ("bias", "scale")]


def _in_the_way(matrices: list[tuple[str, ...]]) -> bool:
    """Whether a signal passes through one of these: through an embedding of tokens none does."""
    return any(path[-1] != "embedding" for path in matrices)


def _paths(tree: PyTree) -> dict[tuple[str, ...], Array]:
    """The arrays of a collection, but for those of boundaries' estimators, by their path."""
    found = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        keys = tuple(str(getattr(entry, "key", entry)) for entry in path) or ("",)
        if "est_params" not in keys:
            found[keys] = leaf
    return found


def _has_feedback(module: Module, state: PyTree) -> bool:
    """Whether the state of a module, or of one of its parts, has feedback weights."""
    if module.parts:
        return any(map(_has_feedback, module.parts, state))
    return isinstance(state, Mapping) and FEEDBACK in state


def _name(layer: nn.Module) -> str:
    return "/".join(layer.path) or type(layer).__name__
